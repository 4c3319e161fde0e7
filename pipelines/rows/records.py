"""The records that the prepare stage left, for the stages after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rayward.data.packing import epoch_order
from rayward.data.record_json import from_json
from rayward.pipelines.run.files import read_jsonl
from rayward.pipelines.run.folder import Run

R = TypeVar("R")


def load_records(path: Path) -> list[Any]:
    """Records of a file that the prepare stage wrote."""
    return [from_json(row) for row in read_jsonl(path)]


def stream(run: Run, name: str) -> Iterator[Any]:
    """The records of `prepared`, one after another."""
    return map(from_json, read_jsonl(run.folder / "prepare" / f"{name}.jsonl"))


def prepared(run: Run, name: str) -> list[Any]:
    """The records that the run's prepare stage left in `name`.jsonl."""
    return load_records(run.folder / "prepare" / f"{name}.jsonl")


def subset(records: Sequence[R], count: int, seed: int) -> list[R]:
    """At most `count` of the records, drawn by the seed, in the order of the file.

    Not the first ones: files are often sorted by kind.
    """
    return [records[row] for row in sorted(epoch_order(len(records), seed, 0)[:count])]
