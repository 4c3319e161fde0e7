"""`python -m rayward.pipelines.installed cpu|gpu`, the last of `make install`: does it all load?

Every module of ours is imported, and with it what it needs of torch, transformers, Ray, DeepSpeed
and vLLM: binary packages that do not fit each other (torch for the CPU beside torchvision for CUDA)
show when they are loaded, not when they are installed. Nothing here needs a GPU.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence

FLOORS = ("actors", "algorithms", "cluster", "configs", "data", "pipelines")


def modules(package: str = "rayward", floors: Sequence[str] = FLOORS) -> list[str]:
    """The names of all modules of a package's floors, in order."""
    names = [package]
    # Floor by floor: in a checkout the package's own path is the whole repository, with its tests
    # and benchmarks.
    for floor in floors:
        name = f"{package}.{floor}"
        path = importlib.import_module(name).__path__
        names += [name, *(module.name for module in pkgutil.walk_packages(path, f"{name}."))]
    return names


def failures(names: Sequence[str]) -> list[str]:
    """Imports each; a line `module: error` for each one that does not load."""
    lines = []
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a library's loading may raise
            lines.append(f"{name}: {type(error).__name__}: {error}")
    return lines


def torch_build() -> tuple[str, str]:
    """(`cpu` or `gpu`, the words for it), by what torch was built for."""
    # Not torch.cuda.is_available: an image for GPUs is often built on a machine without one.
    import torch

    device = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU"
    return "gpu" if torch.version.cuda else "cpu", f"torch {torch.__version__}, built for {device}"


def main(wanted: str) -> int:
    """0 where everything loads and torch was built for the set `wanted` (`cpu`, `gpu`), else 1."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    names = modules()
    failed = failures(names)
    for line in failed:
        print(f"rayward: does not load: {line}", file=sys.stderr)
    kind, words = torch_build()
    if kind != wanted:
        print(
            f"rayward: requirements/{wanted}.lock was installed and this is {words}",
            file=sys.stderr,
        )
    print(f"{words}; {len(names) - len(failed)} of {len(names)} modules load")
    return int(bool(failed) or kind != wanted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
