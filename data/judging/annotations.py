"""Verdicts on two answers, in the shapes of AlpacaEval: a row a comparison, or a row a model.

A row a comparison is that of its annotations.json and of `rayward judge pairwise`: instruction,
output_1 of generator_1 (the baseline), output_2 of generator_2 (the model), annotator, preference.
Rows of OpenChat's evaluation are read as these, too. A row a model holds lists of preferences and
of both answers' lengths in characters, in the order of the instructions, whose texts it lacks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayward.data.formats.files.containers import sources
from rayward.data.judging.openchat_rows import as_verdict, is_openchat
from rayward.data.records import RowError, describe, list_of, number_of, object_of, text_of

UNNAMED = "(not named)"  # annotator of rows that do not name theirs


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's verdict on a baseline's answer and a model's to one instruction.

    `preference`: from 1, the baseline's is better, to 2; 0 is an old code for a tie, None a verdict
    that is missing. `place`: that of the instruction in a row of lists, from 0, which has neither
    `instruction` nor `digest`: of the instruction and both answers. `row`: the row as it was read,
    where that was asked for.
    """

    model: str
    baseline: str
    annotator: str
    place: int | None
    instruction: str
    digest: bytes
    preference: float | None
    length_1: int | None
    length_2: int | None
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row, or a list's item, that is no verdict."""

    file: str
    line: int
    error: RowError


def verdicts(path: str | Path, keep_rows: bool = False) -> Iterator[Verdict | BadRow]:
    """The verdicts of a file, or of the files of a folder, and in their places what is none."""
    for source in sources(path):
        for line, value in source.rows():
            try:
                if isinstance(value, RowError):
                    raise value
                row = object_of(value, "row")
                if is_openchat(row):
                    row = as_verdict(row, source.name)
                if not isinstance(row.get("preference"), list):
                    yield _verdict(row, keep_rows)
                    continue
                names = _names(row)
                preferences = list_of(row.get("preference"), "preference")
                lengths = [
                    _lengths(row, name, len(preferences))
                    for name in ("len_output_1", "len_output_2")
                ]
            except RowError as error:
                yield BadRow(source.name, line, error)
                continue
            for place, (preference, *of_both) in enumerate(zip(preferences, *lengths, strict=True)):
                try:
                    yield Verdict(
                        *names,
                        place,
                        "",
                        b"",
                        _preference(preference, f"preference[{place}]"),
                        _length(of_both[0], f"len_output_1[{place}]"),
                        _length(of_both[1], f"len_output_2[{place}]"),
                    )
                except RowError as error:
                    yield BadRow(source.name, line, error)


PLACE = ("question_id", "turn")


def _verdict(row: Mapping[str, Any], keep_row: bool) -> Verdict:
    """The verdict of a row a comparison."""
    outputs = [_output(row, name) for name in ("output_1", "output_2")]
    instruction = text_of(row.get("instruction"), "instruction")
    return Verdict(
        *_names(row),
        None,
        instruction,
        # Of several questions with one text, or turns, each has a verdict of its own.
        _digest(
            instruction, *outputs, *(str(row[key]) for key in PLACE if row.get(key) is not None)
        ),
        _preference(_given(row, "preference"), "preference"),
        None if "note" in row else len(outputs[0]),  # an answer that is not in the file
        len(outputs[1]),
        row if keep_row else {},
    )


def _digest(*texts: str) -> bytes:
    """The same 16 bytes for the same texts only."""
    # An escape of half a surrogate pair is no UTF-8, and what it stands for does not matter here.
    parts = [text.encode(errors="surrogatepass") for text in texts]
    lengths = ",".join(str(len(part)) for part in parts).encode()
    return hashlib.blake2b(b"".join([lengths, b":", *parts]), digest_size=16).digest()


def _names(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Model, baseline and annotator."""
    annotator = row.get("annotator")
    return (
        text_of(row.get("generator_2"), "generator_2"),
        text_of(row.get("generator_1"), "generator_1"),
        UNNAMED if annotator is None else text_of(annotator, "annotator"),
    )


def _output(row: Mapping[str, Any], name: str) -> str:
    """An answer, which may say nothing."""
    value = row.get(name)
    if not isinstance(value, str):
        reason = "missing text" if value is None else "wrong type"
        raise RowError(name, describe(value), "text", reason)
    return value


def _given(row: Mapping[str, Any], name: str) -> object:
    """A field that may be null, but must be there."""
    if name not in row:
        raise RowError(name, "no such field", "from 1 to 2, or null", "missing field")
    return row[name]


def _preference(value: object, name: str) -> float | None:
    if value is None:
        return None
    number = number_of(value, name)
    if number != 0 and not 1 <= number <= 2:
        raise RowError(name, f"{number:g}", "from 1 to 2, or null", "preference out of range")
    return number


def _lengths(row: Mapping[str, Any], name: str, count: int) -> list[Any]:
    """As many lengths as there are preferences; None for each where the row has none."""
    if row.get(name) is None:
        return [None] * count
    lengths = list(list_of(row[name], name))
    if len(lengths) != count:
        expected = f"{count}, as many as preferences"
        raise RowError(name, f"{len(lengths)} items", expected, "lists of other lengths")
    return lengths


def _length(value: object, name: str) -> int | None:
    """A length in characters."""
    if value is None:
        return None
    number = number_of(value, name)
    if number < 0 or number != int(number):
        raise RowError(name, f"{number:g}", "a whole number from 0 on", "length out of range")
    return int(number)
