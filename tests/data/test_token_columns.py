"""Token rows in files: what comes back is what was written, in whichever order, in any process."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from rayward.data import token_columns
from rayward.data.ragged import Behind, Chosen, Ragged, Rows
from rayward.data.token_columns import MappedRows, MappedWeights, TokenFile, column, token_batch

RNG = np.random.default_rng(0)
LENGTHS = [3, 1, 40, 2, 7, 7, 1, 300, 5, 2]
IDS = [RNG.integers(0, 2**31 - 1, length).tolist() for length in LENGTHS]
# Runs that change at any token, weights that float32 has to round, and rows of one weight.
WEIGHTS = [RNG.choice([0.0, 1.0, 0.1], length).tolist() for length in LENGTHS]
WEIGHTS[4] = [0.0] * 7


@pytest.fixture(params=[2, 4096])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The rows in a file, in batches of at most so many and in one."""
    monkeypatch.setattr(token_columns, "BATCH_ROWS", request.param)
    with TokenFile(tmp_path / "rows.arrow") as file:
        for row in range(len(IDS)):
            file.add(token_batch(IDS[row : row + 1], WEIGHTS[row : row + 1]))
    return tmp_path / "rows.arrow"


def same(left: Ragged, right: Ragged) -> bool:
    return (
        left.values.dtype == right.values.dtype
        and np.array_equal(left.values, right.values)
        and np.array_equal(left.lengths, right.lengths)
    )


@pytest.mark.parametrize("chosen", [None, np.array([9, 0, 7, 7, 2])])
def test_rows_of_a_file_are_those_in_memory(path: Path, chosen: np.ndarray | None) -> None:
    order = range(len(IDS)) if chosen is None else chosen.tolist()
    pairs: list[tuple[Rows, Ragged]] = [
        (MappedRows(path, "ids"), Ragged.of([IDS[row] for row in order])),
        (
            MappedWeights(path, np.float32),
            Ragged.of([WEIGHTS[row] for row in order], np.float32),
        ),
    ]
    for rows_of_file, memory in pairs:
        mapped = rows_of_file if chosen is None else Chosen(rows_of_file, chosen)
        assert len(mapped) == len(memory)
        assert np.array_equal(mapped.lengths, memory.lengths)
        assert np.array_equal(mapped.offsets, memory.offsets)
        for rows in ([], [0], [4, 1, 1, 3], range(len(memory))):
            assert same(mapped.take(rows), memory.take(rows)), rows
        assert all(np.array_equal(mapped[row], memory[row]) for row in range(len(memory)))
        values = np.concatenate([part.values for part in mapped.parts()])
        assert np.array_equal(values, memory.values)
        # To another process goes the file's name, not the rows.
        sent = pickle.dumps(mapped)
        assert len(sent) < 1000 and same(pickle.loads(sent).take([2, 1]), memory.take([2, 1]))


def test_rows_behind_others_are_those_of_both(path: Path) -> None:
    mapped, more = MappedRows(path, "ids"), Ragged.of([[7, 8], [9]])
    behind = Behind(mapped, more)
    assert behind.lengths.tolist() == [*LENGTHS, 2, 1]
    for row, ids in enumerate([*IDS, [7, 8], [9]]):
        assert behind[row].tolist() == ids
    last = len(LENGTHS)
    assert same(behind.take([last, 0, last + 1]), Ragged.of([[7, 8], IDS[0], [9]]))
    assert len(pickle.dumps(behind)) < 1000


def test_a_file_without_rows_is_one(tmp_path: Path) -> None:
    with TokenFile(tmp_path / "none.arrow"):
        pass
    for rows in (
        MappedRows(tmp_path / "none.arrow", "ids"),
        MappedWeights(tmp_path / "none.arrow"),
    ):
        assert len(rows) == len(rows.lengths) == len(rows.take([])) == 0
        assert list(rows.offsets) == [0]


def test_further_columns_come_back_whole(tmp_path: Path) -> None:
    import pyarrow

    with TokenFile(tmp_path / "ranks.arrow") as file:
        for start in (0, 3):
            ranks = pyarrow.array(
                [None if row == 4 else row / 2 for row in range(start, start + 3)]
            )
            file.add(token_batch([[1, 2]] * 3, [[0, 1]] * 3, {"rank": ranks}))
    found = column(tmp_path / "ranks.arrow", "rank").to_pylist()
    assert found == [0.0, 0.5, 1.0, 1.5, None, 2.5]
