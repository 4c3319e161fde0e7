"""What a training knows of its held-out rows, taken up by other ranks than wrote it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from rayward.actors.training.validation import Validation
from rayward.data.ragged import Ragged, Shard, merge


def validation(result: object) -> Validation:
    job = SimpleNamespace(validate_every=2, keep="best")
    return Validation("accuracy", True, job, 4, lambda: 0.5, lambda: result)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_every_row_is_one_ranks_again(ranks: int) -> None:
    rows = [[3, 0], [4], [1, 2, 5]]
    states = []
    for own in rows:
        shard = Shard(np.array(own), Ragged.of([[float(row)] for row in own], np.float32))
        written = validation(shard)
        written.after(2)
        states.append(written.state())
    resumed = [validation(None) for _ in range(ranks)]
    for rank, one in enumerate(resumed):
        one.restore(states, rank, ranks)
    assert {one.kept_step for one in resumed} == {2}
    values = merge([one.result for one in resumed], 6)
    assert values.dtype == np.float32 and values.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_state_without_results() -> None:
    for looked in (True, False):
        written = validation(None)
        if looked:
            written.after(2)
        resumed = validation(None)
        resumed.restore([written.state()], 1, 2)
        assert resumed.state()["written"] == written.written and resumed.result is None
