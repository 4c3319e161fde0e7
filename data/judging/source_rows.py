"""Rows of the files of other projects; those that cannot be used are set aside with their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rayward.data.formats.files.containers import sources
from rayward.data.judging.annotations import BadRow
from rayward.data.records import RowError, describe, list_of, object_of, surrogate_in, text_of

Row = Mapping[str, Any]
Id = str | int
"""Of a question, as it stands in its row: FastChat's are numbers."""
T = TypeVar("T")


def rows_as(path: str | Path, convert: Callable[[Row, int], T], left_out: list[BadRow]) -> list[T]:
    """What `convert` makes of each row and its number from 0; a RowError goes to `left_out`.

    FileNotFoundError: no such file.
    """
    made = list[T]()
    number = 0
    for source in sources(path):
        for line, value in source.rows():
            try:
                if isinstance(value, RowError):
                    raise value
                made.append(convert(object_of(value, "row"), number))
            except RowError as error:
                left_out.append(BadRow(source.name, line, error))
            number += 1
    return made


def first_row(path: str | Path) -> Row | None:
    """The first object of a file; None where there is none."""
    for source in sources(path):
        for _, value in source.rows():
            if isinstance(value, dict):
                return value
    return None


def answer_of(value: object, field: str) -> str:
    """A model's text, which may say nothing. RowError where it is none."""
    if not isinstance(value, str):
        reason = "missing text" if value is None else "wrong type"
        raise RowError(field, describe(value), "text", reason)
    if found := surrogate_in(value):
        raise RowError(field, f"\\u{ord(found):04x}", "valid Unicode", "invalid Unicode")
    return value


def turns_of(row: Row, field: str) -> tuple[str, ...]:
    """A field that is a list of texts, or of objects with their text in "content"."""
    turns = tuple(
        text_of(value.get("content") if isinstance(value, dict) else value, f"{field}[{number}]")
        for number, value in enumerate(list_of(row.get(field), field))
    )
    if not turns:
        raise RowError(field, "an empty list", "at least one text", "no turns")
    return turns


def id_of(value: object, field: str = "question_id") -> Id:
    """The id of a question."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError(field, describe(value), "a number or text", "no id")
    return value
