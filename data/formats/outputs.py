"""Rows into a file, streamed: JSON lines, a JSON array (each plain or gzipped) or parquet, by the
file's name.

The file appears under its name only when it is complete; until then it has ".partial" after it.
Gzip data has no time stamp, so equal rows are equal bytes.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from rayward.data.formats.containers import SUFFIXES

PARQUET_BATCH_ROWS = 1024


class Output(Protocol):
    """An open file of rows."""

    def write(self, row: Any) -> None:
        """Add a row."""

    def end(self) -> None:
        """Write what is still held, and what closes the file."""


@contextmanager
def open_output(path: Path, columns: Mapping[str, Any] | None = None) -> Iterator[Output]:
    """A file of rows, which is put in place at the end, and is not there at all after an exception.

    `columns`: those of a parquet file (see data/formats/writers.py). ValueError: a name that tells
    no container, or a parquet file without columns.
    """
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path}: the name must end in one of {', '.join(SUFFIXES)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with ExitStack() as stack:
            raw = stack.enter_context(open(partial, "wb"))
            if path.name.endswith(".parquet"):
                if columns is None:
                    raise ValueError(
                        f"{path}: rows of this kind have no columns; write json or json.gz"
                    )
                parquet = _Parquet(raw, columns)
                stack.callback(parquet.writer.close)
                output: Output = parquet
            else:
                zipped = path.name.endswith(".gz")
                file: Any = (
                    stack.enter_context(gzip.GzipFile("", "wb", 6, raw, 0)) if zipped else raw
                )
                lines = path.name.removesuffix(".gz").endswith(".jsonl")
                output = _Lines(file) if lines else _ArrayWriter(file)
            yield output
            output.end()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _encode(row: Any) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode()


class _Lines:
    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def write(self, row: Any) -> None:
        self.file.write(_encode(row) + b"\n")

    def end(self) -> None:
        pass


class _ArrayWriter:
    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.before = b"[\n"

    def write(self, row: Any) -> None:
        self.file.write(self.before + _encode(row))
        self.before = b",\n"

    def end(self) -> None:
        self.file.write(b"[]\n" if self.before == b"[\n" else b"\n]\n")


class _Parquet:
    def __init__(self, file: IO[bytes], columns: Mapping[str, Any]) -> None:
        import pyarrow
        import pyarrow.parquet

        self.schema = pyarrow.schema(
            [(name, _arrow_type(column)) for name, column in columns.items()]
        )
        self.writer = pyarrow.parquet.ParquetWriter(file, self.schema, compression="zstd")
        self.rows: list[Any] = []

    def write(self, row: Any) -> None:
        self.rows.append(row)
        if len(self.rows) >= PARQUET_BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if self.rows:
            self.writer.write_table(pyarrow.Table.from_pylist(self.rows, schema=self.schema))
            self.rows = []

    def end(self) -> None:
        self._flush()


def _arrow_type(column: Any) -> Any:
    import pyarrow

    if isinstance(column, list):
        return pyarrow.list_(_arrow_type(column[0]))
    if isinstance(column, dict):
        return pyarrow.struct([(name, _arrow_type(inner)) for name, inner in column.items()])
    return {"text": pyarrow.string(), "number": pyarrow.float64(), "integer": pyarrow.int64()}[
        column
    ]
