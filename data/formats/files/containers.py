"""Rows of JSON lines, JSON arrays, CSV (plain or compressed), parquet, Arrow and hub data sets.

They are streamed: memory holds little more than one row, however large the file.
The container is told by content, not by name, but for CSV, which has no mark of its own. BOM and
CRLF are tolerated, blank lines are no rows. What cannot be read is itself a row of the stream, in
its place: a line that is not UTF-8 or not JSON, a number that is not finite, the point where
compressed data breaks off. A value in a column that cannot be read is so in its place in the row,
and costs the row only where a reader asks for it.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

from rayward.data.formats.files.column_rows import column_rows, is_column_file, unopened
from rayward.data.formats.files.csv_rows import csv_rows
from rayward.data.formats.files.json_rows import array_rows, line_rows
from rayward.data.formats.rows.fields import are_turns
from rayward.data.records import RowError

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")
"""Ends of the names that are written. More are read:"""
DATA_NAME = re.compile(
    r".*(\.(jsonl?|ndjson|csv|tsv)(\.(gz|zst))?|\.parquet|\.arrow)|[^.]+\.zst", re.IGNORECASE
)
CSV_NAME = re.compile(r".*\.(csv|tsv)(\.(gz|zst))?", re.IGNORECASE)
# Written beside data by our own commands. Read with a folder, they would come back as bad rows.
SIDE_FILES = (".rejected.jsonl", ".provenance.jsonl")
# What `datasets` and LLaMA-Factory write beside data, about it.
ABOUT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")
STANDARD_INPUT = "-"
BLOCK_BYTES = 1 << 18
MAX_BARE_BYTES = 1 << 22
"""How long the first line may be that is looked at for a conversation without a name."""


@dataclass(frozen=True, slots=True)
class RowSource:
    """A file or data set.

    `rows(columns)` starts reading its rows at each call: of a file of columns only those of these
    names, where they are given. `unopened(columns)` says of the others how many rows they hold
    something in. `given_names`: those that the file has for its fields, where readers get others.
    """

    name: str
    rows: Callable[..., Iterator[tuple[int, Any]]]
    unopened: Callable[[frozenset[str]], dict[str, int]] = lambda columns: {}
    given_names: Mapping[str, str] = field(default_factory=dict)


def sources(path: str | Path) -> list[RowSource]:
    """A file, the data files of a folder, "-" for standard input, a pipe, or for
    "hf:NAME[:CONFIG][:SPLIT]" a hub data set.
    """
    if isinstance(path, str) and path.startswith("hf:"):
        from rayward.data.formats.files.hub import hub_rows

        return [RowSource(path, partial(hub_rows, path))]
    if str(path) == STANDARD_INPUT or Path(path).is_fifo():
        spooled = Path(_spooled(str(path)).name)
        return [RowSource(str(path), partial(rows, spooled), partial(unopened, spooled))]
    return [
        RowSource(str(file), partial(rows, file), partial(unopened, file))
        for file in data_files(Path(path))
    ]


@cache
def _spooled(path: str) -> IO[bytes]:
    """Standard input or a pipe as a file, which goes with the process: it is read more than once,
    first to tell the format.
    """
    file = tempfile.NamedTemporaryFile(prefix="rayward-input-")  # noqa: SIM115
    with sys.stdin.buffer if path == STANDARD_INPUT else open(path, "rb") as stream:
        shutil.copyfileobj(stream, file)
    file.flush()
    return file


def data_files(path: Path) -> list[Path]:
    """`path` itself if it is a file, else the data files of the folder and those in it, sorted.

    FileNotFoundError if there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    # The file system's order differs between machines, and the order of rows must not.
    files = sorted(file for file in path.rglob("*") if is_data_file(file, path) and file.is_file())
    if not files:
        raise FileNotFoundError(
            f"{path}: no data file; expected names that end in .json, .jsonl, .ndjson, .csv, .tsv "
            "(each also with .gz or .zst), .parquet or .arrow"
        )
    return files


def is_data_file(path: Path, folder: Path) -> bool:
    """Whether a file of this name is read where `folder` is: below it, and by name no other thing.

    Not read are hidden files and what our commands and `datasets` write beside data.
    """
    if not path.is_relative_to(folder) or not DATA_NAME.fullmatch(path.name):
        return False
    if any(part.startswith(".") for part in path.relative_to(folder).parts):
        return False
    if path.name.endswith(SIDE_FILES) or path.name in ABOUT_DATA:
        return False
    # Of `save_to_disk`, and what `map` has left of it: the same rows again.
    if path.name == "state.json":
        return not (path.parent / "dataset_info.json").exists()
    return not (path.name.startswith("cache-") and path.suffix == ".arrow")


def rows(path: Path, columns: frozenset[str] | None = None) -> Iterator[tuple[int, Any]]:
    """(line, value) of each row of a file, with a RowError as the value of what cannot be read.

    Lines count from 1. In arrays and parquet files, which have no lines, the row's number takes
    their place. `columns`: those to read of a file that has columns, where it has one of them.
    """
    if is_column_file(path):
        yield from column_rows(path, columns)
        return
    if CSV_NAME.fullmatch(path.name):
        tabs = ".tsv" in path.name.lower()
        yield from csv_rows(_blocks(path), "\t" if tabs else ",")
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
    is_array = start.lstrip()[:1] == b"["
    if is_array:
        while b"\n" not in start.lstrip() and len(start) < MAX_BARE_BYTES:
            more = next(blocks, None)
            if not isinstance(more, bytes):
                blocks = iter([] if more is None else [more])
                break
            start += more
        is_array = not _is_bare_conversation(start)
    container_rows = array_rows if is_array else line_rows
    yield from container_rows(chain([start], blocks))


def _is_bare_conversation(start: bytes) -> bool:
    """Whether the first line that is not blank is a conversation, a list of turns: so are all."""
    try:
        return are_turns(json.loads(start.lstrip().partition(b"\n")[0]))
    except (ValueError, RecursionError):
        return False


def _blocks(path: Path) -> Iterator[bytes | RowError]:
    """Content of a file, plain, gzipped or by Zstandard, whatever its name says.

    A RowError comes last where compressed data breaks off.
    """
    with ExitStack() as stack:
        raw = stack.enter_context(open(path, "rb"))
        magic = raw.read(4)
        raw.seek(0)
        read: Callable[[int], bytes] = raw.read
        kind = "gzip"
        if magic[:2] == b"\x1f\x8b":
            # read1 hands out what is there; read would lose what it holds when it meets the damage.
            read = gzip.GzipFile(fileobj=raw).read1
        elif magic == b"\x28\xb5\x2f\xfd":
            import pyarrow

            kind = "Zstandard"
            read = stack.enter_context(pyarrow.CompressedInputStream(raw, "zstd")).read
        try:
            while block := read(BLOCK_BYTES):
                yield block
        except EOFError:
            yield RowError("file", "an early end", "the rest of the gzip data", "truncated file")
        except (zlib.error, OSError) as error:  # a gzip.BadGzipFile is an OSError, too
            if "Truncated" in str(error):
                expected = f"the rest of the {kind} data"
                yield RowError("file", "an early end", expected, "truncated file")
                return
            yield RowError("file", str(error)[:60], f"{kind} data", "damaged file")
