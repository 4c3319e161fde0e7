"""What a stage shows while it works: metrics.jsonl, TensorBoard, its progress, and tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rayward.pipelines.run.progress import progress


class Metrics:
    """metrics.jsonl and TensorBoard events of a stage, and its progress: a bar, in a log lines.

    Everything that depends on the clock goes under "time", so two runs of the same seed differ
    nowhere else.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        total: int,
        unit: str,
        kept: Sequence[Mapping[str, Any]] = (),
    ):
        """`kept`: the lines of an earlier try that goes on; others that it wrote are gone."""
        # Brings in torch, which `table`, for commands without a run, does without.
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        # Cut back under another name, so that a reader never finds less than what is kept.
        shorter = path.with_name(".metrics.jsonl.writing")
        shorter.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        shorter.replace(path)
        self.file = path.open("a", encoding="utf-8")
        purge = {"purge_step": kept[-1]["step"] + 1} if kept else {}
        self.board = SummaryWriter(str(folder / "tensorboard"), **purge)
        self.progress = progress(title, total, unit, len(kept))

    def doing(self, activity: str) -> None:
        """Say what comes before the first step."""
        self.progress.doing(activity)

    def log(self, step: int, values: Mapping[str, Any], show: tuple[str, ...] = ()) -> None:
        """One line of metrics; `show` names those that are shown with it."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        # Whoever follows the file, and who reads it after a crash, has every step.
        self.file.flush()
        for name, value in flatten(values):
            if isinstance(value, int | float):
                self.board.add_scalar(name, value, step)
        self.progress.step(
            {name.split("/")[-1]: f"{values[name]:.3g}" for name in show if name in values}
        )

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.close()
        self.file.close()
        self.board.close()


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(a/b, value) of nested mappings."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def table(
    title: str,
    rows: Mapping[str, Any] | Sequence[tuple[Any, ...]],
    columns: tuple[str, ...] = (),
) -> None:
    """A short table on the terminal; without `columns` it has no header."""
    from rich import box
    from rich.table import Table

    from rayward.pipelines.run.terminal import Terminal

    grid = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_header=bool(columns),
    )
    lines = list(rows.items()) if isinstance(rows, Mapping) else rows
    for index in range(len(lines[0]) if lines else 0):
        justify: Literal["left", "right"] = "left" if index == 0 else "right"
        grid.add_column(columns[index] if columns else "", justify=justify)
    for line in lines:
        grid.add_row(*(f"{item:.4g}" if isinstance(item, float) else str(item) for item in line))
    # Not on a terminal rich would take 80 columns, and break the lines of a log.
    Terminal(width=110 if not sys.stdout.isatty() else None).print(grid)
