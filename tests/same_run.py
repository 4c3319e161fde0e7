"""Are two runs of one config the same to the last bit? On the CPU in fp32 they have to be.

    python -m tests.same_run BEFORE AFTER

prints every file and figure that differs and ends with status 1 where one does. Compared are all
files of the two run folders: JSON and JSON lines figure by figure, all else byte by byte. What may
differ stands in two tables below, and nothing else may.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RENAMED: dict[str, str] = {}
"""Names of figures that changed between the two versions: the old one and the new one."""

MAY_DIFFER = (
    r"(.*_)?seconds(_.*)?|.*_s|.*_per_s|time|idle_s|overhead_share|peak_share",  # clocks
    r"memory_bytes|peak_memory_bytes|.*_gib|machine|host|cores",  # the machine
    r"url|port|versions|version|run|folder|address",  # where it runs, with what
)
"""Keys of figures that a clock, the machine or a free port decides, at whatever depth."""

NOT_COMPARED = (
    r".*/tensorboard/.*",  # times of events
    r".*/ray/.*",  # what Ray Train leaves
    r"(.*/)?(spans\.jsonl|trace\.json)",  # clocks
    r"report\.html|curves\.png",  # pictures, and seconds in tables
)
"""Files that hold nothing but such figures, or show those of other files."""


def differences(before: Path, after: Path) -> Iterator[str]:
    """A line for each file that only one run has, and for each figure or byte that differs."""
    files = [set(_files(folder)) for folder in (before, after)]
    for name in sorted(files[0] ^ files[1]):
        yield f"{name}: only in {before if name in files[0] else after}"
    for name in sorted(files[0] & files[1]):
        old, new = before / name, after / name
        if name.endswith((".json", ".jsonl")):
            yield from _values(name, _parsed(old), _parsed(new))
        elif old.read_bytes() != new.read_bytes():
            yield f"{name}: other bytes"


def _files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(re.fullmatch(pattern, name) for pattern in NOT_COMPARED):
            yield name


def _parsed(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text)


def _values(where: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        old = {RENAMED.get(key, key): value for key, value in old.items()}
        for key in sorted(old.keys() | new.keys()):
            if any(re.fullmatch(pattern, key) for pattern in MAY_DIFFER):
                continue
            if key in old and key in new:
                yield from _values(f"{where} {key}", old[key], new[key])
            else:
                yield f"{where} {key}: only {'before' if key in old else 'after'}"
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            yield f"{where}: {len(old)} before, {len(new)} after"
        for index, (one, other) in enumerate(zip(old, new, strict=False)):
            yield from _values(f"{where} {index}", one, other)
    elif type(old) is not type(new) or old != new:
        yield f"{where}: {old!r} before, {new!r} after"


def main(before: Path, after: Path) -> int:
    """Print the differences; 0 where there is none."""
    lines = list(differences(before, after))
    print("\n".join(lines) or f"the same to the last bit: {len(set(_files(after)))} files")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
