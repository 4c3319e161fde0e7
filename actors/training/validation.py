"""Looks at held-out rows while a model trains, and which of its states is kept: the last, or the
best of those.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from rayward.actors.training.job import Job


class Validation:
    """Held-out `figure` of the model every so many steps and after the last; with 0 never, or only
    `at_end`.

    `higher` is better, or lower. `steps`: of the whole training.

    `measure` gives it, the same on every rank; `write` leaves the model as it is in its folder, and
    what it returns is told of the state that is kept. All ranks must call the same methods at the
    same steps.
    """

    def __init__(
        self,
        figure: str,
        higher: bool,
        job: Job,
        steps: int,
        measure: Callable[[], float],
        write: Callable[[], Any],
        at_end: bool = False,
    ):
        self.figure, self.every, self.best_only = figure, job.validate_every, job.keep == "best"
        self.last = steps
        self.at_end = at_end or bool(job.validate_every)
        self.sign = 1.0 if higher else -1.0
        self.measure, self.write = measure, write
        self.value, self.at = math.nan, -1
        self.kept, self.kept_step, self.written = -math.inf, 0, None

    def after(self, step: int) -> dict[str, float]:
        """Figures of a step, where it is time to look."""
        if not self.every or (step % self.every and step != self.last):
            return {}
        return {self.figure: self._look(step)}

    def end(self, step: int) -> dict[str, Any]:
        """The figure of the state that is kept, and the step that it is of; the model lies in its
        folder.
        """
        if self.at != step and self.at_end:
            self._look(step)
        if not self.best_only or self.written is None:
            self.written, self.kept, self.kept_step = [self.write()], self.sign * self.value, step
        return {self.figure: self.sign * self.kept, "kept_step": self.kept_step}

    @property
    def told(self) -> Any:
        """What `write` returned of the state that is kept."""
        return None if self.written is None else self.written[0]

    def _look(self, step: int) -> float:
        self.value, self.at = self.measure(), step
        if self.best_only and self.sign * self.value > self.kept:
            self.kept, self.kept_step, self.written = self.sign * self.value, step, [self.write()]
        return self.value
