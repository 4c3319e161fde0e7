"""Rows of JSON lines and JSON arrays, from a file's blocks of bytes; a bad row is a RowError.

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
from itertools import chain
from typing import Any

from rayward.data.records import RowError, describe, surrogate_in

# A whole string, or a quote that opens one without an end, or a bracket. Brackets in strings are
# thereby no matches. `*+` never gives characters back: without it, a string that is cut short would
# be tried again from each of its characters.
STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*+"|["{}\[\]]', re.DOTALL)
# An item that does not end within this many is given up. An open quote or bracket would otherwise
# draw the rest of the file into memory.
MAX_ITEM_CHARACTERS = 1 << 26
MAX_LINE_BYTES = 1 << 28  # as much in bytes, whatever the characters: four of one at most
# Longer than all that is an error while it is incomplete: "-Infinity", or two escapes of a pair.
MAX_TOKEN_CHARACTERS = 16
# More digits than any float has (309 before the point). int() takes time in the square of their
# number, and raises its own ValueError above 4300.
MAX_DIGITS = 400


def _json_decoder() -> tuple[json.JSONDecoder, list[str]]:
    """A decoder, and the list of the numbers it refuses: NaN, Infinity, integers of 400 digits.

    They are noted and not raised, because the decoder must come to the end of the item: the next
    one starts there.
    """
    refused: list[str] = []

    def integer(digits: str) -> int:
        if len(digits) < MAX_DIGITS:
            return int(digits)
        refused.append(f"an integer of {len(digits)} digits")
        return 0

    # `parse_constant` is called with "NaN", "Infinity" or "-Infinity".
    return json.JSONDecoder(parse_constant=refused.append, parse_int=integer), refused


# ---- JSON lines


def line_rows(blocks: Iterator[bytes | RowError]) -> Iterator[tuple[int, Any]]:
    """(line, value) of JSON lines, or of one object after another over several lines."""
    number, parts, held_bytes = 1, list[bytes](), 0
    for block in blocks:
        if isinstance(block, RowError):
            yield number, block  # the line that it cuts off is part of the damage
            return
        # Bytes are cut before they are decoded: no byte of a character in UTF-8 is a line end, so a
        # line that does not decode costs itself alone.
        *ends, rest = block.split(b"\n")
        for index, end in enumerate(ends):
            line = b"".join((*parts, end))
            if number == 1 and line.strip() == b"{":
                start = b"\n".join((line, *ends[index + 1 :], rest))
                yield from object_rows(chain([start], blocks))
                return
            if held_bytes > MAX_LINE_BYTES:
                yield number, _too_long()
            elif line.strip():
                yield number, _parse_line(line)
            parts, held_bytes = [], 0
            number += 1
        held_bytes += len(rest)
        # What is too long is told at its end, and not held: a file may have no line end at all.
        parts = [] if held_bytes > MAX_LINE_BYTES else [*parts, rest]
    if held_bytes > MAX_LINE_BYTES:
        yield number, _too_long()
    line = b"".join(parts)  # the last line may have no end
    if line.strip():
        yield number, _parse_line(line)


def _too_long() -> RowError:
    found = f"more than {MAX_LINE_BYTES} bytes"
    return RowError("line", found, "a line that ends before", "line too long")


def object_rows(blocks: Iterator[bytes | RowError]) -> Iterator[tuple[int, Any]]:
    """(number, value) of objects that follow each other without commas, over several lines each."""
    reader, number = _ArrayReader(blocks), 0
    while reader.next_character() and not reader.broken:
        number += 1
        yield number, reader.item()
    if reader.damage and not reader.broken:
        yield number + 1, reader.damage


def _parse_line(line: bytes) -> Any:
    decoder, refused = _json_decoder()
    try:
        value = decoder.decode(line.decode())
    except UnicodeDecodeError as error:
        found = f"byte {line[error.start]:#x} at {error.start}"
        return RowError("line", found, "UTF-8", "not UTF-8")
    except (json.JSONDecodeError, RecursionError) as error:  # the latter: thousands of brackets
        return RowError("line", str(error)[:80], "JSON", "broken JSON")
    if refused:
        return RowError("line", refused[0], "a finite number", "number not finite")
    return value


# ---- JSON arrays


def array_rows(blocks: Iterator[bytes | RowError]) -> Iterator[tuple[int, Any]]:
    """(number, value) of the items of a JSON array.

    An item without a comma before it is set aside, and so is each one that follows the array.
    """
    array, number = _ArrayReader(blocks), 0
    array.next_character()
    array.position += 1  # the bracket
    while (character := array.next_character()) not in ("]", ""):
        number += 1
        missing = number > 1 and character != ","
        if missing and character not in ("{", "["):
            # No item begins here, so there is no place to go on from.
            yield number, RowError("file", describe(character), "a comma", "broken JSON")
            return
        if number > 1 and not missing:
            array.position += 1
            array.next_character()
        item = array.item()
        yield (
            number,
            RowError("item", "no comma before it", "one", "broken JSON") if missing else item,
        )
        if array.broken:
            return
    if character == "":
        yield (
            number + 1,
            array.damage or RowError("file", "an early end", "a closing ]", "truncated file"),
        )
        return
    array.position += 1
    yield from _after_the_end(array, number)


def _after_the_end(array: _ArrayReader, number: int) -> Iterator[tuple[int, Any]]:
    """What follows an array, each item of it as a row that is set aside: a second array, mostly."""
    error = RowError("file", "text after the closing ]", "the end", "broken JSON")
    before = number
    is_text = False
    while (character := array.next_character()) != "":
        is_text = True
        if character in "[],":
            array.position += 1
            continue
        number += 1
        array.item()
        yield number, error
        if array.broken:
            return
    if is_text and number == before:
        number += 1
        yield number, error
    if array.damage:
        yield number + 1, array.damage


class _ArrayReader:
    """The text of a JSON array from `position` on, of which little more is held than one item."""

    def __init__(self, blocks: Iterator[bytes | RowError]) -> None:
        self.blocks = blocks
        # Bytes that are not UTF-8 become surrogates, which no UTF-8 decodes to: they mark their
        # item. The decoder keeps the bytes of a character that a block cuts in two.
        self.decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self.decoder, self.refused = _json_decoder()
        self.text, self.position = "", 0
        self.damage: RowError | None = None  # where the file's bytes break off
        self.broken = False  # nothing behind the last item can be read

    def grow(self) -> bool:
        """Hold more text, and let go of what was read; False at the end.

        The text doubles, so that a long item, which is parsed anew each time, is so only log times.
        """
        self.text, self.position = self.text[self.position :], 0
        parts, missing = [self.text], max(1, len(self.text))
        for block in self.blocks:
            if isinstance(block, RowError):
                self.damage = block
                break
            parts.append(self.decode(block))
            missing -= len(parts[-1])
            if missing <= 0:
                break
        self.text = "".join(parts)
        return len(parts) > 1

    def next_character(self) -> str:
        """The next character but white space, where `position` then stands; "" at the end."""
        while True:
            while self.position < len(self.text) and self.text[self.position] in " \t\r\n":
                self.position += 1
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.grow():
                return ""

    def item(self) -> Any:
        """The value at `position`, or a RowError; sets `broken` if nothing after it can be read."""
        while True:
            self.refused.clear()  # of the try before, which saw the same numbers
            try:
                value, end = self.decoder.raw_decode(self.text, self.position)
            except (json.JSONDecodeError, RecursionError) as error:
                if self._is_cut(error) and self._item_may_grow() and self.grow():
                    continue
                at_end = isinstance(error, json.JSONDecodeError) and error.pos >= len(
                    self.text.rstrip()
                )
                self.broken = self.damage is not None or not self.skip()
                return self.damage or self._no_item(error, at_end)
            if end == len(self.text) and self.grow():
                continue  # perhaps a number of which more digits come
            raw = self.text[self.position : end]
            self.position = end
            # The raw text, not the value: an escape such as \ud800 is ASCII here. It is a fault of
            # the text that the row says, which `text_of` finds.
            if surrogate_in(raw):
                return RowError("item", "bytes that do not decode", "UTF-8", "not UTF-8")
            if self.refused:
                return RowError("item", self.refused[0], "a finite number", "number not finite")
            return value

    def _is_cut(self, error: json.JSONDecodeError | RecursionError) -> bool:
        """Whether the item at `position` may only lack what is not read yet.

        Such an item fails in the last token there is, or where an open string began.
        """
        if isinstance(error, RecursionError):
            return False
        in_last_token = error.pos > len(self.text) - MAX_TOKEN_CHARACTERS
        return in_last_token or error.msg.startswith("Unterminated string")

    def _item_may_grow(self) -> bool:
        return len(self.text) - self.position < MAX_ITEM_CHARACTERS

    def skip(self) -> bool:
        """Go behind the object or array at `position`, by brackets and quotes.

        False if these do not lead to its end, or no item follows there.
        """
        while self.text[self.position : self.position + 1] in ("{", "["):
            depth = 0
            for match in STRUCTURE.finditer(self.text, self.position):
                if match[0] == '"':
                    break  # a string that is not all there yet
                # A whole string counts 0.
                depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(match[0], 0)
                if depth == 0:
                    self.position = match.end()
                    # Anything else tells that brackets and quotes of the broken item misled.
                    return self.next_character() in (",", "]")
            if not self._item_may_grow() or not self.grow():
                break
        return False

    def _no_item(self, error: json.JSONDecodeError | RecursionError, at_end: bool) -> RowError:
        expected = "JSON (the rest of the file is not read)" if self.broken else "JSON"
        if isinstance(error, RecursionError):
            return RowError("item", "values nested too deeply", expected, "broken JSON")
        cut = self.broken and (at_end or error.msg.startswith("Unterminated string"))
        return RowError("item", error.msg, expected, "truncated file" if cut else "broken JSON")
