"""Rows of different lengths in one flat array, never padded: how token sequences travel.

Legend: B = rows, N = items of all rows, T = longest row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

PART_ROWS = 4096


class Rows(Protocol):
    """Rows in memory (`Ragged`) or not (`Unread`), of which some are taken."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[B] items of each row."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Of the items."""
        ...

    @property
    def offsets(self) -> NDArray[np.int64]:
        """[B + 1] where rows that stand back to back begin, and the last one ends."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> np.ndarray: ...

    def take(self, rows: Sequence[int] | np.ndarray) -> Ragged:
        """The given rows in memory, in the given order; a row may come several times."""
        ...

    def parts(self) -> Iterator[Ragged]:
        """All rows in order, as many at a time as fit the memory."""
        ...


@dataclass(frozen=True)
class Ragged:
    """B rows of `lengths` items each, back to back in `values`."""

    values: np.ndarray
    """[N] the items of all rows; the dtype is the caller's."""
    lengths: NDArray[np.int64]
    """[B] items of each row."""
    offsets: NDArray[np.int64] = field(init=False, repr=False)
    """[B + 1] int64: row i is values[offsets[i]:offsets[i + 1]]."""

    def __post_init__(self) -> None:
        num_items = int(self.lengths.sum())
        # Lengths of another batch would cut rows at wrong places, and nothing later would notice.
        if num_items != len(self.values):
            raise ValueError(
                f"lengths add up to {num_items}, but there are {len(self.values)} values"
            )
        offsets = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        object.__setattr__(self, "offsets", offsets)  # the dataclass is frozen

    @classmethod
    def of(cls, rows: Iterable[Sequence | np.ndarray], dtype: type = np.int32) -> Ragged:
        """Rows of any sequences; int32 holds every token id at half the size of int64."""
        arrays: list[np.ndarray] = [np.asarray(row, dtype=dtype) for row in rows]
        values = np.concatenate(arrays) if arrays else np.zeros(0, dtype)
        lengths = np.array([len(row) for row in arrays], dtype=np.int64)
        return cls(values.astype(dtype, copy=False), lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def dtype(self) -> np.dtype:
        """Of the items."""
        return self.values.dtype

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def take(self, rows: Sequence[int] | np.ndarray) -> Ragged:
        """The given rows, in the given order; a row may come several times."""
        if len(rows) == 0:  # np.concatenate refuses an empty list
            return Ragged(self.values[:0], self.lengths[:0])
        return Ragged(np.concatenate([self[row] for row in rows]), self.lengths[np.asarray(rows)])

    def parts(self) -> Iterator[Ragged]:
        """All rows at once: they are in memory already."""
        yield self

    def like(self, values: np.ndarray) -> Ragged:
        """Other values, one for each item, in the same rows."""
        return Ragged(values, self.lengths)

    def padded(self) -> np.ndarray:
        """[B, T] with zeros right of each row."""
        width = int(self.lengths.max(initial=0))
        padded_BT = np.zeros((len(self), width), dtype=self.values.dtype)
        # A mask of [B, T] selects row by row, which is the order of the flat values.
        padded_BT[np.arange(width)[None, :] < self.lengths[:, None]] = self.values
        return padded_BT


class Unread(ABC):
    """Rows that are not in memory, those of a file for one, but what is taken of them."""

    dtype: np.dtype
    lengths: NDArray[np.int64]
    """[B] items of each row."""

    @abstractmethod
    def __getitem__(self, row: int) -> np.ndarray: ...

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """[B + 1] as those of `Ragged`."""
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)

    def take(self, rows: Sequence[int] | np.ndarray) -> Ragged:
        """The given rows in memory, in the given order; a row may come several times."""
        picked = [self[int(row)] for row in rows]
        values = np.concatenate(picked) if picked else np.zeros(0, self.dtype)
        return Ragged(values, np.array([len(row) for row in picked], dtype=np.int64))

    def parts(self) -> Iterator[Ragged]:
        """All rows, PART_ROWS at a time."""
        for start in range(0, len(self), PART_ROWS):
            yield self.take(range(start, min(start + PART_ROWS, len(self))))


class Chosen(Unread):
    """`chosen` rows of others, in this order, where they are."""

    def __init__(self, rows: Rows, chosen: np.ndarray) -> None:
        self.rows, self.chosen = rows, chosen
        self.lengths, self.dtype = rows.lengths[chosen], rows.dtype

    def __getitem__(self, row: int) -> np.ndarray:
        return self.rows[int(self.chosen[row])]


class Behind(Unread):
    """The rows of one, and behind them those of another, where they are."""

    def __init__(self, first: Rows, second: Rows) -> None:
        self.first, self.second = first, second
        self.lengths, self.dtype = np.concatenate([first.lengths, second.lengths]), first.dtype

    def __getitem__(self, row: int) -> np.ndarray:
        count = len(self.first)
        return self.first[row] if row < count else self.second[row - count]


def join(left: Ragged, right: Ragged) -> Ragged:
    """Row by row, `left` followed by `right`. ValueError for unequal numbers of rows."""
    if len(left) != len(right):
        raise ValueError(f"{len(left)} rows on the left, {len(right)} on the right")
    pieces = [piece for row in range(len(left)) for piece in (left[row], right[row])]
    return Ragged(np.concatenate(pieces) if pieces else left.values, left.lengths + right.lengths)


def stack(parts: Sequence[Ragged]) -> Ragged:
    """The rows of all parts, one part after the other."""
    return Ragged(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.lengths for part in parts]),
    )


@dataclass(frozen=True)
class Shard:
    """One rank's results: which rows, and their values.

    A rank gets its rows by the plan of micro-batches (data/packing.py), so they are in no order;
    an empty micro-batch adds none.
    """

    rows: NDArray[np.int64]
    """[rows of this rank] int64, indices into the whole batch."""
    values: Ragged
    """The values of each of `rows`, in the same order."""


def merge(parts: Sequence[Shard], num_rows: int) -> np.ndarray:
    """The values of all rows in row order, flat. ValueError: a row is missing or came twice."""
    values_of = {int(row): part.values[i] for part in parts for i, row in enumerate(part.rows)}
    num_results = sum(len(part.rows) for part in parts)
    # Both counts: a row that came twice and another that is missing would make up for each other.
    if len(values_of) != num_rows or num_results != num_rows:
        raise ValueError(f"{num_results} results for {len(values_of)} of {num_rows} rows")
    return np.concatenate([values_of[row] for row in range(num_rows)])
