"""A training that goes on where a checkpoint left it: the workers' side.

What is restored is all that decides the numbers: weights, optimizer, count of steps, random numbers
(state.py), which state is kept (validation.py), and what was computed before the first step. The
rows of a step follow from its number and the seed. Ranks and ZeRO stage may be others than those of
the checkpoint: then the numbers are the same but for the rounding of sums over ranks.
"""

from __future__ import annotations

import json
import pickle
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from rayward.actors.checkpoints import WORTH_S, Checkpoints, part_of
from rayward.actors.models.forward import RankContext
from rayward.actors.training.engine import TrainEngine
from rayward.actors.training.job import STOP, Job
from rayward.actors.training.validation import Validation
from rayward.actors.training.worker import Reporter, add_over_ranks
from rayward.actors.training.writing import Writing

KNOWN, METRICS, BEST, VALIDATION = "baseline.npz", "metrics.jsonl", "best", "validation"
PARTS = ("weights", "optimizer", "random", "baseline", "validation", "metrics")
"""What a checkpoint of a training has. `baseline`: what was computed before the first step."""
Step = TypeVar("Step")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Metrics, a line of JSON each step."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The metrics of a checkpoint."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _part_of(file: str) -> str:
    # The best state so far is of no use without its figure, nor that without it.
    return VALIDATION if file.startswith(f"{BEST}/") else part_of(file)


def _count(found: Path) -> int:
    """Of the ranks that wrote a checkpoint."""
    return len(list(found.glob(f"{VALIDATION}-*.pkl")))


def _wish(path: Path) -> str:
    """What the driver asks for; each wish is granted once."""
    try:
        wish = path.read_text(encoding="utf-8")
        path.unlink()
    except FileNotFoundError:
        return ""
    return wish


