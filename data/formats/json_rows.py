"""Rows of JSON lines and JSON arrays, from the blocks of bytes of a file; a bad row is a RowError
in its place.

A streaming JSON parser gives up at the first NaN or bad byte and loses the rest of an array. Here
the items are cut out of the array one by one instead, so one bad item costs one row: its end is
then told by brackets and quotes. An array ends early only where these do not lead to another item
either.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from rayward.data.records import RowError, describe, surrogate_in

STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*+"|["{}\[\]]', re.DOTALL)
MAX_ITEM_CHARACTERS = 1 << 26


def _json_decoder() -> tuple[json.JSONDecoder, list[str]]:
    """A decoder, and the list of the numbers it refuses: NaN, Infinity, integers of 400 digits."""
    refused: list[str] = []

    def integer(digits: str) -> int:
        if len(digits) < 400:
            return int(digits)
        refused.append(f"an integer of {len(digits)} digits")
        return 0

    return json.JSONDecoder(parse_constant=refused.append, parse_int=integer), refused


# ---- JSON lines
# --------------------------------------------------------------------------------------------


def line_rows(blocks: Iterator[bytes | RowError]) -> Iterator[tuple[int, Any]]:
    """(line, value) of JSON lines."""
    number, parts = 1, list[bytes]()
    for block in blocks:
        if isinstance(block, RowError):
            yield number, block  # the line that it cuts off is part of the damage
            return
        *ends, rest = block.split(b"\n")
        for end in ends:
            line = b"".join((*parts, end))
            parts = []
            if line.strip() == b"{" and number == 1:
                found = "one object over several lines"
                yield (
                    number,
                    RowError(
                        "file", found, "an array of rows, or a row a line", "not a file of rows"
                    ),
                )
                return
            if line.strip():
                yield number, _parse_line(line)
            number += 1
        parts.append(rest)
    if (line := b"".join(parts)).strip():
        yield number, _parse_line(line)


def _parse_line(line: bytes) -> Any:
    decoder, refused = _json_decoder()
    try:
        value = decoder.decode(line.decode())
    except UnicodeDecodeError as error:
        return RowError(
            "line", f"byte {line[error.start]:#x} at {error.start}", "UTF-8", "not UTF-8"
        )
    except (json.JSONDecodeError, RecursionError) as error:
        return RowError("line", str(error)[:80], "JSON", "broken JSON")
    return (
        RowError("line", refused[0], "a finite number", "number not finite") if refused else value
    )


# ---- JSON arrays
# -------------------------------------------------------------------------------------------


def array_rows(blocks: Iterator[bytes | RowError]) -> Iterator[tuple[int, Any]]:
    """(number, value) of the items of a JSON array."""
    array, number = _ArrayReader(blocks), 0
    array.next_character()
    array.at += 1  # the bracket
    while (character := array.next_character()) not in ("]", ""):
        number += 1
        if number > 1 and character != ",":
            yield number, RowError("file", describe(character), "a comma", "broken JSON")
            return
        if number > 1:
            array.at += 1
            array.next_character()
        yield number, array.item()
        if array.broken:
            return
    if character == "":
        yield (
            number + 1,
            array.damage or RowError("file", "an early end", "a closing ]", "truncated file"),
        )
        return
    array.at += 1
    if array.next_character() != "":
        yield number + 1, RowError("file", "text after the closing ]", "the end", "broken JSON")
    elif array.damage:
        yield number + 1, array.damage


class _ArrayReader:
    """The text of a JSON array from `at` on, of which little more is held than one item."""

    def __init__(self, blocks: Iterator[bytes | RowError]) -> None:
        self.blocks = blocks
        # Bytes that are not UTF-8 become surrogates, which no UTF-8 decodes to: they mark their
        # item.
        self.decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self.decoder, self.refused = _json_decoder()
        self.text, self.at = "", 0
        self.damage: RowError | None = None
        self.broken = False

    def grow(self) -> bool:
        """Double the text held, so that a long item is parsed again only log times; False at the
        end.
        """
        self.text, self.at = self.text[self.at :], 0
        parts, wanted = [self.text], max(1, len(self.text))
        for block in self.blocks:
            if isinstance(block, RowError):
                self.damage = block
                break
            parts.append(self.decode(block))
            wanted -= len(parts[-1])
            if wanted <= 0:
                break
        self.text = "".join(parts)
        return len(parts) > 1

    def next_character(self) -> str:
        """The next character that is not white space, where `at` then stands; "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.grow():
                return ""

    def item(self) -> Any:
        """The value at `at`, or a RowError; sets `broken` if nothing after it can be read."""
        while True:
            self.refused.clear()
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except (json.JSONDecodeError, RecursionError) as error:
                # An item that is not all there yet fails at its end, or where an open string began.
                cut = isinstance(error, json.JSONDecodeError) and (
                    error.pos > len(self.text) - 16 or error.msg.startswith("Unterminated string")
                )
                if cut and len(self.text) - self.at < MAX_ITEM_CHARACTERS and self.grow():
                    continue
                at_end = isinstance(error, json.JSONDecodeError) and error.pos >= len(
                    self.text.rstrip()
                )
                self.broken = self.damage is not None or not self.skip()
                return self.damage or self._no_item(error, at_end)
            if end == len(self.text) and self.grow():
                continue  # perhaps a number of which more digits come
            raw, self.at = self.text[self.at : end], end
            if surrogate_in(raw):
                return RowError("item", "bytes that do not decode", "UTF-8", "not UTF-8")
            if self.refused:
                return RowError("item", self.refused[0], "a finite number", "number not finite")
            return value

    def skip(self) -> bool:
        """Go behind the object or array at `at`, by brackets and quotes; False if these do not lead
        to its end.
        """
        while self.text[self.at : self.at + 1] in ("{", "["):
            depth = 0
            for match in STRUCTURE.finditer(self.text, self.at):
                if match[0] == '"':
                    break  # a string that is not all there yet
                depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(match[0], 0)
                if depth == 0:
                    self.at = match.end()
                    return self.next_character() in (",", "]")
            if len(self.text) - self.at >= MAX_ITEM_CHARACTERS or not self.grow():
                break
        return False

    def _no_item(self, error: json.JSONDecodeError | RecursionError, at_end: bool) -> RowError:
        expected = "JSON (the rest of the file is not read)" if self.broken else "JSON"
        if isinstance(error, RecursionError):
            return RowError("item", "values nested too deeply", expected, "broken JSON")
        cut = self.broken and (at_end or error.msg.startswith("Unterminated string"))
        return RowError("item", error.msg, expected, "truncated file" if cut else "broken JSON")
