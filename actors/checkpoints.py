"""Checkpoints that tell the truth: a folder is one only when every file in it is whole.

Written under another name, each file flushed to the disk, with a manifest of hashes last, and then
renamed. The one before stays until the new one has been read back. A full disk, a lost mount or a
torn file costs that checkpoint and no more.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rayward.actors.pulse import tick

MANIFEST = "manifest.json"
WRITING = ".writing-"
CHUNK_BYTES = 64 * 2**20
WORTH_S = 60
"""Seconds of training since the last one that are worth one at its end."""


@dataclass(frozen=True)
class Checkpoint:
    """One to go on from. `step`: optimizer steps (or iterations) done; `info`: what its writer
    said; `parts`: what is in it; `missing`: which parts begin anew.
    """

    folder: Path
    step: int
    info: Mapping[str, Any]
    parts: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()


class MissingPartError(ValueError):
    """No checkpoint has all that is expected, whole; the last that can be read lacks `parts`."""

    def __init__(self, folder: Path, step: int, parts: Collection[str]) -> None:
        self.folder, self.step, self.parts = folder, step, sorted(parts)
        super().__init__(f"{folder} lacks {', '.join(self.parts)}")


def part_of(file: str) -> str:
    """The part that a file is of: its path without suffix and number of the rank."""
    return re.sub(r"(-\d+)?\.\w+$", "", file)


class Checkpoints:
    """Those of one training, in a folder of their own; `keep`: how many of the last ones stay."""

    def __init__(self, folder: str | Path, keep: int = 1) -> None:
        self.folder, self.keep = Path(folder), keep

    def new(self, step: int) -> Path:
        """An empty folder to write into, which is no checkpoint yet. One process calls it.

        What a try before it left goes: on a disk that was full it takes the room.
        """
        place = self.writing(step)
        self._sweep()
        place.mkdir(parents=True)
        return place

    def writing(self, step: int) -> Path:
        """Where `new` made it."""
        return self.folder / f"{WRITING}{step:08d}"

    def complete(
        self, step: int, info: Mapping[str, Any], part_of: Callable[[str], str] = part_of
    ) -> Checkpoint:
        """Make what was written since `new` a checkpoint, and remove those that are too old.
        `part_of`: the part that a file belongs to, by its path.

        One process calls it, when all have written. Raises OSError or ValueError where it does not
        read back as it was written; then the ones before are still there.
        """
        place = self.writing(step)
        files = {}
        for path in sorted(place.rglob("*")):
            if path.is_file():
                _flush(path)
                name = str(path.relative_to(place))
                files[name] = {
                    "part": part_of(name),
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
        done, lost = _read(target)
        if lost:
            raise ValueError(next(iter(lost.values())))
        # Later ones were passed over, and their steps are done again.
        later = [one for one in self._all() if one.name > target.name]
        before = [one for one in self._all() if one.name < target.name]
        for old in [*later, *before[: max(0, len(before) + 1 - self.keep)]]:
            shutil.rmtree(old, ignore_errors=True)
        return done

    def latest(
        self, expected: Collection[str] = (), anew: Collection[str] = ()
    ) -> tuple[Checkpoint | None, list[str]]:
        """The last one that has all `expected` parts, and each of its files whole, but for parts
        that may begin `anew`; and why those after it are passed over.

        What was half written is removed. Raises MissingPartError where there is none, although one
        can be read: what it lacks may be found again, or done without.
        """
        self._sweep()
        broken: list[str] = []
        partial: MissingPartError | None = None
        for folder in reversed(self._all()):
            try:
                found, lost = _read(folder)
            except (OSError, ValueError, KeyError) as error:
                broken.append(f"{folder}: {error}")
                continue
            absent = set(expected) - found.parts
            missing = lost.keys() | absent
            if missing <= set(anew):
                return replace(found, missing=frozenset(missing)), broken
            reasons = [*lost.values(), *(f"it has no {part}" for part in sorted(absent))]
            broken.append(f"{folder}: {reasons[0]}")
            if not partial:
                partial = MissingPartError(folder, found.step, missing - set(anew))
        if partial:
            raise partial
        return None, broken

    def _sweep(self) -> None:
        for half in self.folder.glob(f"{WRITING}*"):
            shutil.rmtree(half, ignore_errors=True)

    def drop(self) -> None:
        """Remove all of them: what they were for is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def _read(folder: Path) -> tuple[Checkpoint, dict[str, str]]:
    """One as it is, and why parts of it are lost.

    Raises OSError, ValueError or KeyError where its manifest cannot be read.
    """
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    lost: dict[str, str] = {}
    parts = set()
    for name, known in manifest["files"].items():
        # Of an earlier version no part is known, so all are found missing.
        if part := known.get("part"):
            parts.add(part)
        path, reason = folder / name, ""
        if not path.is_file():
            reason = f"{name} is missing"
        elif (size := path.stat().st_size) != known["bytes"]:
            reason = f"{name} has {size} bytes, not {known['bytes']}"
        elif _hash(path) != known["sha256"]:
            reason = f"{name} has other contents than were written"
        if reason:
            lost.setdefault(part or name, reason)
    done = Checkpoint(folder, int(manifest["step"]), manifest["info"], parts=frozenset(parts))
    return done, lost


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            tick()
    return digest.hexdigest()


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
