"""JSON and JSON Lines files of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder: a rename is atomic within one file system only. The name ends otherwise
    # than in .json, so what a killed process leaves is taken for no file of the run. It has the
    # number of the process: two that write one report do not write into each other's file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        # The contents reach the disk before the name does. Otherwise a power cut could leave an
        # empty manifest, and a manifest that exists means that its stage is done.
        os.fsync(file.fileno())
    temporary.replace(path)


def sweep(folder: Path, below: bool = False) -> None:
    """Remove what killed processes left half written in a folder, and in those below it. Nobody may
    be writing there.
    """
    for path in (folder.rglob if below else folder.glob)(".*.writing"):
        path.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line. Not atomic: inside a stage's folder the manifest vouches for it."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file that `write_jsonl` made."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
