"""A training that goes on where a checkpoint left it: the driver's side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rayward.actors.checkpoints import Checkpoints
from rayward.actors.training.job import STOP, WRITE, CheckpointPlace, Job
from rayward.actors.training.resume import METRICS, PARTS, read_lines
from rayward.configs.last_bits import of_training
from rayward.pipelines.run.signals import wishes
from rayward.pipelines.run.stage import Stage
from rayward.pipelines.run.taking_up import take_up


class GoingOn:
    """What an earlier try of a training left: its last whole checkpoint, and the metrics up to
    it.

    `step`: the optimizer steps that are done; 0 where there is no checkpoint. `place`: for the
    workers.
    """

    def __init__(self, stage: Stage, folder_name: str, title: str, steps: int, job: Job) -> None:
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        settings = stage.run.config.checkpoint
        folder = stage.checkpoints_of(folder_name or "model").resolve()
        made = Checkpoints(folder, settings.keep)
        bits, where = {"": _last_bits(job)}, "from step {} of {}"
        taken_up = take_up(stage, title, made, PARTS, bits, where, steps)
        found = taken_up.found
        if found:
            self.step = found.step
            if "metrics" not in found.missing:
                self.rows = read_lines(found.folder / METRICS)
        # A wish that the try before was killed over is no wish of this one.
        (folder.parent / "asked").unlink(missing_ok=True)
        self.place = CheckpointPlace(
            str(folder),
            str(found.folder) if found else None,
            str(folder.parent / "asked"),
            settings.every_steps,
            settings.every_minutes,
            settings.keep,
            found.missing if found else frozenset(),
            taken_up.info,
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


def _last_bits(job: Job) -> dict[str, Any]:
    shared = job.preferences.shared_prompts if job.preferences else None
    return of_training(
        job.role, job.optimizer, job.dtype, packing=job.packing, shared_prompts=shared
    )
