"""A file of finished work, so that a killed run loses what was under way and nothing else."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any


class Ledger:
    """What is done, by key: one JSON line each, synced; the first line holds the settings.

    ValueError: the file has other `settings`, another run is writing it, or a line is damaged. A
    last line without an end is what a kill left, and is taken away.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.file = path, path.open("a+b")
        self.places: dict[str, int] = {}  # where each key's line begins, in bytes
        try:
            # Held until the file is closed, and let go by the system where the process is killed.
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{path}: another run is writing it") from None
        self.file.seek(0)
        end = 0
        for number, line in enumerate(self.file, 1):
            if not line.endswith(b"\n"):
                break  # half a line, which `truncate` takes away
            try:
                row = json.loads(line)
            except ValueError:
                raise ValueError(f"{path}:{number}: damaged; delete this line to go on") from None
            # What other settings made must not be mixed into this run's output.
            if number == 1 and row != settings:
                raise ValueError(
                    f"{path} was begun with other settings: {_differences(row, settings)}. Give "
                    "those again to go on, or another --out, or delete it to start over"
                )
            if number > 1:
                self.places[row["key"]] = end
            end += len(line)
        self.file.truncate(end)
        if end == 0:
            self._append(settings)

    def _append(self, row: dict[str, Any]) -> int:
        place = self.file.seek(0, os.SEEK_END)
        self.file.write(json.dumps(row).encode() + b"\n")
        # To the disk, not to the system's memory alone: these replies were paid for.
        self.file.flush()
        os.fsync(self.file.fileno())
        return place

    def add(self, key: str, value: dict[str, Any]) -> None:
        """Keep `value`; it is on the disk when this returns."""
        self.places[key] = self._append({"key": key, **value})

    def get(self, key: str) -> dict[str, Any]:
        """What was kept under `key`."""
        self.file.seek(self.places[key])
        row: dict[str, Any] = json.loads(self.file.readline())
        return row


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The settings that differ, with both values."""
    names = [name for name in old | new if old.get(name) != new.get(name)]
    return "; ".join(f"{name} was {old.get(name)}, now {new.get(name)}" for name in names)
