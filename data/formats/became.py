"""What each field of a row became in its records, in the words of the targets of a field map.

A reader says which fields it uses, not what for. That is seen from the records: the texts and
numbers of a field are looked for in them. A field that decides something without being in the
record, such as a winner, is "read".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rayward.data.formats.known.formats import Format
from rayward.data.formats.rows.fields import EVERYTHING, is_empty, verdict_of
from rayward.data.formats.rows.meaning import MEANING_OF
from rayward.data.records import (
    Conversation,
    Labelled,
    Preference,
    Prompt,
    Ranking,
    Record,
)

READ = "read"
TURNS = {"prompt", "response", "system", "weight"}
LEAST = 8  # characters of a text that is found within another one; shorter ones are everywhere


class Fields:
    """What the fields of the rows that are counted became, mostly."""

    def __init__(self) -> None:
        self.seen: dict[str, Counter[str]] = {}

    def count(self, form: Format, row: Mapping[str, Any], records: Sequence[Record]) -> None:
        """Add a row, its format and its records."""
        for name, value in row.items():
            if is_empty(value) or not is_read(form, name, value):
                continue
            self.seen.setdefault(name, Counter())[found_in(value, records)] += 1

    def as_dict(self) -> dict[str, str]:
        """What each became in most rows; what was found says more than that it was read."""
        told = {}
        for name, counts in self.seen.items():
            found = Counter({what: number for what, number in counts.items() if what != READ})
            told[name] = (found or counts).most_common(1)[0][0]
        return told


def is_read(form: Format, name: str, value: Any) -> bool:
    """Whether a field of a row is used: by its format's reader, or in every format."""
    if name in form.tree or EVERYTHING in form.tree:
        return True
    meaning = MEANING_OF.get(name)
    return (meaning is not None and meaning.beside) or (
        "*" in form.tree and isinstance(value, dict)
    )


def found_in(value: Any, records: Sequence[Record]) -> str:
    """The parts of the records that the texts and numbers of a field are in."""
    leaves = list(_leaves(value))
    found = dict.fromkeys(
        target
        for record in records
        for target, part in _parts(record)
        if any(_same(target, part, leaf) for leaf in leaves)
    )
    if {"prompt", "response"} <= found.keys() or (_are_turns(value) and found.keys() <= TURNS):
        # Turns of both sides; a system text, weights and names among them are in them.
        found = dict.fromkeys(["messages"])
    elif len(found) > 1:
        # A field of texts is not also the name of the row.
        texts = [name for name in found if name not in ("id", "source", "quality", "weight")]
        found = dict.fromkeys(texts or list(found)[:1])
    return " + ".join(found) or READ


def _are_turns(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 1
        and all(isinstance(item, dict) and {"role", "from"} & item.keys() for item in value)
    )


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    elif not is_empty(value):
        yield value


def _parts(record: Record) -> Iterator[tuple[str, Any]]:
    """(target, text or number) of all that a record says."""
    for turn in record.turns:
        answers = isinstance(record, Conversation) and turn.role == "assistant"
        name = "system" if turn.role == "system" else "response" if answers else "prompt"
        yield name, turn.content
        if turn.weight is not None:
            yield "weight", turn.weight
    if isinstance(record, Preference):
        yield from (("chosen", record.chosen), ("rejected", record.rejected))
        yield "margin", record.margin
    elif isinstance(record, Ranking):
        yield from (("answers", answer) for answer in record.answers)
        yield from (("ranks", rank) for rank in record.ranks or ())
    elif isinstance(record, Labelled):
        yield from (("response", record.answer), ("label", record.good))
    elif isinstance(record, Prompt):
        yield from (("follow_ups", text) for text in record.follow_ups)
        yield "reference", record.reference
    elif isinstance(record, Conversation):
        yield "quality", record.quality
    yield from (("id", record.id), ("source", record.source))


def texts_of(record: Record) -> Iterator[str]:
    """All texts of a record, its id and source apart."""
    for target, part in _parts(record):
        if isinstance(part, str) and target not in ("id", "source", "quality"):
            yield part


def _same(target: str, part: Any, leaf: Any) -> bool:
    if part is None or part == "":
        return False
    if target == "label":
        return verdict_of(leaf) is part
    if isinstance(part, str) and isinstance(leaf, str):
        part, leaf = part.strip(), leaf.strip()
        if target == "source":
            return part == leaf or part.endswith(f"/{leaf}")
        if target in ("id", "quality"):
            return part == leaf
        if part == leaf or _framed_by(leaf, part):
            return True
        return (len(leaf) >= LEAST and leaf in part) or (len(part) >= LEAST and part in leaf)
    if isinstance(part, str):
        return target in ("id", "reference") and not isinstance(leaf, bool) and str(leaf) == part
    is_number = isinstance(leaf, int | float) and not isinstance(leaf, bool)
    return is_number and float(leaf) == float(part)


def _framed_by(leaf: str, part: str) -> bool:
    """Whether one stands in the other at the side of a frame, however short it is.

    A turn in "\\n\\nHuman: ...", an instruction before the heading of its input.
    """
    in_frame = "Human:" in leaf and f": {part}" in leaf
    return in_frame or part.startswith(f"{leaf}\n") or part.endswith(f"\n{leaf}")
