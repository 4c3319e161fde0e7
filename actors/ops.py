"""DeepSpeed's compiled op, safe against a process that died while it compiled."""

from __future__ import annotations

import fcntl
import os
import sys
from functools import cache
from pathlib import Path


@cache
def shared_memory_op() -> None:
    """Compile (the first time) and load DeepSpeed's collectives over shared memory for the CPU, once a process.

    PyTorch guards the folder with a plain file. A process killed in that moment leaves the file, and all that come
    after wait for it without end. A lock of the operating system goes with its holder, so who holds ours knows that
    PyTorch's is a leftover. The folder is our own unless TORCH_EXTENSIONS_DIR names one: nobody else compiles there.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(caches / "rayward" / "torch_extensions")))
    os.environ["DS_ACCELERATOR"] = "cpu"
    # The ninja that it is compiled with is that of this environment, which may not be activated.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    from deepspeed.comm.torch import build_shm_op
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "rayward.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (folder / ShareMemCommBuilder.NAME / "lock").unlink(missing_ok=True)
        build_shm_op()  # kept by DeepSpeed: its own call in this process returns what was loaded here


if __name__ == "__main__":
    shared_memory_op()
