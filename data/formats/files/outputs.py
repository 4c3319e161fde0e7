"""Rows into a file, streamed: JSON lines, a JSON array (each plain or gzipped) or parquet.

The file's name says which.
The file appears under its name only when it is complete. Until then it has a name of its own, which
ends in ".partial": two that write one file do not write into each other's, and the last one stays.
Gzip data has no time stamp, so equal rows are equal bytes.
"""

from __future__ import annotations

import gzip
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeAlias

from rayward.data.formats.files.containers import SUFFIXES

if TYPE_CHECKING:
    import pyarrow

PARQUET_BATCH_ROWS = 1024  # rows held in memory, and those of a row group

BinaryFile: TypeAlias = IO[bytes] | gzip.GzipFile
Column: TypeAlias = "str | Sequence[Column] | Mapping[str, Column]"
"""A column's type: "text", "number", "integer", "boolean", [type of the items] or {name: type}.

At the top also "json": any value, which parquet holds as JSON text.
"""


class Output(Protocol):
    """An open file of rows."""

    def write(self, row: Any) -> None:
        """Add a row."""

    def end(self) -> None:
        """Write what is still held, and what closes the file."""


@contextmanager
def open_output(path: Path, columns: Mapping[str, Column] | None = None) -> Iterator[Output]:
    """A file of rows, put in place at the end; an exception leaves what was there before.

    `columns`: those of a parquet file (see data/formats/writers/table.py). ValueError: a name that
    tells no container, or a parquet file without columns.
    """
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path}: the name must end in one of {', '.join(SUFFIXES)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = unfinished_name(path)
    try:
        with ExitStack() as stack:
            raw = stack.enter_context(open(partial, "xb"))
            if path.name.endswith(".parquet"):
                if columns is None:
                    raise ValueError(
                        f"{path}: rows of this kind have no columns; write json or json.gz"
                    )
                parquet = _Parquet(raw, columns)
                stack.callback(parquet.writer.close)  # writes the footer, before `raw` is closed
                output: Output = parquet
            else:
                file: BinaryFile = raw
                if path.name.endswith(".gz"):
                    # No name and a time of 0 in the header: equal rows are equal bytes.
                    file = stack.enter_context(gzip.GzipFile("", "wb", 6, raw, 0))
                lines = path.name.removesuffix(".gz").endswith(".jsonl")
                output = _Lines(file) if lines else _ArrayWriter(file)
            yield output
            output.end()  # not after an exception: the file would look complete
        # Only now is all of it written and closed. The rename is one step, so nobody reads a half.
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # not there any more where it was put in place


def unfinished_name(path: Path) -> Path:
    """A name beside `path`, for its file while it is written; another one at each call."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _encode(row: Any) -> bytes:
    # NaN is no JSON, and our own reader refuses it.
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode()


class _Lines:
    def __init__(self, file: BinaryFile) -> None:
        self.file = file

    def write(self, row: Any) -> None:
        self.file.write(_encode(row) + b"\n")

    def end(self) -> None:
        pass


class _ArrayWriter:
    def __init__(self, file: BinaryFile) -> None:
        self.file = file
        self.separator = b"[\n"  # what comes before the next row

    def write(self, row: Any) -> None:
        self.file.write(self.separator + _encode(row))
        self.separator = b",\n"

    def end(self) -> None:
        no_rows = self.separator == b"[\n"
        self.file.write(b"[]\n" if no_rows else b"\n]\n")


class _Parquet:
    def __init__(self, file: IO[bytes], columns: Mapping[str, Column]) -> None:
        import pyarrow
        import pyarrow.parquet

        # Given, not inferred: a batch whose rows all lack a field would get a column of nulls,
        # which does not fit the next batch.
        self.schema = pyarrow.schema(
            [(name, _arrow_type(column)) for name, column in columns.items()]
        )
        self.writer = pyarrow.parquet.ParquetWriter(file, self.schema, compression="zstd")
        self.rows: list[Any] = []
        self.json_columns = [name for name, column in columns.items() if column == "json"]

    def write(self, row: Any) -> None:
        # Schemas of tools have any fields at all, and parquet those that are known before.
        texts = {name: _encode(row[name]).decode() for name in self.json_columns if name in row}
        self.rows.append(row | texts if texts else row)
        if len(self.rows) >= PARQUET_BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if self.rows:
            self.writer.write_table(pyarrow.Table.from_pylist(self.rows, schema=self.schema))
            self.rows = []

    def end(self) -> None:
        self._flush()


def _arrow_type(column: Column) -> pyarrow.DataType:
    import pyarrow

    if isinstance(column, str):
        types = {
            "text": pyarrow.string(),
            "json": pyarrow.string(),
            "number": pyarrow.float64(),
            "integer": pyarrow.int64(),
            "boolean": pyarrow.bool_(),
        }
        return types[column]
    if isinstance(column, Mapping):
        return pyarrow.struct([(name, _arrow_type(inner)) for name, inner in column.items()])
    return pyarrow.list_(_arrow_type(column[0]))
