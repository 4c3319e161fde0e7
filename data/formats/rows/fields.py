"""The fields of a row: which its reader uses, which are left, and which the user has ignored.

A format declares what its reader uses as dotted paths, "conversations.from". Lists have no part in
a path: it holds for each of their items, unless some are named by their places, as `[0]`, where a
user maps fields. A path without longer ones below it stands for all that
is in the field; "*" for every object among the fields, and EVERYTHING for whatever there is.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rayward.data.formats.rows.meaning import (
    CALLS,
    HISTORY,
    MEANING_OF,
    MEDIA,
    NAMES,
    REASONING,
    TOOLS,
    VERDICT,
    WEIGHTS,
)
from rayward.data.formats.rows.message_parts import RESULT, is_result
from rayward.data.records import RowError, describe

Tree: TypeAlias = "dict[str, Tree]"
"""The next names below a field; none, if it is read whole."""

EVERYTHING = "**"
TURN = (
    *("role", "content", "from", "value"),
    *WEIGHTS,
    *NAMES[CALLS].split(),
    *NAMES[REASONING].split(),
)
"""Fields of a turn, as `messages_of` reads them; of a tool's result also RESULT."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a user asks of a reader.

    `ignore`: fields to do without, by their names or dotted paths. `imitate_good`: good answers of
    labelled rows as conversations; bad ones are set aside. `fields` and `roles`: where what is
    wanted stands in rows of no known format, see data/formats/mapped.py. `words_only`: what is said
    is wanted and no more, see data/formats/words.py.

    `met`: those of `ignore` that rows have, as far as they were read.
    """

    ignore: frozenset[str] = frozenset()
    imitate_good: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    words_only: bool = False
    met: set[str] = field(default_factory=set, compare=False, repr=False)


def paths(reads: str) -> frozenset[str]:
    """The paths of a declaration, which are separated by spaces; "@name": turns, or one turn."""
    found: set[str] = set()
    for path in reads.split():
        name = path.removeprefix("@")
        found |= {path} if name == path else {f"{name}.{field}" for field in TURN}
    return frozenset(found)


def tree(reads: Iterable[str]) -> Tree:
    """The paths of a declaration by their names."""
    root: Tree = {}
    for path in reads:
        node = root
        for name in path.split("."):
            node = node.setdefault(name, {})
    return root


def columns(root: Tree) -> frozenset[str] | None:
    """The names of the columns that a format's rows are made of; None for all that there are."""
    if EVERYTHING in root or "*" in root:
        return None
    return frozenset({*root, *MEANING_OF})


def is_empty(value: object) -> bool:
    """Whether a value says nothing: null, NaN, "", an empty list or object, or of those alone."""
    if value is None:
        return True
    if isinstance(value, str):
        return not value
    if isinstance(value, float):
        return value != value
    if isinstance(value, list | tuple):
        return all(map(is_empty, value))
    return isinstance(value, dict) and all(map(is_empty, value.values()))


def says_nothing(name: str, value: object) -> bool:
    """`is_empty`, also for JSON text of no tools, turns or images in a field of that name.

    As an answer such text is one.
    """
    listed = MEANING_OF.get(name) in (TOOLS, CALLS, HISTORY, MEDIA)
    return is_empty(value) or (listed and value in ("[]", "{}", "null"))


def left(value: object, node: Tree, path: str = "", where: str = "") -> Iterator[tuple]:
    """(place, path, name, value) of every field that no reader uses and that says something.

    `place` has the numbers of list items, `path` has not.
    """
    if isinstance(value, list | tuple):
        if by_place := _places(node, len(value)):
            for index, item in enumerate(value):
                place, full = f"{where}[{index}]", f"{path}[{index}]"
                if (below := by_place.get(index)) is not None:
                    yield from left(item, below, path, place) if below else ()
                elif not is_empty(item):
                    yield place, full, full, item
            return
        flat = not any(node.values())
        for index, item in enumerate(value):
            # Turns, mostly, whose fields are all read: told at once, since every turn comes here.
            if not (flat and isinstance(item, dict) and item.keys() <= node.keys()):
                yield from left(item, node, path, f"{where}[{index}]")
        return
    if not isinstance(value, dict) or EVERYTHING in node:
        return
    dot = "." if path else ""
    for name, inner in value.items():
        below = _below(node, name, inner)
        # Replies to replies, at whatever depth, are one path: a tree's node is its own child there.
        full = path if below is node else f"{path}{dot}{name}"
        if below is None:
            read = name in RESULT and is_result(value)
            if not read and not says_nothing(name, inner):
                yield f"{where}{dot}{name}", full, name, inner
        elif below:
            yield from left(inner, below, full, f"{where}{dot}{name}")


