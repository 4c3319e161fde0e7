"""Small tables beside verdicts: published rows and weights by model, difficulties by instruction.

JSON, JSON lines or CSV, as AlpacaEval has them. They are not data of which a row may be set aside:
what is wrong in one is a ValueError that says file, line and field.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayward.data.formats.files.containers import sources
from rayward.data.records import RowError, describe, number_of, object_of, text_of

# Of a CSV that pandas wrote, the name stands in a column without one.
NAME = ("name", "")
DIFFICULTY = "instruction_difficulty"


@dataclass(frozen=True)
class Difficulties:
    """A difficulty for each instruction, by its place, and by its text where the file has texts."""

    by_place: list[float]
    by_text: dict[str, float]


def by_name(path: Path, fields: Iterable[str]) -> dict[str, dict[str, float]]:
    """These numbers of each row by the row's name; one that a row lacks is not in it."""
    named: dict[str, dict[str, float]] = {}
    for where, row in _rows(path):
        try:
            row = object_of(row, "row")
            name = next((row[field] for field in NAME if row.get(field)), None)
            values = {field: row.get(field) for field in fields}
            named[text_of(name, "name")] = {
                field: _number(value, field) for field, value in values.items() if value is not None
            }
        except RowError as error:
            raise ValueError(f"{where}: {error}") from None
    return named


def difficulties(path: Path) -> Difficulties:
    """Of a list of numbers, or of rows with instruction_difficulty and perhaps instruction."""
    by_place, by_text = [], {}
    for where, row in _rows(path):
        try:
            if not isinstance(row, Mapping):
                by_place.append(number_of(row, "item"))
                continue
            by_place.append(_number(row.get(DIFFICULTY), DIFFICULTY))
            if row.get("instruction") is not None:
                by_text[text_of(row["instruction"], "instruction")] = by_place[-1]
        except RowError as error:
            raise ValueError(f"{where}: {error}") from None
    return Difficulties(by_place, by_text if len(by_text) == len(by_place) else {})


def instructions(path: Path) -> list[str]:
    """The texts of a file of instructions, in order."""
    texts = []
    for where, row in _rows(path):
        try:
            texts.append(text_of(object_of(row, "row").get("instruction"), "instruction"))
        except RowError as error:
            raise ValueError(f"{where}: {error}") from None
    return texts


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(file and line, row)."""
    for source in sources(path):
        for line, row in source.rows():
            where = f"{source.name}:{line}"
            if isinstance(row, RowError):
                raise ValueError(f"{where}: {row}")
            yield where, row


def _number(value: object, field: str) -> float:
    """A number, of a CSV as text."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise RowError(field, describe(value), "a number", "wrong type") from None
    return number_of(value, field)
