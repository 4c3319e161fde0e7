"""Records as JSON objects with a "kind", the form in which our own files hold them, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from rayward.data.parts import calls_of, tools_of
from rayward.data.records import (
    KINDS,
    Record,
    RowError,
    Turn,
    describe,
    list_of,
    number_of,
    object_of,
    objects_of,
    text_of,
    validate,
)

TURN = frozenset(field.name for field in fields(Turn))


def to_json(record: Record) -> dict[str, Any]:
    """`record` as a JSON object with its "kind"; empty fields are left out."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    row = {name: value for name, value in values.items() if value not in (None, "", ())}
    row["turns"] = [_turn_to_json(turn) for turn in record.turns]
    return {"kind": type(record).__name__.lower(), **row}


def from_json(row: object) -> Record:
    """The record that `to_json` wrote, validated. RowError for anything else.

    A null is a field that is not there: parquet files have one for every field of the other kinds.
    """
    values = {name: value for name, value in object_of(row, "row").items() if value is not None}
    kind = values.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise RowError("kind", describe(kind), "one of " + ", ".join(KINDS), "unknown kind")
    known = {field.name for field in fields(KINDS[kind])}
    # A misspelt field would otherwise lose what it says in silence.
    if unknown := sorted(set(values) - known):
        raise RowError("row", describe(unknown[0]), f"a field of a {kind}", "unknown field")
    values["turns"] = tuple(
        _turn_from_json(turn, where) for where, turn in objects_of(values.get("turns"), "turns")
    )
    # Fields without a default are read even where they are absent, for an error that names them.
    if "answers" in known:
        values["answers"] = tuple(list_of(values.get("answers"), "answers"))
    if "follow_ups" in values:
        values["follow_ups"] = tuple(list_of(values["follow_ups"], "follow_ups"))
    if "ranks" in values:
        ranks = list_of(values["ranks"], "ranks")
        values["ranks"] = tuple(
            number_of(rank, f"ranks[{index}]") for index, rank in enumerate(ranks)
        )
    for name in sorted(known & {"chosen", "rejected", "answer"}):
        values[name] = text_of(values.get(name), name)
    if "good" in known:
        values.setdefault("good", None)  # `validate` names it
    if "tools" in values:
        values["tools"] = tools_of(values["tools"])
    if "margin" in values:
        values["margin"] = number_of(values["margin"], "margin")
    record = KINDS[kind](**values)
    validate(record)
    return record


def _turn_to_json(turn: Turn) -> dict[str, Any]:
    """Empty fields are left out; the content may be empty and stays."""
    row: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.weight is not None:
        row["weight"] = turn.weight
    if turn.reasoning is not None:
        row["reasoning"] = turn.reasoning
    if turn.tool_calls:
        row["tool_calls"] = [
            {"name": call.name, "arguments": call.arguments} | ({"id": call.id} if call.id else {})
            for call in turn.tool_calls
        ]
    labels = {"tool_call_id": turn.tool_call_id, "name": turn.name}
    return row | {name: label for name, label in labels.items() if label}


def _turn_from_json(row: Mapping[str, Any], field: str) -> Turn:
    if unknown := sorted(set(row) - TURN):
        expected = f"one of {', '.join(sorted(TURN))}"
        raise RowError(field, describe(unknown[0]), expected, "unknown field")
    values = {name: value for name, value in row.items() if value is not None}
    weight = values.get("weight")
    if weight is not None:
        weight = number_of(weight, f"{field}.weight")
    # `validate` refuses a role or a content that is none.
    return Turn(
        values.get("role"),  # type: ignore[arg-type]
        values.get("content"),  # type: ignore[arg-type]
        weight,
        values.get("reasoning"),
        calls_of(values.get("tool_calls"), f"{field}.tool_calls"),
        values.get("tool_call_id", ""),
        values.get("name", ""),
    )