def _places(node: Tree, length: int) -> dict[int, Tree]:
    """What is read of which items, where a list is read by places, "[0]"; {} of one read whole."""
    if not node or not all(name.startswith("[") for name in node):
        return {}
    places: dict[int, Tree] = {}
    for name, below in node.items():
        number = int(name[1:-1])
        index = number + length if number < 0 else number
        places[index] = places.get(index, {}) | below
    return places


def _below(node: Tree, name: str, value: object) -> Tree | None:
    """What is read below a field; None if the field is not read."""
    if (below := node.get(name)) is not None:
        return below
    return node.get("*") if isinstance(value, dict) else None


def without_fields(
    value: Any,
    node: Tree,
    ignore: frozenset[str],
    gone: set[str],
    path: str = "",
    met: set[str] | None = None,
) -> Any:
    """`value` without the fields that the user ignores; those that said something are in `gone`,
    and all that are there in `met`.

    A verdict stays, whatever the user says: without it, a bad answer would be one to imitate.
    """
    if isinstance(value, list | tuple):
        by_place = _places(node, len(value))
        return [
            without_fields(
                item, by_place.get(index, {}) if by_place else node, ignore, gone, path, met
            )
            for index, item in enumerate(value)
        ]
    if not isinstance(value, dict):
        return value
    kept = {}
    for name, inner in value.items():
        full = f"{path}.{name}" if path else name
        named = name if name in ignore else full if full in ignore else ""
        if named and met is not None:
            met.add(named)
        # Calls of a turn go with their results, after the row has been read.
        if named and _may_go(name, inner) and not (path and MEANING_OF.get(name) is CALLS):
            if not says_nothing(name, inner):
                gone.add(named)
            continue
        if name in CONTENT and isinstance(inner, list | tuple):
            inner = _without_parts(inner, ignore, gone)
        below = _below(node, name, inner)
        kept[name] = without_fields(inner, below, ignore, gone, full, met) if below else inner
    return kept


CONTENT = ("content", "value")


def _without_parts(parts: Sequence[Any], ignore: frozenset[str], gone: set[str]) -> list[Any]:
    """The parts of a turn's text without those of a kind that is ignored, such as "thinking"."""
    kept = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        meaning = MEANING_OF.get(kind) if isinstance(kind, str) else None
        if kind in ignore and meaning is not None and meaning.may_be_ignored:
            gone.add(str(kind))
        else:
            kept.append(part)
    return kept


def _may_go(name: str, value: object) -> bool:
    meaning = MEANING_OF.get(name)
    if meaning is VERDICT:
        return verdict_of(value) is None
    return meaning is None or meaning.may_be_ignored


VERDICTS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def verdict_of(value: object) -> bool | None:
    """true and false, also as 1 and 0 and as text; None for anything else."""
    if not isinstance(value, str | int | float):
        return None
    return VERDICTS.get(str(value).strip().lower())


def decoded(row: Mapping[str, Any], root: Tree) -> Mapping[str, Any]:
    """The row, with lists of turns in place of those that are JSON text, or Python's.

    One turn is a list of one. So is verl's reward_model an object again.
    RowError for text that begins as they do and cannot be decoded: it is no question.
    """
    changed: dict[str, Any] = {}
    for name, value in row.items():
        if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
            continue
        if name == "reward_model":
            found = json_or_none(value)
            changed |= {name: found} if isinstance(found, dict) else {}
        elif root.get(name):
            turns = json_turns(value)
            if turns is not None:
                changed[name] = turns
            elif TURNS_IN_TEXT.match(value):
                expected = "turns, or JSON text of turns"
                raise RowError(name, describe(value), expected, "conversation that does not decode")
    return {**row, **changed} if changed else row


TURNS_IN_TEXT = re.compile(r"""\s*\[\s*\{\s*['"](role|from|content|value)['"]\s*:""")
ONE_TURN = ({"role", "content"}, {"from", "value"})


def json_or_none(text: str) -> Any:
    """What JSON text holds; None for any other text. Tables hold Python's spelling of it, too."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if not PYTHONS.match(text):
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


PYTHONS = re.compile(r"\s*(\[\s*[\[{]|\{)\s*'")


def json_turns(text: str) -> Any:
    """What JSON text holds if that is a list of turns, or one turn; None for any other text."""
    value = json_or_none(text)
    if isinstance(value, dict) and any(names <= value.keys() for names in ONE_TURN):
        return [value]
    return value if are_turns(value) else None


def are_turns(value: object) -> bool:
    """Whether a value is a list of turns, and not an empty one."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(item, dict) and ("role" in item or {"from", "value"} <= {*item})
            for item in value
        )
    )


def as_object(value: Any) -> Any:
    """A row that is a bare list of turns as the row that has them as "messages"; others as is."""
    return {"messages": value} if are_turns(value) else value
