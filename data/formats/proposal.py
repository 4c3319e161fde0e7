"""A map for rows that fit no known format, guessed from the names and types of their fields.

It is shown, not used: a person reads it, mends it and gives it as --fields. What is proposed reads
at least half of the rows that it was guessed from.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rayward.data.formats.mapped import FieldMap
from rayward.data.formats.rows.field_paths import look_up, steps
from rayward.data.formats.rows.fields import verdict_of
from rayward.data.formats.rows.turns import SPEAKERS
from rayward.data.records import RowError, validate

# What people call such fields, the likeliest first.
LIKELY_NAMES = {
    "system": "system sys persona",
    "chosen": "chosen preferred better good positive accepted winner win best",
    "rejected": "rejected dispreferred worse bad negative refused loser lose worst",
    "label": "label liked good accepted correct thumbs upvoted feedback verdict",
    "reference": "reference truth gold golden expected",
    "prompt": (
        "prompt question instruction query problem request input user human q ask utterance title "
        "post text source src"
    ),
    "response": (
        "response answer output completion reply assistant solution generation bot a target "
        "summary comment dst gpt"
    ),
    "id": "id uuid uid guid idx index key",
}
SPEAKER = "role from speaker author who sender side name user type"
SAID = "content value text message utterance says said body msg"
CHATS = "messages conversation conversations dialog dialogue chat turns conv log history thread"
DEEPEST = 5

Rows = Sequence[Mapping[str, Any]]


def propose(rows: Rows) -> FieldMap | None:
    """The map that reads most of `rows`, if there is one that reads half of them."""
    best: FieldMap | None = None
    most = 0
    for fields, roles in _guesses(rows):
        try:
            mapped = FieldMap(fields, roles)
        except ValueError:  # these targets make no record
            continue
        usable = sum(_reads(mapped, row) for row in rows)
        if usable > most:
            best, most = mapped, usable
    return best if 2 * most >= len(rows) else None


def as_options(mapped: FieldMap) -> list[str]:
    """The options that give a map to a command."""

    def pairs(values: Mapping[str, str]) -> str:
        return ",".join(f"{name}={value}" for name, value in values.items())

    roles = ["--roles", pairs(mapped.roles)] if mapped.roles else []
    return ["--fields", pairs(mapped.fields), *roles]


def _reads(mapped: FieldMap, row: Mapping[str, Any]) -> bool:
    try:
        for record in mapped.records(row, []):
            validate(record)
    except RowError:
        return False
    return True


def _guesses(rows: Rows) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Fields and roles to try, the fullest first: of two that read as much the first is taken."""
    paths = list(dict.fromkeys(path for row in rows for path in _paths(row)))
    values = {path: [look_up(row, path)[1] for row in rows] for path in paths}
    texts = [path for path in paths if _are(str, values[path])]
    beside: dict[str, str] = {
        target: _optional(path, values[path])
        for target in ("system", "id")
        if (path := _named(target, paths if target == "id" else texts))
    }
    named = {target: path for target in LIKELY_NAMES if (path := _named(target, texts))}
    labels = [path for path in paths if _are_verdicts(values[path])]
    label = _named("label", labels) or (labels[0] if labels else "")
    taken = {*beside.values(), *(path for target, path in named.items() if target in beside)}
    free = [path for path in texts if path not in taken]
    pair: dict[str, str] = {side: named[side] for side in ("chosen", "rejected") if side in named}
    for path in paths:
        if messages := _messages(path, values[path]):
            fields, roles = messages
            if len(pair) == 2:
                yield {**fields, **pair, **beside}, roles
            if label:
                yield {**fields, "label": label, **beside}, roles
            yield {**fields, **beside}, roles
    # By name, and without a name by place: the question comes before its answer.
    asked = named.get("prompt") or next(iter(free), "")
    if not asked:
        return
    others = [path for path in free if path != asked]
    said = named.get("response") or next(iter(others), "")
    if len(pair) == 2:
        yield {"prompt": asked, **pair, **beside}, {}
    if said and said != asked:
        if label:
            yield {"prompt": asked, "response": said, "label": label, **beside}, {}
        yield {"prompt": asked, "response": said, **beside}, {}
    if "reference" in named:
        yield {"prompt": asked, "reference": named["reference"], **beside}, {}
    yield {"prompt": asked, **beside}, {}


