"""The other systems that benchmarks measure against, in an environment of their own: .venv-peers
beside .venv.

It reads the packages of .venv, so both run on the same torch and transformers, and adds TRL to
them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

PACKAGES = ("trl==1.16.*",)


def peer_python() -> str:
    """Python of .venv-peers, which is made where there is none (it needs a package index)."""
    folder = Path(sys.prefix).parent / ".venv-peers"
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        print(f"Making {folder} with {', '.join(PACKAGES)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        packages = next((folder / "lib").glob("python3*")) / "site-packages"
        (packages / "rayward.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run(
            [str(python), "-m", "pip", "install", "-qq", "--no-deps", *PACKAGES], check=True
        )
        (folder / "ready").touch()
    return str(python)


def run_peer(command: list[str], threads: int) -> None:
    """Run a peer's half to its end; SystemExit with the end of what it said where it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")


def trl_half_of(
    script: str, options: argparse.Namespace, folder: Path, strategy: str, accumulate: int
) -> dict[str, Any]:
    """TRL's half of a script, in the environment with TRL: what it wrote to trl.json in the
    folder.
    """
    arguments = ["--trl-half", str(folder), strategy, str(accumulate)]
    run_peer([options.peer_python, str(Path(script).resolve()), *arguments], options.threads)
    return json.loads((folder / "trl.json").read_text())


def toy_run(folder: Path) -> Path:
    """A run of the quickstart with its first stage, prepare."""
    run = folder / "run"
    print("Preparing the toy world", flush=True)
    command = [
        str(Path(sys.executable).parent / "rayward"),
        "prepare",
        "quickstart",
        "--run",
        str(run),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return run
