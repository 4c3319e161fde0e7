"""Outcomes, intervals with known bounds and coverage, and the KL of best-of-n."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rayward.algorithms import winrate
from rayward.algorithms.winrate import best_of_n_kl, bootstrap_interval, outcomes


def test_ties_count_half() -> None:
    a, b = [1.0, 2.0, 3.0, math.inf], [0.0, 2.0, 4.0, math.inf]
    assert outcomes(a, b).tolist() == [1.0, 0.5, 0.0, 0.5]
    x, y = np.random.default_rng(0).integers(5, size=(2, 50))
    assert np.array_equal(outcomes(x, y) + outcomes(y, x), np.ones(50))


def test_bootstrap_interval_is_that_of_the_mean() -> None:
    values = np.repeat([0.0, 1.0], 200)
    low, high = bootstrap_interval(values, seed=3)
    half_width = 1.959964 * 0.5 / math.sqrt(400)
    assert (low, high) == pytest.approx((0.5 - half_width, 0.5 + half_width), abs=0.004)
    assert bootstrap_interval(values, seed=3) == (low, high)
    assert bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_bootstrap_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(30)
    whole = bootstrap_interval(values, resamples=100, seed=5)
    monkeypatch.setattr(winrate, "_DRAWS_PER_CHUNK", 7 * 30)
    assert bootstrap_interval(values, resamples=100, seed=5) == whole
    assert bootstrap_interval(values, resamples=100, seed=6) != whole


def test_bootstrap_covers_the_truth() -> None:
    rng = np.random.default_rng(1)
    intervals = [
        bootstrap_interval(rng.random(80) < 0.7, resamples=300, seed=i) for i in range(200)
    ]
    coverage = np.mean([low <= 0.7 <= high for low, high in intervals])
    assert 0.88 < coverage < 0.99


@pytest.mark.parametrize(
    ("n", "kl"), [(1, 0.0), (2, 0.193147), (4, 0.636294), (16, 1.835089), (64, 3.174508)]
)
def test_goldens_of_best_of_n(n: int, kl: float) -> None:
    assert best_of_n_kl(n) == pytest.approx(kl, abs=1e-6)


def test_user_mistakes_name_both_numbers() -> None:
    with pytest.raises(ValueError, match="2 scores of a but 3 of b"):
        outcomes([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="1 of 2 scores_b are NaN"):
        outcomes([1, 2], [1, math.nan])
    with pytest.raises(ValueError, match=r"shape \[0\]"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="resamples is 0"):
        bootstrap_interval([1.0], resamples=0)
    with pytest.raises(ValueError, match="n is 0"):
        best_of_n_kl(0)
