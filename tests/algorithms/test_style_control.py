"""Rates without the advantage of style: features by hand, strengths recovered from verdicts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rayward.algorithms.judging.style_control import controlled, differences

ROWS = 3000


def logistic(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def test_features_by_hand() -> None:
    """(30 - 10) / 40 and (10 - 30) / 40: deviation 1/2 times the root of 2. Headers 3 of 30 and 1
    of 10 characters: none; lists differ in neither.
    """
    got = differences([[30, 3, 0], [10, 1, 0]], [[10, 1, 0], [30, 3, 0]])
    assert got[:, 0] == pytest.approx([0.5 / math.sqrt(0.5), -0.5 / math.sqrt(0.5)])
    assert (got[:, 1:] == 0).all()
    # Densities 2 / 10 and 0: 0.2 / 1.2 before the deviation. Empty answers divide by nothing.
    one, other = differences([[10, 2], [0, 0]], [[10, 0], [0, 0]])
    assert one[1] == pytest.approx((0.2 / 1.2) / ((0.2 / 1.2) / math.sqrt(2))) and other[1] == 0


def test_strengths_are_those_that_made_the_verdicts() -> None:
    rng = np.random.default_rng(0)
    style_NS, model_N = rng.normal(0.5, 1, (ROWS, 2)), rng.integers(0, 3, ROWS)
    strength_M = np.array([-0.5, 0.0, 1.0])
    share_N = logistic(strength_M[model_N] + style_NS @ [0.8, -0.3])
    got = controlled(share_N, np.ones(ROWS), style_NS, model_N.tolist(), range(ROWS))
    # Targets without noise have one best fit.
    assert got.rate_M == pytest.approx(100 * logistic(strength_M), abs=1e-3)
    assert got.weights_S == pytest.approx([0.8, -0.3], abs=1e-4)
    raw = [100 * share_N[model_N == number].mean() for number in range(3)]
    assert all(np.abs(raw - got.rate_M) > 0.9), "the raw rates are others"
    won_N = (rng.random(ROWS) < share_N).astype(float)
    noisy = controlled(won_N, np.ones(ROWS), style_NS, model_N.tolist(), range(ROWS))
    assert (noisy.low_M < got.rate_M).all() and (got.rate_M < noisy.high_M).all()


def test_a_weight_is_a_row_so_many_times() -> None:
    rng = np.random.default_rng(1)
    share_N, style_NS = rng.random(40), rng.normal(size=(40, 2))
    weight_N = rng.integers(1, 4, 40)
    some = controlled(share_N, weight_N, style_NS, [0] * 40, range(40))
    twice_N = np.repeat(np.arange(40), weight_N)
    count = len(twice_N)
    rows = controlled(
        share_N[twice_N], np.ones(count), style_NS[twice_N], [0] * count, range(count)
    )
    assert some.rate_M == pytest.approx(rows.rate_M) and some.weights_S == pytest.approx(
        rows.weights_S
    )
    # A tie is half a win: once won and once lost is the same.
    both = np.concatenate([np.ones(40), np.zeros(40)])
    halves = controlled([0.5] * 40, [2] * 40, style_NS, [0] * 40, range(40))
    split = controlled(both, [1] * 80, np.tile(style_NS, (2, 1)), [0] * 80, range(80))
    assert halves.rate_M == pytest.approx(split.rate_M) and halves.rate_M == pytest.approx([50])


def test_one_that_always_wins_is_finite() -> None:
    style_NS = np.random.default_rng(2).normal(size=(50, 4))
    got = controlled([1.0] * 50, [1] * 50, style_NS, [0] * 50, range(50))
    assert 99.9 < got.rate_M[0] <= 100 and np.isfinite(got.weights_S).all()
    assert 99.9 < got.low_M[0] <= got.high_M[0] <= 100
