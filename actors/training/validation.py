"""Measures of held-out rows while a model trains, and which state of it is kept: last or best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rayward.actors.training.job import Job
from rayward.data.ragged import Ragged, Shard

STATE = ("value", "measured_at", "kept_value", "kept_step", "written")


class Validation:
    """Held-out `metric` of the model every so many steps and after the last.

    With `validate_every` 0 it is not measured, or only at the end (`at_end`). `steps`: of the whole
    training. `measure` gives the metric, the same on every rank; `write` leaves the model as it is
    in its folder, and what it returned of the state that is kept is `result`. All ranks must call
    the same methods at the same steps: both functions hold collectives.
    """

    def __init__(
        self,
        metric: str,
        higher_is_better: bool,
        job: Job,
        steps: int,
        measure: Callable[[], float],
        write: Callable[[], Any],
        at_end: bool = False,
    ):
        self.metric, self.every, self.best_only = metric, job.validate_every, job.keep == "best"
        self.last_step = steps
        self.at_end = at_end or bool(job.validate_every)
        self.sign = 1.0 if higher_is_better else -1.0
        self.measure, self.write = measure, write
        self.value, self.measured_at = math.nan, -1
        # `kept_value` is signed: more is better.
        self.kept_value, self.kept_step = -math.inf, 0
        # In a list, since None is a result too, and no list says that nothing is written yet.
        self.written: list[Any] | None = None

    def after(self, step: int) -> dict[str, float]:
        """The metric after an optimizer step, where it is time to measure it."""
        if not self.every or (step % self.every and step != self.last_step):
            return {}
        return {self.metric: self._measure(step)}

    def end(self, step: int) -> dict[str, Any]:
        """The metric of the state that is kept, and its step; the model lies in its folder."""
        if self.measured_at != step and self.at_end:
            self._measure(step)
        # Also the best of none: where every value was NaN, the last state is kept.
        if not self.best_only or self.written is None:
            self.written = [self.write()]
            self.kept_value, self.kept_step = self.sign * self.value, step
        return {self.metric: self.sign * self.kept_value, "kept_step": self.kept_step}

    def state(self) -> dict[str, Any]:
        """What `restore` goes on from; this rank's."""
        return {name: getattr(self, name) for name in STATE}

    def restore(self, states: Sequence[Mapping[str, Any]], rank: int, ranks: int) -> None:
        """Go on from the `state` of each rank at the same step, of which there may be other
        `ranks` now.
        """
        for name in STATE:
            setattr(self, name, states[0][name])
        if self.written and isinstance(self.written[0], Shard):
            # All parts are somebody's, or results of rows would be lost.
            parts = [state["written"][0] for state in states[rank::ranks]]
            self.written = [_joined(parts) if parts else _joined([states[0]["written"][0]], 0)]

    @property
    def result(self) -> Any:
        """What `write` returned of the state that is kept."""
        return None if self.written is None else self.written[0]

    def _measure(self, step: int) -> float:
        self.value, self.measured_at = self.measure(), step
        # Written at once: there is no copy of the weights to come back to.
        if self.best_only and self.sign * self.value > self.kept_value:
            self.kept_value, self.kept_step = self.sign * self.value, step
            self.written = [self.write()]
        return self.value


def _joined(parts: Sequence[Shard], rows: int | None = None) -> Shard:
    """Results of several ranks as those of one; only the first `rows`, where given."""
    values = np.concatenate([part.values.values for part in parts])
    lengths = np.concatenate([part.values.lengths for part in parts])[:rows]
    return Shard(
        np.concatenate([part.rows for part in parts])[:rows],
        Ragged(values[: lengths.sum()], lengths),
    )
