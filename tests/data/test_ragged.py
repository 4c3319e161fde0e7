"""Rows without padding: what goes in comes out, whatever the lengths, and lists of rows say the
same.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from rayward.data.ragged import Ragged, join, stack

Rows = list[list[int]]


def cases() -> list[Rows]:
    rng = random.Random(0)
    made: list[Rows] = [[], [[]], [[1]], [[], [], []], [[], [5, 6], []], [[1, 2, 3], [4]]]
    for _ in range(30):
        lengths = rng.choices((0, 1, 2, 7), k=rng.randrange(1, 9))
        made.append([[rng.randrange(1, 100) for _ in range(length)] for length in lengths])
    return made


CASES = cases()


def lists(ragged: Ragged) -> Rows:
    return [ragged[row].tolist() for row in range(len(ragged))]


@pytest.mark.parametrize("rows", CASES)
def test_rows_come_back(rows: Rows) -> None:
    ragged = Ragged.of(rows)
    assert len(ragged) == len(rows) and lists(ragged) == rows == [row.tolist() for row in ragged]
    assert ragged.values.dtype == np.int32 and ragged.lengths.tolist() == [len(row) for row in rows]
    assert ragged.values.tolist() == [value for row in rows for value in row]
    assert lists(Ragged(ragged.values, ragged.lengths)) == rows, "values and lengths say everything"


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_the_type_asked_for_is_kept_even_without_rows(dtype: type) -> None:
    for rows in ([], [[]], [[1, 2], []]):
        ragged = Ragged.of(rows, dtype)
        assert ragged.values.dtype == dtype
        assert ragged.take([]).values.dtype == ragged.padded().dtype == dtype


@pytest.mark.parametrize("rows", CASES)
def test_take_is_that_of_a_list(rows: Rows) -> None:
    rng = random.Random(len(rows))
    ragged = Ragged.of(rows)
    orders = [[], list(range(len(rows))), list(range(len(rows)))[::-1]]
    if rows:
        orders.append([rng.randrange(len(rows)) for _ in range(2 * len(rows))])
    for order in orders:
        taken = ragged.take(order)
        assert lists(taken) == [rows[row] for row in order]
        assert lists(ragged.take(np.array(order, dtype=np.int64))) == lists(taken)
    if rows:
        order = rng.sample(range(len(rows)), len(rows))
        assert lists(ragged.take(order).take(np.argsort(order))) == rows, "an order and its inverse"


@pytest.mark.parametrize("rows", CASES)
def test_padding_stands_to_the_right_and_nowhere_else(rows: Rows) -> None:
    padded = Ragged.of(rows).padded()
    width = max((len(row) for row in rows), default=0)
    assert padded.shape == (len(rows), width)
    assert padded.tolist() == [row + [0] * (width - len(row)) for row in rows]


@pytest.mark.parametrize("rows", CASES)
def test_join_and_stack_are_those_of_lists(rows: Rows) -> None:
    ragged, reverse = Ragged.of(rows), Ragged.of(rows[::-1])
    assert lists(join(ragged, reverse)) == [
        left + right for left, right in zip(rows, rows[::-1], strict=True)
    ]
    assert lists(stack([ragged, reverse, ragged])) == rows + rows[::-1] + rows
    assert lists(stack([ragged.take([row]) for row in range(len(rows))] or [ragged])) == rows


def test_other_values_in_the_same_rows() -> None:
    ragged = Ragged.of([[1, 2], [], [3]])
    assert [row.tolist() for row in ragged.like(np.array([0.5, 1.5, 2.5]))] == [
        [0.5, 1.5],
        [],
        [2.5],
    ]


def test_lengths_that_do_not_fit_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="add up to 4, but there are 3 values"):
        Ragged(np.arange(3), np.array([2, 2]))
    with pytest.raises(ValueError, match="add up to 3, but there are 2 values"):
        Ragged.of([[1, 2], [3]]).like(np.arange(2))
    with pytest.raises(ValueError, match="2 rows on the left, 1 on the right"):
        join(Ragged.of([[1], [2]]), Ragged.of([[1]]))
    with pytest.raises(IndexError):
        Ragged.of([[1], [2]])[2]
