"""Win rates, intervals with known bounds and coverage, and the best-of-n formulas against enumeration."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from algorithms import winrate
from algorithms.winrate import (
    best_of_n_kl,
    best_of_n_win_rate,
    bootstrap_interval,
    expected_max,
    outcomes,
    wilson_interval,
    win_rate,
)


def test_ties_count_half() -> None:
    a, b = [1.0, 2.0, 3.0, math.inf], [0.0, 2.0, 4.0, math.inf]
    assert outcomes(a, b).tolist() == [1.0, 0.5, 0.0, 0.5]
    assert win_rate(a, b) == 0.5
    assert win_rate(a[:2], b[:2]) == 0.75
    rng = np.random.default_rng(0)
    x, y = rng.integers(5, size=(2, 50))
    assert win_rate(x, y) + win_rate(y, x) == pytest.approx(1.0)


def test_bootstrap_interval_is_that_of_the_mean() -> None:
    values = np.repeat([0.0, 1.0], 200)
    low, high = bootstrap_interval(values, seed=3)
    half_width = 1.959964 * 0.5 / math.sqrt(400)
    assert (low, high) == pytest.approx((0.5 - half_width, 0.5 + half_width), abs=0.004)
    narrow = bootstrap_interval(values, confidence=0.5, seed=3)
    assert low < narrow[0] < 0.5 < narrow[1] < high
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
    intervals = [bootstrap_interval(rng.random(80) < 0.7, resamples=300, seed=i) for i in range(200)]
    coverage = np.mean([low <= 0.7 <= high for low, high in intervals])
    assert 0.88 < coverage < 0.99


@pytest.mark.parametrize(
    ("wins", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
        (5, 10, 0.2365931, 0.7634069),
        (2.5, 10, 0.0809478, 0.5578186),
    ],
)
def test_wilson_interval(wins: float, total: int, low: float, high: float) -> None:
    assert wilson_interval(wins, total) == pytest.approx((low, high), abs=1e-6)
    # Its defining equation: at both bounds the test of p against the observed rate is just significant.
    for bound in wilson_interval(wins, total):
        z2 = 1.959963985**2
        assert (wins / total - bound) ** 2 == pytest.approx(z2 * bound * (1 - bound) / total, abs=1e-9)


@pytest.mark.parametrize(
    ("n", "kl", "rate"),
    [
        (1, 0.0, 0.5),
        (2, 0.193147, 0.6667),
        (4, 0.636294, 0.8),
        (16, 1.835089, 0.941176),
        (64, 3.174508, 0.984615),
    ],
)
def test_goldens_of_best_of_n(n: int, kl: float, rate: float) -> None:
    assert best_of_n_kl(n) == pytest.approx(kl, abs=1e-6)
    assert best_of_n_win_rate(n) == pytest.approx(rate, abs=5e-5)


def test_expected_max_is_the_mean_over_all_subsets() -> None:
    scores = [3.0, -1.0, 2.0, 2.0, 7.5, 0.0]
    for n in range(1, 7):
        enumerated = np.mean([max(subset) for subset in combinations(scores, n)])
        assert expected_max(scores, n) == pytest.approx(enumerated)
    # Of the numbers 1 to N: n (N + 1) / (n + 1). C(2000, 1000) is far beyond a float.
    assert expected_max(np.arange(1.0, 2001.0), 1000) == pytest.approx(1000 * 2001 / 1001)


def test_user_mistakes_name_both_numbers() -> None:
    with pytest.raises(ValueError, match="2 scores of a but 3 of b"):
        win_rate([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="1 of 2 scores_b are NaN"):
        win_rate([1, 2], [1, math.nan])
    with pytest.raises(ValueError, match=r"shape \[0\]"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="confidence is 95"):
        bootstrap_interval([1.0], confidence=95)
    with pytest.raises(ValueError, match="resamples is 0"):
        bootstrap_interval([1.0], resamples=0)
    with pytest.raises(ValueError, match="wins is 11 of 10"):
        wilson_interval(11, 10)
    with pytest.raises(ValueError, match="confidence is 1.0"):
        wilson_interval(1, 10, confidence=1.0)
    with pytest.raises(ValueError, match="2 scores cannot estimate the best of 3"):
        expected_max([1, 2], 3)
    for formula in (best_of_n_kl, best_of_n_win_rate):
        with pytest.raises(ValueError, match="n is 0"):
            formula(0)
