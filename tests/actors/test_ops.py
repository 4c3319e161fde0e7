"""A process killed while it compiled DeepSpeed's op does not stop those that come after it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_lock_that_a_killed_process_left_is_removed_and_the_op_loads(tmp_path):
    folder = tmp_path / "deepspeed_shm_comm"
    folder.mkdir()
    (folder / "lock").touch()
    command = [sys.executable, "-m", "actors.ops"]
    env = os.environ | {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        assert "built successfully" in out
    assert not (folder / "lock").exists()
    assert (folder / "deepspeed_shm_comm.so").exists()
