"""Token rows in Arrow files: written once, then read where they lie, without a copy in memory.

A file has a row for each token row: its ids, and its weights as runs, for they change at the edges
of turns only (prompt 120 x 0, answer 40 x 1). Whoever reads opens the file's memory map: the rows
of a step come from the disk or its cache, those of others are never read. Pickled, the rows are the
file's path and no more, so each process of a training opens the file for itself.

Columns: `ids` large_list<int32>, `run_lengths` list<int32>, `run_weights` list<float32>; others as
the writer gives them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from rayward.data.ragged import PART_ROWS, Ragged, Unread

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS, BATCH_BYTES = PART_ROWS, 1 << 23
"""A batch of the file has at most about as many: a reader holds a few numbers of each."""


# ---- writing


def token_batch(
    ids: Sequence[Sequence[int]],
    weights: Sequence[Sequence[float]],
    more: Mapping[str, pyarrow.Array] | None = None,
) -> pyarrow.RecordBatch:
    """Rows for a file: token ids and their weights; `more`: further columns."""
    import pyarrow

    flat = Ragged.of(ids)
    # Not by arrays: making one of a row takes longer than this.
    runs = [[(weight, len(list(run))) for weight, run in groupby(row)] for row in weights]
    run_lengths = Ragged.of([[length for _, length in row] for row in runs])
    run_weights = Ragged.of([[weight for weight, _ in row] for row in runs], np.float32)
    columns = {
        "ids": pyarrow.LargeListArray.from_arrays(flat.offsets, flat.values),
        "run_lengths": _lists(run_lengths),
        "run_weights": _lists(run_weights),
        **(more or {}),
    }
    return pyarrow.RecordBatch.from_pydict(columns)


def _lists(rows: Ragged) -> pyarrow.ListArray:
    import pyarrow

    return pyarrow.ListArray.from_arrays(rows.offsets.astype(np.int32), rows.values)


class TokenFile:
    """An Arrow file to which batches are added; small ones are joined.

    Without a batch it has no rows and no columns but those of tokens.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: pyarrow.RecordBatchFileWriter | None = None
        self._waiting: list[pyarrow.RecordBatch] = []

    def __enter__(self) -> TokenFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is None:
            if self._writer is None and not self._waiting:
                self._waiting = [token_batch([], [])]
            self._write()
        if self._writer is not None:
            self._writer.close()

    def add(self, batch: pyarrow.RecordBatch) -> None:
        """Rows as `token_batch` makes them, all with the same columns."""
        if not batch.num_rows:
            return
        self._waiting.append(batch)
        waiting_bytes = sum(waiting.nbytes for waiting in self._waiting)
        if waiting_bytes > BATCH_BYTES or sum(map(len, self._waiting)) > BATCH_ROWS:
            self._write()

    def _write(self) -> None:
        import pyarrow

        if not self._waiting:
            return
        if self._writer is None:
            self._writer = pyarrow.ipc.new_file(str(self.path), self._waiting[0].schema)
        for batch in pyarrow.Table.from_batches(self._waiting).combine_chunks().to_batches():
            self._writer.write_batch(batch)
        self._waiting = []


# ---- reading


class MappedRows(Unread):
    """Rows of a column of lists in a file."""

    def __init__(self, path: str | Path, column: str) -> None:
        self.path, self.column = Path(path), column
        arrays = [batch.column(column) for batch in _batches(self.path)]
        # Views of the map: the numbers stay in the file until a row is read.
        self._parts = [
            Ragged(
                _view(array.values)[array.offsets[0].as_py() : array.offsets[-1].as_py()],
                np.diff(_view(array.offsets)).astype(np.int64),
            )
            for array in arrays
        ]
        self._starts = np.cumsum([0, *map(len, self._parts)])
        self.dtype = self._parts[0].dtype if self._parts else np.dtype(np.int32)
        lengths = [part.lengths for part in self._parts]
        self.lengths = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedRows, (self.path.resolve(), self.column)

    def __getitem__(self, row: int) -> np.ndarray:
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._parts[part][row - int(self._starts[part])]


class MappedWeights(Unread):
    """The weights of a file's rows, one a token."""

    def __init__(self, path: str | Path, dtype: type = np.float32) -> None:
        self.path, self.dtype = Path(path), np.dtype(dtype)
        self._run_lengths = MappedRows(path, "run_lengths")
        self._run_weights = MappedRows(path, "run_weights")
        # A row has as many weights as ids.
        self.lengths = MappedRows(path, "ids").lengths

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedWeights, (self.path.resolve(), self.dtype)

    def __getitem__(self, row: int) -> np.ndarray:
        weights = np.repeat(self._run_weights[row], self._run_lengths[row])
        return weights.astype(self.dtype, copy=False)


def column(path: str | Path, name: str) -> pyarrow.Array:
    """A column of single numbers, whole."""
    import pyarrow

    pieces = [batch.column(name) for batch in _batches(Path(path))]
    return pyarrow.chunked_array(pieces).combine_chunks() if pieces else pyarrow.array([])


def _batches(path: Path) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow

    # The buffers of the batches keep the map open.
    reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
    return (reader.get_batch(number) for number in range(reader.num_record_batches))


def _view(array: pyarrow.Array) -> np.ndarray:
    view: np.ndarray = array.to_numpy(zero_copy_only=True)
    return view
