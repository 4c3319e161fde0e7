"""Rows of JSON lines, JSON arrays (each plain or gzipped), parquet files and hub data sets.

They are streamed: memory holds little more than one row, however large the file.
The container is told by content, not by name. BOM and CRLF are tolerated, blank lines are no rows.
What cannot be read is itself a row of the stream, in its place: a line that is not UTF-8 or not
JSON, a number that is not finite, the point where gzip data breaks off.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rayward.data.formats.json_rows import array_rows, line_rows
from rayward.data.records import RowError

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")
# Written beside data by our own commands. Read with a folder, they would come back as bad rows.
SIDE_FILES = (".rejected.jsonl", ".provenance.jsonl")
BLOCK_BYTES = 1 << 18
PARQUET_BATCH_ROWS = 256


@dataclass(frozen=True, slots=True)
class RowSource:
    """A file or data set: its name, and a function that starts reading its rows at each call."""

    name: str
    rows: Callable[[], Iterator[tuple[int, Any]]]


def sources(path: str | Path) -> list[RowSource]:
    """A file, the data files of a folder, or for "hf:NAME[:CONFIG][:SPLIT]" a hub data set."""
    if isinstance(path, str) and path.startswith("hf:"):
        from rayward.data.formats.hub import hub_rows

        return [RowSource(path, partial(hub_rows, path))]
    return [RowSource(str(file), partial(rows, file)) for file in data_files(Path(path))]


def data_files(path: Path) -> list[Path]:
    """`path` itself if it is a file, else the data files of the folder, sorted by name.

    FileNotFoundError if there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    data = (file for file in path.iterdir() if file.is_file() and file.name.endswith(SUFFIXES))
    # The file system's order differs between machines, and the order of rows must not.
    files = sorted(file for file in data if not file.name.endswith(SIDE_FILES))
    if not files:
        raise FileNotFoundError(
            f"{path}: no data file; expected names that end in {', '.join(SUFFIXES)}"
        )
    return files


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, value) of each row of a file, with a RowError as the value of what cannot be read.

    Lines count from 1. In arrays and parquet files, which have no lines, the row's number takes
    their place.
    """
    with open(path, "rb") as file:
        if file.read(4) == b"PAR1":
            yield from _parquet_rows(path)
            return
    # The first byte behind the BOM and white space tells an array from lines. A block may be as
    # short as gzip hands it out, so blocks are read until that byte is there.
    blocks, start = _blocks(path), b""
    for block in blocks:
        if isinstance(block, RowError):
            blocks = iter([block])  # damage this early still is a row, in its place
            break
        start += block
        if len(start) > len(codecs.BOM_UTF8) and start.strip():
            break
    start = start.removeprefix(codecs.BOM_UTF8)
    container_rows = array_rows if start.lstrip()[:1] == b"[" else line_rows
    yield from container_rows(chain([start], blocks))


def _blocks(path: Path) -> Iterator[bytes | RowError]:
    """Content of a plain or gzipped file; a RowError comes last where gzip data breaks off."""
    with open(path, "rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"  # whatever the name says
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


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    number, batches = 0, None
    while True:
        # Opening is inside, too: a damaged footer is a row of the stream like all other damage.
        try:
            if batches is None:
                file = pyarrow.parquet.ParquetFile(path)
                batches = file.iter_batches(batch_size=PARQUET_BATCH_ROWS)
            batch = next(batches, None)
        except (pyarrow.ArrowException, OSError) as error:
            yield number + 1, RowError("file", str(error)[:80], "parquet data", "damaged file")
            return
        if batch is None:
            return
        for index in range(batch.num_rows):
            number += 1
            # Row by row, although a whole batch is faster: text that is not UTF-8 costs its row
            # alone.
            try:
                yield number, batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield number, RowError("row", "bytes that do not decode", "UTF-8", "not UTF-8")
