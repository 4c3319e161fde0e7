"""Checkpoints that tell the truth: a folder is one only when every file in it is whole.

Written under another name, each file flushed to the disk, with a manifest of hashes last, and then
renamed. The one before stays until the new one has been read back. A full disk, a lost mount or a
torn file costs that checkpoint and no more.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
WRITING = ".writing-"
WORTH_S = 60
"""Seconds of training since the last one that are worth one at its end."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole one. `step`: optimizer steps (or iterations) done; `info`: what its writer said."""

    folder: Path
    step: int
    info: Mapping[str, Any]


class Checkpoints:
    """Those of one training, in a folder of their own; `keep`: how many of the last ones stay."""

    def __init__(self, folder: str | Path, keep: int = 1) -> None:
        self.folder, self.keep = Path(folder), keep

    def new(self, step: int) -> Path:
        """An empty folder to write into, which is no checkpoint yet. One process calls it."""
        place = self.writing(step)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        return place

    def writing(self, step: int) -> Path:
        """Where `new` made it."""
        return self.folder / f"{WRITING}{step:08d}"

    def complete(self, step: int, info: Mapping[str, Any]) -> Checkpoint:
        """Make what was written since `new` a checkpoint, and remove those that are too old.

        One process calls it, when all have written. Raises OSError or ValueError where it does not
        read back as it was written; then the ones before are still there.
        """
        place = self.writing(step)
        files = {}
        for path in sorted(place.rglob("*")):
            if path.is_file():
                _flush(path)
                files[str(path.relative_to(place))] = {
                    "bytes": path.stat().st_size,
                    "sha256": _hash(path),
                }
        manifest = place / MANIFEST
        manifest.write_text(
            json.dumps({"step": step, "info": dict(info), "files": files}, indent=1)
        )
        _flush(manifest)
        _flush(place)
        target = self.folder / f"step-{step:08d}"
        # Of an earlier try that went on from further back: this one is of the same step.
        shutil.rmtree(target, ignore_errors=True)
        place.rename(target)
        _flush(self.folder)
        done = _read(target)
        for old in self._all()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return done

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The last whole one, and why those after it are none. What was half written is removed."""
        for half in self.folder.glob(f"{WRITING}*"):
            shutil.rmtree(half, ignore_errors=True)
        broken: list[str] = []
        for folder in reversed(self._all()):
            try:
                return _read(folder), broken
            except (OSError, ValueError) as error:
                broken.append(f"{folder}: {error}")
        return None, broken

    def drop(self) -> None:
        """Remove all of them: what they were for is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def _read(folder: Path) -> Checkpoint:
    """Raises OSError or ValueError where a file is missing, or is not what was written."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for name, known in manifest["files"].items():
        path = folder / name
        if (size := path.stat().st_size) != known["bytes"]:
            raise ValueError(f"{name} has {size} bytes, not {known['bytes']}")
        if _hash(path) != known["sha256"]:
            raise ValueError(f"{name} has other contents than were written")
    return Checkpoint(folder, int(manifest["step"]), manifest["info"])


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """To the disk: a name that outlives a power cut must not be of an empty file."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError:
        # Some file systems cannot flush a folder.
        if not path.is_dir():
            raise
    finally:
        with suppress(OSError):
            os.close(opened)
