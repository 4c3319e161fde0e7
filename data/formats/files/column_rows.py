"""Rows of parquet and Arrow files, of which only the columns that are asked for are opened.

A value in a column that cannot be read is so in its place in the row, and costs the row only where
a reader asks for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayward.data.formats.rows.meaning import CALLS, MEANING_OF, TOOLS
from rayward.data.records import RowError

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 256
OBJECTS = {name for name, meaning in MEANING_OF.items() if meaning in (TOOLS, CALLS)}
"""Fields whose objects differ from each other."""
PARQUET = b"PAR1"
# An Arrow file with an index at its end, or a stream, as `datasets` saves.
ARROW_FILE, ARROW_STREAM = b"ARROW1", b"\xff\xff\xff\xff"


def _start(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(6)


def is_column_file(path: Path) -> bool:
    """Whether a file is parquet or Arrow, by its first bytes."""
    start = _start(path)
    return start[:4] in (PARQUET, ARROW_STREAM) or start == ARROW_FILE


def _batches(path: Path, columns: frozenset[str] | None) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow.parquet

    start = _start(path)
    if start[:4] == PARQUET:
        file = pyarrow.parquet.ParquetFile(path)
        names = _those(file.schema_arrow.names, columns)
        yield from file.iter_batches(batch_size=BATCH_ROWS, columns=names)
        return
    for batch in _arrow_batches(path, start == ARROW_FILE):
        yield batch.select(_those(batch.schema.names, columns))


def _those(names: list[str], columns: frozenset[str] | None) -> list[str]:
    # All, where none is known: rows without a column would be no rows.
    return [name for name in names if columns is None or name in columns] or names


def _arrow_batches(path: Path, indexed: bool) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:
        if indexed:
            reader = pyarrow.ipc.open_file(file)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            batches = pyarrow.ipc.open_stream(file)
        yield from batches


def unopened(path: Path, columns: frozenset[str]) -> dict[str, int]:
    """How many rows hold something in each column that is not among `columns`.

    By what the file says of itself: the columns are not opened. In a parquet file, whose counts of
    nulls are those of the innermost values, and may be missing, it is a bound from above. Damage is
    told where the rows are read.
    """
    import pyarrow

    if not is_column_file(path):
        return {}
    try:
        return _parquet_held(path, columns) if _start(path)[:4] == PARQUET else _held(path, columns)
    except (pyarrow.ArrowException, OSError):
        return {}


def _held(path: Path, columns: frozenset[str]) -> dict[str, int]:
    held: Counter[str] = Counter()
    for batch in _arrow_batches(path, _start(path) == ARROW_FILE):
        for name in _others(batch.schema.names, columns):
            held[name] += batch.num_rows - batch.column(name).null_count
    return {name: count for name, count in held.items() if count}


def _parquet_held(path: Path, columns: frozenset[str]) -> dict[str, int]:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    others = _others(file.schema_arrow.names, columns)
    held: Counter[str] = Counter()
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        most: dict[str, int] = {}  # of the values within a column
        for index in range(group.num_columns):
            chunk = group.column(index)
            name = chunk.path_in_schema.split(".")[0]
            most[name] = max(most.get(name, 0), min(group.num_rows, _values(chunk)))
        held.update({name: most.get(name, 0) for name in others})
    return {name: count for name, count in held.items() if count}


def _values(chunk: Any) -> int:
    """Values of a column's chunk that are no nulls; all, if it does not say."""
    counted = chunk.statistics
    known = counted is not None and counted.has_null_count
    return int(chunk.num_values - counted.null_count if known else chunk.num_values)


def _others(names: list[str], columns: frozenset[str]) -> list[str]:
    return [name for name in names if name not in columns and not columns.isdisjoint(names)]


def column_rows(path: Path, columns: frozenset[str] | None = None) -> Iterator[tuple[int, Any]]:
    """(number, row) of a parquet or Arrow file, whose damage is a RowError and the last row.

    Of `columns` alone, where they are given and one of them is there.
    """
    import pyarrow

    expected = "parquet data" if _start(path)[:4] == PARQUET else "Arrow data"
    number, batches = 0, _batches(path, columns)
    while True:
        # Opening is inside, too: a damaged footer is a row of the stream like all other damage.
        try:
            batch = next(batches, None)
        except (pyarrow.ArrowException, OSError) as error:
            yield number + 1, RowError("file", str(error)[:80], expected, "damaged file")
            return
        if batch is None:
            return
        schema = str(batch.schema)
        mixed = any(name in schema for name in OBJECTS)
        for index in range(batch.num_rows):
            number += 1
            # Row by row, although a whole batch is faster: a value that Python has no form for
            # costs itself alone. A ValueError is text that is not UTF-8, too.
            try:
                row = batch.slice(index, 1).to_pylist()[0]
            except (ValueError, OverflowError, pyarrow.ArrowException):
                row = {name: _value(batch.column(name)[index]) for name in batch.schema.names}
            yield number, _without_others_fields(row) if mixed else row


def _without_others_fields(value: Any) -> Any:
    """A row whose tools and calls have no nulls: a column's objects have the fields of each other.

    Text among them says what it means, and stays.
    """
    if isinstance(value, list):
        return [_without_others_fields(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: (_without_nulls if name in OBJECTS else _without_others_fields)(inner)
        for name, inner in value.items()
    }


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _value(scalar: pyarrow.Scalar) -> Any:
    """A value of a column; a RowError stands for what cannot be read, also within it."""
    import pyarrow

    if scalar.is_valid and isinstance(scalar, pyarrow.StructScalar):
        return {name: _value(inner) for name, inner in scalar.items()}
    if scalar.is_valid and isinstance(scalar, pyarrow.ListScalar | pyarrow.LargeListScalar):
        return [_value(inner) for inner in scalar.values]
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return RowError("value", "bytes that do not decode", "UTF-8", "not UTF-8")
    except (ValueError, OverflowError, pyarrow.ArrowException) as error:
        return RowError("value", str(error)[:60], f"a {scalar.type}", "value that no reader has")
