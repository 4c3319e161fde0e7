"""Files that a thread writes beside the training, which goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeVar

import psutil

SPARE = 2
"""Of the memory that is free, copies of all ranks may take one part in so many: steps need more at
times than they have between two.
"""
CGROUP = Path("/sys/fs/cgroup")
T = TypeVar("T")


@cache
def _threads() -> ThreadPoolExecutor:
    # One: a checkpoint is whole before the next one begins.
    return ThreadPoolExecutor(1, "checkpoint")


def beside(work: Callable[[], T]) -> Future[T]:
    """Do it in a thread of this process. The result raises what it raised."""
    return _threads().submit(work)


def done() -> Future[None]:
    """What has been done already."""
    future: Future[None] = Future()
    future.set_result(None)
    return future


def memory_allows(count_bytes: int, processes: int) -> bool:
    """Whether so many processes of this machine may each copy so many bytes."""
    return SPARE * count_bytes * processes <= free_bytes()


def free_bytes(cgroup: Path = CGROUP) -> int:
    """Memory that processes can still have, by what the machine and this container have."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        stats = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no container, or one without a limit, which says "max"
        return free
    # Pages of files that can be read again count as used there.
    return min(free, limit - used + int(stats.get("inactive_file", 0)))
