"""Rows of JSON lines, JSON arrays (each plain or gzipped), parquet files and hub data sets, streamed; bad
rows are RowErrors.

The container is told by content, not by name. BOM and CRLF are tolerated, blank lines are no rows. What
cannot be read is itself a row of the stream, in its place: a line that is not UTF-8 or not JSON, a number
that is not finite, the point where gzip data breaks off.

A streaming JSON parser gives up at the first NaN or bad byte and loses the rest of an array. Here the
items are cut out of the array one by one instead, so one bad item costs one row: its end is then told by brackets
and quotes. An array ends early only where these do not lead to another item either.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from data.records import RowError, describe, surrogate_in

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")
OWN = (".rejected.jsonl", ".provenance.jsonl")  # written beside data by our own commands
STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*+"|["{}\[\]]', re.DOTALL)
BLOCK_BYTES = 1 << 18
MAX_ITEM_CHARACTERS = 1 << 26
PARQUET_BATCH_ROWS = 256


@dataclass(frozen=True, slots=True)
class Rows:
    """A file or data set: its name, and a function that starts reading its rows, as often as it is called."""

    name: str
    rows: Callable[[], Iterator[tuple[int, Any]]]


def sources(path: str | Path) -> list[Rows]:
    """A file, the data files of a folder, or for the text "hf:NAME[:CONFIG][:SPLIT]" a data set of `datasets`."""
    if isinstance(path, str) and path.startswith("hf:"):
        from data.hub import hub_rows

        return [Rows(path, partial(hub_rows, path))]
    return [Rows(str(file), partial(rows, file)) for file in data_files(Path(path))]


def data_files(path: Path) -> list[Path]:
    """`path` itself if it is a file, else the data files of the folder by name. FileNotFoundError if none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    found = (file for file in path.iterdir() if file.is_file() and file.name.endswith(SUFFIXES))
    files = sorted(file for file in found if not file.name.endswith(OWN))
    if not files:
        raise FileNotFoundError(f"{path}: no data file; expected names that end in {', '.join(SUFFIXES)}")
    return files


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, value) of each row of a file, with a RowError as the value of what cannot be read.

    Lines count from 1. In arrays and parquet files, which have no lines, the row's number takes their place.
    """
    with open(path, "rb") as file:
        if file.read(4) == b"PAR1":
            yield from _parquet_rows(path)
            return
    blocks, start = _blocks(path), b""
    for block in blocks:
        if isinstance(block, RowError):
            blocks = iter([block])
            break
        start += block
        if len(start) > len(codecs.BOM_UTF8) and start.strip():
            break
    start = start.removeprefix(codecs.BOM_UTF8)
    container_rows = _array_rows if start.lstrip()[:1] == b"[" else _line_rows
    yield from container_rows(chain([start], blocks))


def _blocks(path: Path) -> Iterator[bytes | RowError]:
    """Content of a plain or gzipped file; a RowError comes last where gzip data ends early or is damaged."""
    with open(path, "rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file = gzip.GzipFile(fileobj=raw) if zipped else raw
        try:
            # read1 hands out what is there; read would lose what it holds when it meets the damage.
            while block := file.read1(BLOCK_BYTES):
                yield block
        except EOFError:
            yield RowError("file", "an early end", "the rest of the gzip data", "truncated file")
        except (zlib.error, gzip.BadGzipFile) as error:
            yield RowError("file", str(error)[:60], "gzip data", "damaged file")


def _json_decoder() -> tuple[json.JSONDecoder, list[str]]:
    """A decoder, and the list of the numbers it refuses: NaN, Infinity, integers of 400 digits."""
    refused: list[str] = []

    def integer(digits: str) -> int:
        if len(digits) < 400:
            return int(digits)
        refused.append(f"an integer of {len(digits)} digits")
        return 0

    return json.JSONDecoder(parse_constant=refused.append, parse_int=integer), refused


# ---- JSON lines --------------------------------------------------------------------------------------------


def _line_rows(blocks: Iterator[bytes | RowError]) -> Iterator[tuple[int, Any]]:
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
                yield number, RowError("file", found, "an array of rows, or a row a line", "not a file of rows")
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
        return RowError("line", f"byte {line[error.start]:#x} at {error.start}", "UTF-8", "not UTF-8")
    except (json.JSONDecodeError, RecursionError) as error:
        return RowError("line", str(error)[:80], "JSON", "broken JSON")
    return RowError("line", refused[0], "a finite number", "number not finite") if refused else value


# ---- JSON arrays -------------------------------------------------------------------------------------------


def _array_rows(blocks: Iterator[bytes | RowError]) -> Iterator[tuple[int, Any]]:
    array, number = _Array(blocks), 0
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
        yield number + 1, array.damage or RowError("file", "an early end", "a closing ]", "truncated file")
        return
    array.at += 1
    if array.next_character() != "":
        yield number + 1, RowError("file", "text after the closing ]", "the end", "broken JSON")
    elif array.damage:
        yield number + 1, array.damage


class _Array:
    """The text of a JSON array from `at` on, of which little more is held than one item."""

    def __init__(self, blocks: Iterator[bytes | RowError]) -> None:
        self.blocks = blocks
        # Bytes that are not UTF-8 become surrogates, which no UTF-8 decodes to: they mark their item.
        self.decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self.decoder, self.refused = _json_decoder()
        self.text, self.at = "", 0
        self.damage: RowError | None = None
        self.broken = False

    def grow(self) -> bool:
        """Double the text held, so that a long item is parsed again only log times; False at the end."""
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
                at_end = isinstance(error, json.JSONDecodeError) and error.pos >= len(self.text.rstrip())
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
        """Go behind the object or array at `at`, by brackets and quotes; False if these do not lead to its end."""
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


# ---- parquet -----------------------------------------------------------------------------------------------


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    number, batches = 0, None
    while True:
        try:
            if batches is None:
                batches = pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=PARQUET_BATCH_ROWS)
            batch = next(batches, None)
        except (pyarrow.ArrowException, OSError) as error:
            yield number + 1, RowError("file", str(error)[:80], "parquet data", "damaged file")
            return
        if batch is None:
            return
        for index in range(batch.num_rows):
            number += 1
            try:
                yield number, batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield number, RowError("row", "bytes that do not decode", "UTF-8", "not UTF-8")
