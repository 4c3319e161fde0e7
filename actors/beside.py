"""Files that a thread writes beside the training, which goes on: whether memory allows a copy."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import TypeVar

import psutil

SPARE = 2
"""Of the memory that is free, copies of all ranks may take one part in so many: steps need more at
times than they have between two.
"""
Result = TypeVar("Result")


@cache
def _work() -> queue.SimpleQueue[Callable[[], None]]:
    """What the one thread of this process is still to do."""
    waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def run() -> None:
        while True:
            waiting.get()()

    # A daemon: a process that ends waits for no disk.
    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return waiting


def beside(work: Callable[[], Result]) -> Future[Result]:
    """Do it in the thread of this process, after what it was given before. The result raises what
    it raised.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    _work().put(run)
    return future


def done() -> Future[None]:
    """What has been done already."""
    future: Future[None] = Future()
    future.set_result(None)
    return future


def memory_allows(count_bytes: int, processes: int) -> bool:
    """Whether so many processes of this machine may each copy so many bytes."""
    return SPARE * count_bytes * processes <= free_bytes()


def free_bytes(root: Path = Path("/")) -> int:
    """Memory that this process can still have: of the machine, and of every control group that it
    is in (a container's, Slurm's, systemd's).
    """
    free = int(psutil.virtual_memory().available)
    return min([free, *_left_in_groups(root)])


# (limit, what is used, the line of memory.stat with pages of files that can be read again)
VERSION_2 = ("memory.max", "memory.current", "inactive_file")
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _left_in_groups(root: Path) -> Iterator[int]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = root / "sys/fs/cgroup" / controllers
        own = base / path.lstrip("/")
        # In a container the path may be that of the host, and its group is the root.
        for group in (own, *own.parents):
            left = _left_in(group, *(VERSION_1 if controllers else VERSION_2))
            if left is not None:
                yield left
            if group == base:
                break


def _left_in(group: Path, limit: str, used: str, again: str) -> int | None:
    try:
        whole, taken = (int((group / name).read_text()) for name in (limit, used))
        lines = (group / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # not there, or "max": without a limit
        return None
    return whole - taken + int(dict(line.split() for line in lines).get(again, 0))
