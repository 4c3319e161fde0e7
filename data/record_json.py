"""Records as JSON objects with a "kind", the form in which our own files hold them, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

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


def to_json(record: Record) -> dict[str, Any]:
    """`record` as a JSON object with its "kind"; empty fields are left out."""
    values = asdict(record)
    row = {name: value for name, value in values.items() if value not in (None, "", ())}
    row["turns"] = [
        {key: value for key, value in turn.items() if value is not None} for turn in values["turns"]
    ]
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
    if "margin" in values:
        values["margin"] = number_of(values["margin"], "margin")
    record = KINDS[kind](**values)
    validate(record)
    return record


def _turn_from_json(values: Mapping[str, Any], field: str) -> Turn:
    if unknown := sorted(set(values) - {"role", "content", "weight"}):
        raise RowError(field, describe(unknown[0]), "role, content or weight", "unknown field")
    weight = values.get("weight")
    if weight is not None:
        weight = number_of(weight, f"{field}.weight")
    # `validate` refuses a role or a content that is none.
    return Turn(values.get("role"), values.get("content"), weight)  # type: ignore[arg-type]
