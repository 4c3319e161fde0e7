"""Agreement of judges, against numbers worked out by hand and scikit-learn's and scipy's."""

from __future__ import annotations

import numpy as np
import pytest

from rayward.algorithms.judging.agreement import (
    accuracy,
    better_than,
    longer_preferred,
    pairs_in_order,
    same,
    spearman,
)

JUDGE = [0, 0, 1, 1, 0.5, 0.5, 1, 0]
LABEL = [0, 1, 1, 1, 0.5, 0, 0.5, 0]
EACH = list(range(8))


def test_kappa_by_hand() -> None:
    """Equal in 5 of 8. By chance: 3/8 * 3/8 + 2/8 * 2/8 + 3/8 * 3/8 = 22/64."""
    got = same(JUDGE, LABEL, EACH)
    assert got["same"]["mean"] == pytest.approx(5 / 8) and got["same"]["n"] == 8
    assert got["kappa"]["mean"] == pytest.approx((5 / 8 - 22 / 64) / (1 - 22 / 64))
    assert got["kappa"]["low"] < got["kappa"]["mean"] < got["kappa"]["high"]


def test_kappa_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(0)
    for _ in range(5):
        one, other = rng.integers(0, 3, (2, 50))
        expected = cohen_kappa_score(one, other)
        got = same(one / 2, other / 2, range(50))
        assert got["kappa"]["mean"] == pytest.approx(expected)


def test_judges_that_always_say_one_thing() -> None:
    """All alike: equal for sure, and no more than by chance, so there is no kappa."""
    got = same([1] * 5, [1] * 5, range(5))
    assert got["same"]["mean"] == 1 and got["kappa"]["mean"] is None
    # "First" against labels of which half are so: equal in half, and kappa 0.
    assert same([0] * 4, [0, 0, 1, 1], range(4))["kappa"]["mean"] == 0
    assert same([], [], [])["same"] == {"mean": None, "low": None, "high": None, "n": 0}


def test_accuracy_is_of_labels_that_prefer_one() -> None:
    # Labels without ties: right, wrong, right, right, half, right.
    got = accuracy(JUDGE, LABEL, EACH)
    assert got["mean"] == pytest.approx(4.5 / 6) and got["n"] == 6
    assert accuracy([1], [0.5], [0])["mean"] is None
    gap = better_than(JUDGE, [1 - value for value in LABEL], LABEL, EACH)
    assert gap["mean"] == pytest.approx(4.5 / 6) and gap["n"] == 6


def test_length() -> None:
    """Longer is second, second, -, first; verdicts 1, 0, 1, 0: two of three for the longer one."""
    got = longer_preferred([1, 0, 1, 0, 0.5], [5, 5, 0, -5, 9], range(5))
    assert got["mean"] == pytest.approx(2 / 3) and got["n"] == 3


def test_groups_are_drawn_whole() -> None:
    """Ten copies of each of two pairs are two observations, not twenty."""
    judge, label = [0] * 20, [0] * 10 + [1] * 10
    whole = accuracy(judge, label, ["a"] * 10 + ["b"] * 10)
    assert (whole["low"], whole["mean"], whole["high"]) == (0, 0.5, 1)
    single = accuracy(judge, label, range(20))
    assert single["low"] > 0.2 and single["high"] < 0.8


def test_orders() -> None:
    from scipy.stats import kendalltau, spearmanr

    order = [2, 1, 5, 3, 4, 7, 6]
    # Out of order: 2-1, 5-3, 5-4, 7-6.
    assert pairs_in_order(order) == pytest.approx(17 / 21)
    assert spearman(order) == pytest.approx(spearmanr(order, range(7)).statistic)
    tau = kendalltau(order, range(7)).statistic
    assert pairs_in_order(order) == pytest.approx((1 + tau) / 2)
    assert spearman([1, 2, 3]) == 1 and spearman([3.0, 2.0, 1.0]) == -1
