"""A checkpoint in the making, beside the training: by a thread of every rank.

Rank 0's thread makes it a checkpoint as soon as all ranks have written their parts, whatever step
the training is in. They tell it by a file, for they share a folder, and a collective would have to
wait for a step to end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future
from pathlib import Path

import torch

from rayward.actors.beside import beside, done
from rayward.actors.training.worker import add_over_ranks

WRITTEN = ".written-"
LOOK_S, AGREE_S = 0.05, 1.0
"""Seconds between two looks for others' files, and after which ranks that wait agree."""


class Writing:
    """One that began at `began_at`; `waited_s`: what training has waited for it. Every rank must
    call the same methods in the same order.
    """

    def __init__(self, step: int, rank: int, ranks: int, folder: Path) -> None:
        """`folder`: where it is written."""
        self.step, self.rank, self.ranks, self.folder = step, rank, ranks, folder
        self.began_at, self.ended_at = time.monotonic(), 0.0
        self.waited_s = 0.0
        self.part: Future[None] = done()
        """This rank's large files, which its thread writes."""
        self._whole: Future[None] | None = None
        self._given_up = False

    def begin(self, complete: Callable[[], object]) -> None:
        """All but `part` is there. `complete`: what makes a checkpoint of all, on rank 0."""
        self._whole = beside(lambda: self._finish(complete))
        self.waited_s = time.monotonic() - self.began_at

    def _finish(self, complete: Callable[[], object]) -> None:
        self.part.result()  # written by the same thread, before this
        if self.ranks > 1:
            (self.folder / f"{WRITTEN}{self.rank}").touch()
        if self.rank == 0 and self._all_have_written():
            complete()
        self.ended_at = time.monotonic()

    def _all_have_written(self) -> bool:
        if self.ranks == 1:
            return True
        marks = [self.folder / f"{WRITTEN}{rank}" for rank in range(self.ranks)]
        while not all(mark.exists() for mark in marks):
            if self._given_up:
                return False
            time.sleep(LOOK_S)
        for mark in marks:
            mark.unlink()
        return True

    def ended(self, wait: bool) -> bool:
        """Whether it is whole, or some rank could not write; with `wait`, after staying for that. A
        collective.
        """
        assert self._whole
        began_at, ends = time.monotonic(), False
        while not ends:
            if wait:
                futures.wait([self._whole], AGREE_S)
            at_work = not self._whole.done()
            failed = not at_work and self._whole.exception() is not None
            states = torch.tensor([float(at_work), float(failed)], dtype=torch.float64)
            many, failures = add_over_ranks(states).tolist()
            ends = not many or bool(failures)
            if not wait:
                break
        self.waited_s += time.monotonic() - began_at
        return ends

    def close(self) -> None:
        """After its end, or after a rank could not begin: no thread is at it any more. Raises what
        this rank's thread raised.
        """
        self._given_up = True
        last = self._whole or self.part
        futures.wait([self.part, last])
        last.result()
