"""How far a stage is: a bar on a terminal, and lines in a log, as in that of a job."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Protocol

from tqdm import tqdm

LINE_EVERY_S = 15


class Progress(Protocol):
    """A stage's steps as they are done."""

    def doing(self, activity: str) -> None:
        """Say what comes before the first step."""

    def step(self, figures: Mapping[str, str]) -> None:
        """Another step is done, with these figures to show."""

    def close(self) -> None:
        """The stage has ended, or stopped."""


def progress(title: str, total: int, unit: str, done: int = 0) -> Progress:
    """What fits standard error: a terminal or a log. `done`: steps of an earlier try."""
    kind = Bar if sys.stderr.isatty() else Lines
    return kind(title, total, unit, done)


class Bar:
    """A line of the terminal that is drawn again and again."""

    def __init__(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=f"{title:<9}",
            unit=unit,
            mininterval=0.3,
            ncols=110,
            bar_format=(
                "{desc} {percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} {rate_fmt} ETA "
                "{remaining}{postfix}"
            ),
        )

    def doing(self, activity: str) -> None:
        self.bar.set_postfix_str(activity)

    def step(self, figures: Mapping[str, str]) -> None:
        # refresh=False: `update` redraws the bar, at most once each `mininterval`.
        self.bar.set_postfix(figures, refresh=False)
        self.bar.update(1)

    def close(self) -> None:
        self.bar.close()


class Lines:
    """A line for the first step, then one each LINE_EVERY_S seconds, and one for the last."""

    def __init__(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = self.told = self.before = done
        self.figures: Mapping[str, str] = {}
        self.first_at = self.told_at = time.monotonic()

    def doing(self, activity: str) -> None:
        self._print(activity)

    def step(self, figures: Mapping[str, str]) -> None:
        self.done += 1
        self.figures = figures
        if (
            self.done == self.before + 1
        ):  # the start, which this one waited for, says nothing of the others
            self.first_at = time.monotonic()
        late = time.monotonic() - self.told_at >= LINE_EVERY_S
        if late or self.done in (self.before + 1, self.total):
            self._tell()

    def close(self) -> None:
        # Of a stage that stops half-way the log says how far it came.
        if self.told < self.done:
            self._tell()

    def _tell(self) -> None:
        self.told, self.told_at = self.done, time.monotonic()
        parts = [f"{self.done}/{self.total} {self.unit}"]
        if self.done > self.before + 1:
            rate = (self.done - self.before - 1) / max(self.told_at - self.first_at, 1e-9)
            left = tqdm.format_interval((self.total - self.done) / rate)
            parts += [f"{rate:.3g} {self.unit}/s", f"{left} left"]
        self._print(", ".join([*parts, *(f"{name}={text}" for name, text in self.figures.items())]))

    def _print(self, text: str) -> None:
        print(f"   {self.title.strip()}: {text}", file=sys.stderr, flush=True)
