"""LLaMA-Factory's dataset_info.json: what the fields of a file beside it are called there.

{NAME: {"file_name", "columns"?: {"prompt": FIELD, ...}, "tags"?: {"role_tag": FIELD, ...}}, ...}.
Rows of a file that an entry names get the field names that its readers know; fields that the entry
does not name stay as they are. The file of the same name that `datasets` writes has no such entry.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rayward.data.formats.files.containers import RowSource
from rayward.data.formats.rows.turns import SPEAKERS

INFO = "dataset_info.json"
# Of "columns": the name that readers know. One that is not here has its own name.
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}
KEPT = "history messages system tools chosen rejected kto_tag images videos audios".split()
TURNS = ("messages", "chosen", "rejected")
# Of "tags": what a speaker with this tag is.
ROLES = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
TURN_NAMES = (("role", "content"), ("from", "value"))


@dataclass(frozen=True, slots=True)
class Names:
    """The names that readers know, by those of a file: of fields, of a turn's fields, of roles."""

    fields: Mapping[str, str]
    turn: Mapping[str, str]
    roles: Mapping[str, str]

    def row(self, value: Any) -> Any:
        """A row under the names that readers know."""
        if not isinstance(value, dict):
            return value
        known = {*self.fields.values()}
        renamed = {}
        for name, inner in value.items():
            # Another field that happens to have a name that is given away is none that is read.
            taken = name in known and name not in self.fields
            renamed[f"unnamed {name}" if taken else self.fields.get(name, name)] = inner
        if self.turn or self.roles:
            for name in {"conversations", *TURNS} & renamed.keys():
                renamed[name] = self._turns(renamed[name])
        return renamed

    def _turns(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [self._turns(entry) for entry in value]
        if not isinstance(value, dict):
            return value
        entry = {self.turn.get(name, name): inner for name, inner in value.items()}
        for name, _ in TURN_NAMES:
            if isinstance(entry.get(name), str):
                entry[name] = self.roles.get(entry[name], entry[name])
        return entry


def described(source: RowSource) -> RowSource:
    """The source under the names that readers know, where a dataset_info.json names its fields.

    It may lie beside the file or in the folder above. ValueError for one that is no JSON, or whose
    entries for the file differ.
    """
    file = Path(source.name)
    for path in infos_of(file):
        found = [names_of(entry) for entry in _entries(path, file)]
        if any(names != found[0] for names in found):
            raise ValueError(
                f"{path}: several entries give other names to the fields of {file.name}; leave "
                "one, or name the format"
            )
        if found:
            return _renamed(source, found[0])
    return source


def infos_of(file: Path) -> list[Path]:
    """The files that may say how the fields of a file are called, the nearest first."""
    if not file.is_file():
        return []
    paths = (folder / INFO for folder in (file.parent, file.parent.parent))
    return [path for path in paths if path.is_file()]


def _entries(path: Path, file: Path) -> Iterator[Mapping[str, Any]]:
    """The entries for a file."""
    try:
        info = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); mend it, or name the format") from None
    inside = file.relative_to(path.parent).as_posix()
    for entry in info.values() if isinstance(info, dict) else ():
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if isinstance(name, str) and (inside == name or inside.startswith(f"{name.rstrip('/')}/")):
            yield entry


def names_of(entry: Mapping[str, Any]) -> Names:
    """The names that an entry gives."""
    columns, tags = (_texts(entry.get(part)) for part in ("columns", "tags"))
    fields = {columns[column]: name for column, name in COLUMNS.items() if column in columns}
    fields |= {columns[name]: name for name in KEPT if name in columns}
    if columns.get("messages") == "conversations":
        fields["conversations"] = "conversations"
    turn = (tags.get("role_tag", "from"), tags.get("content_tag", "value"))
    named = {} if turn in TURN_NAMES else dict(zip(turn, TURN_NAMES[0], strict=True))
    roles = {tags[tag]: role for tag, role in ROLES.items() if tag in tags}
    roles = {name: role for name, role in roles.items() if SPEAKERS.get(name) != SPEAKERS[role]}
    return Names(fields, named, roles)


def _texts(value: object) -> dict[str, str]:
    items = value.items() if isinstance(value, dict) else ()
    return {name: text for name, text in items if isinstance(text, str)}


def _renamed(source: RowSource, names: Names) -> RowSource:
    back = {known: name for name, known in names.fields.items()}

    def original(columns: frozenset[str] | None) -> frozenset[str] | None:
        return columns and frozenset(back.get(name, name) for name in columns)

    def rows(columns: frozenset[str] | None = None) -> Iterator[tuple[int, Any]]:
        for line, value in source.rows(original(columns)):
            yield line, names.row(value)

    def unopened(columns: frozenset[str]) -> dict[str, int]:
        return source.unopened(original(columns) or frozenset())

    return replace(source, rows=rows, unopened=unopened, given_names=back)