class Resume:
    """The checkpoints of a training. Every rank must call the same methods at the same steps."""

    def __init__(self, job: Job, context: RankContext, engine: TrainEngine) -> None:
        self.job, self.rank, self.engine = job, context.rank, engine
        self.ranks = context.world_size
        self.reporter = Reporter(job, context)
        place = job.checkpoints
        self.made = Checkpoints(place.folder, place.keep) if place else None
        self.found = Path(place.found) if place and place.found else None
        self.anew = place.anew if place else frozenset()
        # Computed once in a training, and the same on every rank.
        self._known: dict[str, np.ndarray] = {}
        if self.found and "baseline" not in self.anew:
            with np.load(self.found / KNOWN) as arrays:
                self._known = dict(arrays)
        self._written_at, self._written_step = time.monotonic(), 0
        self._writing: Writing | None = None

    def known(self, name: str, compute: Callable[[], Any]) -> np.ndarray:
        """What `compute` gives of the model before its first step; it is not called again where a
        checkpoint has it.
        """
        if name not in self._known:
            self._known[name] = np.asarray(compute())
        return self._known[name]

    def load(self, validation: Validation) -> None:
        """Go on from the checkpoint, if there is one; what was `known` must be computed before."""
        if self.found:
            self.engine.load_state(self.found, self.anew)
            if "metrics" not in self.anew:
                self.reporter.history = read_lines(self.found / METRICS)
            if VALIDATION not in self.anew:
                self._load_validation(self.found, validation)
            torch.distributed.barrier()
        self._written_at, self._written_step = time.monotonic(), self.engine.steps_done

    def _load_validation(self, found: Path, validation: Validation) -> None:
        paths = [found / f"{VALIDATION}-{rank}.pkl" for rank in range(_count(found))]
        states = [pickle.loads(path.read_bytes()) for path in paths]
        validation.restore(states, self.rank, self.ranks)
        if self.rank == 0 and (found / BEST).is_dir():
            # A later step of the try before may have left a better one there, which on a GPU
            # need not come again.
            shutil.rmtree(self.job.output, ignore_errors=True)
            shutil.copytree(found / BEST, self.job.output)

    def left(self, steps: Iterable[Step]) -> Iterator[Step]:
        """Of all steps of the training those that are still to do."""
        return islice(steps, self.engine.steps_done, None)

    def after(self, validation: Validation) -> bool:
        """Write a checkpoint where it is time for one; whether the training is to end here.

        A collective.
        """
        place = self.job.checkpoints
        if place is None:
            return False
        step = self.engine.steps_done
        # One rank looks at the clock and the disk, so that all do the same.
        asked = torch.zeros(2, dtype=torch.float64)
        if self.rank == 0:
            wish = _wish(Path(place.asked))
            minutes = (time.monotonic() - self._written_at) / 60
            by_steps = place.every_steps and step - self._written_step >= place.every_steps
            by_time = place.every_minutes and minutes >= place.every_minutes
            write = bool(wish or by_steps or by_time)
            asked = torch.tensor([write, wish == STOP], dtype=torch.float64)
        write, stop_here = (bool(value) for value in add_over_ranks(asked).tolist())
        self._go_on()
        if write:
            self.write(validation)
        if stop_here:
            self._go_on(wait=True)
        return stop_here

    def end(self, validation: Validation) -> None:
        """After the last step: a checkpoint, where the training since the last one is worth it.

        The result is written next, and may fail; or another model is trained, and fails.
        """
        worth = torch.zeros(1, dtype=torch.float64)
        if self.rank == 0:
            worth += time.monotonic() - self._written_at > WORTH_S
        if self.made and bool(add_over_ranks(worth)):
            self.write(validation)
        self._go_on(wait=True)

    def write(self, validation: Validation) -> None:
        """Begin to write a checkpoint of this step, or tell why there is none. A collective."""
        if self.made is None or self._written_step == self.engine.steps_done:
            return
        self._go_on(wait=True)
        # Whoever reads the checkpoint has the metrics of all steps up to it.
        self.reporter.flush()
        step = self.engine.steps_done
        writing = Writing(step, self.rank, self.ranks, self.made.writing(step))
        # Ranks agree after each part: none may wait in the next for one that has failed.
        for part in (
            lambda: self._open(step),
            lambda: self._begin_own(writing, validation),
        ):
            if reason := self._failed(part):
                self._failed(writing.close)
                self.reporter.tell({"checkpoint": {"step": step, "failed": reason}})
                break
        else:
            self._writing = writing
        self._written_at, self._written_step = time.monotonic(), step

    def _go_on(self, wait: bool = False) -> None:
        """Tell of the checkpoint that is written beside the training when it is whole, or cannot
        be; with `wait`, stay until then. A collective.
        """
        writing = self._writing
        if writing is None or not writing.ended(wait):
            return
        told: dict[str, Any] = {"step": writing.step}
        if reason := self._failed(writing.close):
            told["failed"] = reason
        else:
            told["seconds"] = writing.ended_at - writing.began_at
            told["waited"] = writing.waited_s
        self.reporter.tell({"checkpoint": told})
        self._writing = None

    def _open(self, step: int) -> None:
        if self.rank == 0 and self.made:
            self.made.new(step)

    def _begin_own(self, writing: Writing, validation: Validation) -> None:
        # All but this is small, or on the disk, where later steps may change it.
        writing.part = self.engine.save_state(writing.folder, copies=1)
        with (writing.folder / f"{VALIDATION}-{self.rank}.pkl").open("wb") as file:
            pickle.dump(validation.state(), file)
        if self.rank == 0:
            np.savez(writing.folder / KNOWN, allow_pickle=False, **self._known)
            write_lines(writing.folder / METRICS, self.reporter.history)
            if self.job.keep == "best" and validation.written is not None:
                shutil.copytree(self.job.output, writing.folder / BEST)
        writing.begin(partial(self._complete, writing.step))

    def _complete(self, step: int) -> None:
        assert self.made and self.job.checkpoints
        self.made.complete(step, self.job.checkpoints.info, _part_of)

    def _failed(self, part: Callable[[], None]) -> str:
        """Why a part of a checkpoint could not be written by some rank; "" where all have. A
        collective.
        """
        reason = ""
        try:
            part()
        except (OSError, ValueError) as error:
            reason = str(error)
        failed = add_over_ranks(torch.tensor([float(bool(reason))], dtype=torch.float64))
        return (reason or "another rank could not write") if bool(failed) else ""
