"""Sums in bf16 with the kernels of lesser processors: oneDNN multiplies otherwise at each level of
instructions.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEVELS = {"AVX2": "avx2", "AVX512_CORE": "avx512bw", "AVX512_CORE_BF16": "avx512_bf16"}
"""Of ONEDNN_MAX_CPU_ISA, from the least, with the flag in /proc/cpuinfo that a processor of that
level has.
"""
FILES = ("tests/actors/test_proof.py", "tests/algorithms/test_logprobs.py")
STEPS = "tests/actors/test_engine.py"
"""Optimizer steps, which take longest: at this processor's own level in every run."""


def flags() -> set[str]:
    """What this processor can do."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return set(next((line for line in lines if line.startswith("flags")), "").split())


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("level", "files"),
    [
        # With that of this processor the least is enough in every run of the tests.
        ("AVX2", FILES),
        *(pytest.param(level, (*FILES, STEPS), marks=pytest.mark.slow) for level in LEVELS),
    ],
)
def test_bf16_at_a_level_of_instructions(level: str, files: tuple[str, ...]) -> None:
    has = [name for name, flag in LEVELS.items() if flag in flags()]
    if level not in has[:-1]:
        pytest.skip(
            "all other tests run at this level"
            if level in has
            else "this processor does not have it"
        )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "bf16", *files]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": level},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
