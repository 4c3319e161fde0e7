"""Win rates of AlpacaEval, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rayward.algorithms.judging.win_rates import difference, win_rate

NONE = float("nan")


def test_a_win_rate_by_hand() -> None:
    # Shares 1, 0, 0.5 (old code 0), 0.5, 0.25; one is missing. Mean 0.45; squared distances
    # 0.3025 + 0.2025 + 2 * 0.0025 + 0.04 = 0.55, over 4, root, over the root of 5.
    got = win_rate([2, 1, 0, 1.5, 1.25, NONE])
    assert got["win_rate"] == pytest.approx(45)
    assert got["standard_error"] == pytest.approx(100 * math.sqrt(0.55 / 4 / 5))
    # One win and two ties of five.
    assert got["discrete_win_rate"] == pytest.approx(40)
    assert got["n_total"] == 5
    assert 0 <= got["low"] < 45 < got["high"] <= 100


def test_without_verdicts_there_are_no_rates() -> None:
    assert win_rate([NONE])["win_rate"] is None and win_rate([])["n_total"] == 0
    one = win_rate([2])
    assert (one["win_rate"], one["standard_error"], one["low"]) == (100, None, 100)


def test_a_difference_is_of_the_instructions_that_both_have() -> None:
    got = difference([2, 1, 1.5, NONE, 2], [1, 1, 2, 2, NONE])
    # Gaps 1, 0, -0.5.
    assert got["difference"] == pytest.approx(100 * 0.5 / 3)
    assert (got["n_total"], got["better"], got["worse"]) == (3, 1, 1)
    with pytest.raises(ValueError, match="no instruction in common"):
        difference([NONE, 2], [2, NONE])
    with pytest.raises(ValueError, match="3 verdicts of a but 2 of b"):
        difference([1, 1, 1], [2, 2])


def test_pairs_make_the_interval_of_a_difference_narrow() -> None:
    """Two that always get the same verdict differ by 0 for sure, however the verdicts vary."""
    preferences_N = 1 + np.random.default_rng(0).random(200)
    got = difference(preferences_N, preferences_N)
    assert (got["low"], got["difference"], got["high"]) == (0, 0, 0)
