"""A training that goes on where a checkpoint left it: the driver's side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rayward.actors.checkpoints import Checkpoints
from rayward.actors.training.job import STOP, WRITE, CheckpointPlace
from rayward.actors.training.resume import METRICS, read_lines
from rayward.pipelines.run.signals import wishes
from rayward.pipelines.run.stage import Stage


class GoingOn:
    """What an earlier try of a training left: its last whole checkpoint, and the metrics up to
    it.

    `step`: the optimizer steps that are done; 0 where there is no checkpoint. `place`: for the
    workers.
    """

    def __init__(self, stage: Stage, folder_name: str, title: str, steps: int) -> None:
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        settings = stage.run.config.checkpoint
        folder = stage.checkpoints_of(folder_name or "model").resolve()
        latest, broken = Checkpoints(folder, settings.keep).latest()
        for line in broken:
            print(f"   {title}: a checkpoint is passed over: {line}", flush=True)
        if latest:
            self.step = latest.step
            self.rows = read_lines(latest.folder / METRICS)
            print(f"   {title}: goes on from step {latest.step} of {steps}", flush=True)
        # A wish that the try before was killed over is no wish of this one.
        (folder.parent / "asked").unlink(missing_ok=True)
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
        """Signals reach the workers as a file."""
        path = Path(self.place.asked)

        def ask(stop: bool) -> None:
            # Renamed, so that nobody reads half of it.
            half = path.with_suffix(".half")
            half.write_text(STOP if stop else WRITE, encoding="utf-8")
            half.replace(path)

        with wishes(ask):
            yield


def without_step(row: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics as the workers told it."""
    return {name: value for name, value in row.items() if name != "step"}
