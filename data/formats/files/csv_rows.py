"""Rows of a table of commas or tabs, as Python's csv module reads it; a bad row is a RowError.

The first row names the fields. A cell is text, and an empty one is no field.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from typing import Any

from rayward.data.formats.files.json_rows import MAX_ITEM_CHARACTERS
from rayward.data.records import RowError, surrogate_in


def csv_rows(blocks: Iterator[bytes | RowError], delimiter: str) -> Iterator[tuple[int, Any]]:
    """(line where it begins, row) of a table, its header apart."""
    # An open quote would otherwise draw the rest of the file into memory. It is the process's only
    # limit, and there is no other reader of tables here.
    csv.field_size_limit(MAX_ITEM_CHARACTERS)
    lines = _TableLines(blocks)
    # Strict, so that a quote which is left open is told, and not taken for a cell.
    table = csv.reader(lines, delimiter=delimiter, strict=True)
    names: list[str] = []
    while True:
        number = lines.number + 1
        try:
            cells = next(table, None)
        except csv.Error as error:
            yield number, lines.damage or RowError("row", str(error)[:80], "a row", "broken table")
            if lines.damage:
                return
            continue
        if cells is None:
            break
        if not cells:
            continue  # a blank line
        if not names:
            names = [name.strip() for name in cells]
            if repeated := next((name for name in names if names.count(name) > 1), None):
                expected = "a name of its own for every column"
                yield number, RowError("header", repr(repeated), expected, "header with one twice")
                return
        elif surrogate_in("".join(cells)):
            yield number, RowError("row", "bytes that do not decode", "UTF-8", "not UTF-8")
        elif len(cells) != len(names):
            found, expected = f"{len(cells)} cells", f"{len(names)}, as in the header"
            yield number, RowError("row", found, expected, "cells do not match the header")
        else:
            yield number, {name: cell or None for name, cell in zip(names, cells, strict=True)}
    if lines.damage:
        yield lines.number + 1, lines.damage


class _TableLines:
    """The lines of a file with their ends, of which csv makes rows; `number` is that of the last.

    Bytes that are not UTF-8 become surrogates, which mark their row.
    """

    def __init__(self, blocks: Iterator[bytes | RowError]) -> None:
        self.number = 0
        self.damage: RowError | None = None  # where the file's bytes break off
        self.lines = self._cut(blocks)

    def __iter__(self) -> _TableLines:
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        self.number += 1
        return line

    def _cut(self, blocks: Iterator[bytes | RowError]) -> Iterator[str]:
        decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        parts: list[str] = []
        first = True
        for block in blocks:
            if isinstance(block, RowError):
                self.damage = block  # the line that it cuts off is part of the damage
                return
            # By "\n" alone: `splitlines` would cut at line ends that a cell may hold.
            *ends, rest = decode(block).split("\n")
            for end in ends:
                line = "".join((*parts, end, "\n"))
                yield line.removeprefix("\ufeff") if first else line
                parts, first = [], False
            parts.append(rest)
            if sum(map(len, parts)) > MAX_ITEM_CHARACTERS:
                yield "".join(parts)  # csv refuses it, and goes on behind it
                parts = []
        if line := "".join(parts):
            yield line.removeprefix("\ufeff") if first else line
