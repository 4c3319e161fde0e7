"""Lists of exchanges, whose speakers are names of fields: {"human": ..., "assistant": ...}."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rayward.data.formats.rows.message_parts import message_parts
from rayward.data.formats.rows.turns import content_of, weight_of
from rayward.data.records import Role, Turn, objects_of

ASKING = ("human", "user", "input")
SAYING = ("assistant", "gpt", "bot", "output")
EXCHANGE: tuple[tuple[Role, tuple[str, ...]], ...] = (("user", ASKING), ("assistant", SAYING))
"""The names under which an exchange has its question and its answer."""


def is_exchanges(value: object) -> bool:
    """Whether a list is of {"human", "assistant"}, by any names of EXCHANGE, not of turns."""
    first = value[0] if isinstance(value, list | tuple) and value else None
    if not isinstance(first, dict) or not {"role", "from", "content", "value"}.isdisjoint(first):
        return False
    return not first.keys().isdisjoint((*ASKING, *SAYING))


def exchanges(value: object, name: str) -> tuple[Turn, ...]:
    """The turns of a list of questions with their answers, each under its speaker's name."""
    turns: list[Turn] = []
    for where, entry in objects_of(value, name):
        given = [(role, name) for role, names in EXCHANGE for name in names if _says(entry, name)]
        said = [Turn(role, content_of(entry[name], f"{where}.{name}")) for role, name in given]
        # What stands beside the two is of the answer, or of the one turn that there is.
        if said:
            weight = weight_of(entry, where)
            parts = message_parts(entry, said[-1].role, where)
            said[-1] = replace(said[-1], weight=weight, **parts)
        turns += said
    return tuple(turns)


def _says(entry: Mapping[str, Any], name: str) -> bool:
    return entry.get(name) is not None