def _paths(value: Any, path: str = "", depth: int = 0) -> Iterator[str]:
    """Paths of all that is not an object; into a list of one object, too, as in `choices`."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        yield path
        value, path = value[0], f"{path}[0]"
    if not isinstance(value, dict) or depth == DEEPEST:
        yield path
        return
    for name, inner in value.items():
        # A name that paths cannot spell is found as a whole, where it is not below another.
        if not path or steps(name) == (name,):
            yield from _paths(inner, f"{path}.{name}" if path else name, depth + 1)


def _words(path: str) -> list[str]:
    """The words of the last name in a path, "isGood" and "is_good" alike."""
    name = next((step for step in reversed(steps(path)) if isinstance(step, str)), path)
    return re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())


def _named(target: str, paths: Iterable[str], names: str = "") -> str:
    """The path whose name says `target` best; "" if none does."""
    known = (names or LIKELY_NAMES[target]).split()
    ranked = [(known.index(word), path) for path in paths for word in _words(path) if word in known]
    return min(ranked, key=lambda pair: pair[0])[1] if ranked else ""


def _optional(path: str, values: Sequence[Any]) -> str:
    return f"{path}?" if any(value is None for value in values) else path


def _are(kind: type, values: Sequence[Any]) -> bool:
    """Whether half of the values are of a kind, and the others nothing."""
    number = sum(isinstance(value, kind) for value in values)
    return 2 * number >= len(values) and number == sum(value is not None for value in values)


def _are_verdicts(values: Sequence[Any]) -> bool:
    return all(verdict_of(value) is not None for value in values)


def _messages(path: str, values: Sequence[Any]) -> tuple[dict[str, str], dict[str, str]] | None:
    """Targets of a field that holds messages, and what its speakers' names stand for."""
    lists = [value for value in values if isinstance(value, list) and value]
    if 2 * len(lists) < len(values):
        return None
    entries = [entry for value in lists for entry in value]
    if all(isinstance(entry, str) for entry in entries):
        return ({"messages": path}, {}) if _named("", [path], CHATS) else None
    if not all(isinstance(entry, dict) for entry in entries):
        return None
    names = list(dict.fromkeys(name for entry in entries for name in entry))
    texts = [name for name in names if _are(str, [entry.get(name) for entry in entries])]
    said = _named("", texts, SAID) or max(
        texts, key=lambda name: sum(len(str(entry.get(name))) for entry in entries), default=""
    )
    # Few speakers say much: a name that differs at every message is none.
    others = [
        name
        for name in texts
        if name != said and len({entry.get(name) for entry in entries}) <= max(4, len(lists) // 2)
    ]
    speaker = _named("", others, SPEAKER) or next(iter(others), "")
    if not said or not speaker:
        return None
    fields = {"messages": path}
    fields |= {"message.role": speaker} if speaker != "role" else {}
    fields |= {"message.content": said} if said != "content" else {}
    return fields, _roles([[entry.get(speaker) for entry in value] for value in lists])


def _roles(speakers: Sequence[Sequence[Any]]) -> dict[str, str]:
    """Roles of names that are unknown: who begins is the user, who else speaks the assistant."""
    unknown = Counter(
        (name, index == 0)
        for names in speakers
        for index, name in enumerate(names)
        if isinstance(name, str) and name.strip().lower() not in SPEAKERS
    )
    return {
        name: "user" if unknown[name, True] > unknown[name, False] / 2 else "assistant"
        for name in dict.fromkeys(name for name, _ in unknown)
    }
