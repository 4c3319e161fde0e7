"""A training that goes on where a checkpoint left it: the driver's side."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rayward.actors.checkpoints import Checkpoints
from rayward.actors.training.job import STOP, WRITE, CheckpointPlace
from rayward.actors.training.resume import METRICS, read_lines
from rayward.pipelines.run.stage import Stage

RESUMABLE = ("sft", "reward", "dpo")
"""Stages that do nothing but train."""


class GoingOn:
    """What an earlier try of a training left: its last whole checkpoint, and the metrics up to
    it.

    `step`: the optimizer steps that are done; 0 where there is no checkpoint. `place`: for the
    workers; None where the stage cannot go on.
    """

    def __init__(self, stage: Stage, folder_name: str, title: str, steps: int) -> None:
        self.place: CheckpointPlace | None = None
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        if stage.name not in RESUMABLE:
            return
        settings = stage.run.config.checkpoint
        folder = stage.checkpoints_of(folder_name or "model").resolve()
        latest, broken = Checkpoints(folder, settings.keep).latest()
        for line in broken:
            print(f"   {title}: a checkpoint is passed over: {line}", flush=True)
        if latest:
            self.step = latest.step
            self.rows = read_lines(latest.folder / METRICS)
            print(f"   {title}: goes on from step {latest.step} of {steps}", flush=True)
        self.place = CheckpointPlace(
            str(folder),
            str(latest.folder) if latest else None,
            str(folder.parent / "asked"),
            settings.every_steps,
            settings.every_minutes,
            settings.keep,
        )

    @contextmanager
    def asked(self) -> Iterator[None]:
        """SIGTERM asks the workers for a checkpoint and the end, SIGUSR1 for a checkpoint.

        A second SIGTERM ends at once.
        """
        # Python lets only the main thread set handlers.
        if self.place is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        path = Path(self.place.asked)

        def ask(number: int, _: FrameType | None) -> None:
            # Renamed, so that nobody reads half of it.
            half = path.with_suffix(".half")
            half.write_text(STOP if number == signal.SIGTERM else WRITE, encoding="utf-8")
            half.replace(path)
            if number == signal.SIGTERM:
                signal.signal(signal.SIGTERM, signal.default_int_handler)
                sys.stderr.write("rayward: SIGTERM: ends after the step, with a checkpoint\n")

        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGUSR1)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def without_step(row: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics as the workers told it."""
    return {name: value for name, value in row.items() if name != "step"}
