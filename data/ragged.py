"""Rows of different lengths in one flat array: how token sequences travel between processes, never
padded.

Legend: B = rows, N = items of all rows, T = longest row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """B rows of `lengths` items each, back to back in `values_N`."""

    values: np.ndarray
    lengths: np.ndarray
    offsets: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if int(self.lengths.sum()) != len(self.values):
            raise ValueError(
                f"lengths add up to {int(self.lengths.sum())}, but there are {len(self.values)} "
                "values"
            )
        object.__setattr__(
            self, "offsets", np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        )

    @classmethod
    def of(cls, rows: Iterable[Sequence], dtype: type = np.int32) -> Ragged:
        """Rows of any sequences."""
        arrays: list[np.ndarray] = [np.asarray(row, dtype=dtype) for row in rows]
        values = np.concatenate(arrays) if arrays else np.zeros(0, dtype)
        return cls(
            values.astype(dtype, copy=False), np.array([len(row) for row in arrays], dtype=np.int64)
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def take(self, rows: Sequence[int] | np.ndarray) -> Ragged:
        """The given rows, in the given order."""
        if len(rows) == 0:
            return Ragged(self.values[:0], self.lengths[:0])
        return Ragged(np.concatenate([self[row] for row in rows]), self.lengths[np.asarray(rows)])

    def like(self, values: np.ndarray) -> Ragged:
        """Other values, one for each item, in the same rows."""
        return Ragged(values, self.lengths)

    def padded(self) -> np.ndarray:
        """[B, T] with zeros right of each row."""
        width = int(self.lengths.max(initial=0))
        out = np.zeros((len(self), width), dtype=self.values.dtype)
        out[np.arange(width)[None, :] < self.lengths[:, None]] = self.values
        return out


def join(left: Ragged, right: Ragged) -> Ragged:
    """Row by row, `left` followed by `right`."""
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
    """One rank's results: which rows, and their values."""

    rows: np.ndarray
    values: Ragged


def merge(parts: Sequence[Shard], num_rows: int) -> np.ndarray:
    """The values of all rows in row order, flat. Raises ValueError where a row is missing or came
    twice.
    """
    position = {int(row): (part.values, i) for part in parts for i, row in enumerate(part.rows)}
    counted = sum(len(part.rows) for part in parts)
    if len(position) != num_rows or counted != num_rows:
        raise ValueError(f"{counted} results for {len(position)} of {num_rows} rows")
    return np.concatenate([values[i] for values, i in (position[row] for row in range(num_rows))])
