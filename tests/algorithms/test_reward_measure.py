"""What is said of a reward model: against counting by hand, and on scores whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from rayward.algorithms import reward_measure as by

# Two rankings: of three answers, the last two tied, and of two.
SIZES, RANKS = [3, 2], [1, 2, 2, 1, 2]
SCORES, LENGTHS = [0.5, 1.0, -1.0, 2.0, 2.0], [10, 20, 5, 100, 95]


def test_pairs_by_hand() -> None:
    pairs = by.pairs_of(SCORES, SIZES, RANKS, LENGTHS)
    assert pairs.score_P.tolist() == [-0.5, 1.5, 0.0] and pairs.length_P.tolist() == [-10, 5, 5]
    assert pairs.relative_length_P.tolist() == [-0.5, 0.5, 0.05] and pairs.rank_P.tolist() == [
        1,
        1,
        1,
    ]
    assert pairs.ranking_P.tolist() == [0, 0, 1]
    found = by.accuracy(pairs)
    assert (
        found["mean"] == 0.5
        and found["pairs"] == 3
        and found["length_baseline"] == pytest.approx(2 / 3)
    )
    assert by.length_matched(pairs).score_P.tolist() == [0.0]
    assert by.top_1(SCORES, SIZES, RANKS) == pytest.approx((0 + 0.5) / 2)
    # Of the first; the second's are equal.
    assert by.length_correlation(SCORES, SIZES, LENGTHS) == pytest.approx(1.0)
    swapped = by.pairs_of([-s for s in SCORES], SIZES, RANKS, LENGTHS)
    assert by.agreement(pairs, pairs) == pytest.approx(2.5 / 3)
    assert by.agreement(pairs, swapped) == pytest.approx(0.5 / 3)


def test_the_order_in_which_answers_are_given_does_not_count() -> None:
    order = [2, 0, 1, 4, 3]
    given = [[values[i] for i in order] for values in (SCORES, RANKS, LENGTHS)]
    pairs = by.pairs_of(given[0], SIZES, given[1], given[2])
    assert sorted(pairs.score_P) == [-0.5, 0.0, 1.5] and by.accuracy(pairs)["mean"] == 0.5


@pytest.fixture(scope="module")
def known() -> by.Pairs:
    """Pairs whose truth is drawn from the very probabilities that the scores say."""
    rng = np.random.default_rng(0)
    gaps = rng.normal(0, 2, 20_000)
    wins = rng.random(len(gaps)) < 1 / (1 + np.exp(-gaps))
    scores = np.stack([gaps, np.zeros_like(gaps)], 1).ravel()
    ranks = np.stack([np.where(wins, 1, 2), np.where(wins, 2, 1)], 1).ravel()
    return by.pairs_of(scores, [2] * len(gaps), ranks, np.ones(len(scores)))


def test_scores_that_mean_what_they_say_are_calibrated(known: by.Pairs) -> None:
    found = by.calibration(known)
    assert found["error"] < 0.02 and sum(row["pairs"] for row in found["bins"]) == len(known)
    assert by.calibration(replace(known, score_P=known.score_P * 3))["error"] > 0.08, "too sure"
    by_margin = by.by_margin(known)
    assert [row["pairs"] for row in by_margin] == [4000] * 5
    assert all(a["accuracy"] < b["accuracy"] for a, b in pairwise(by_margin))


def test_intervals_are_of_prompts(known: by.Pairs) -> None:
    few = known.where(np.arange(len(known)) < 200)
    low, high = by.accuracy(few)["low"], by.accuracy(few)["high"]
    assert low < by.accuracy(few)["mean"] < high and by.accuracy(few) == by.accuracy(few)
    repeated = by.Pairs(
        *(np.repeat(getattr(few, name), 10) for name in by.Pairs.__dataclass_fields__)
    )
    again = by.accuracy(repeated)
    assert again["high"] - again["low"] == pytest.approx(high - low, rel=0.1), (
        "pairs of one prompt say the same again"
    )


def test_what_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        by.pairs_of([1.0, float("nan")], [2], [1, 2], [1, 1])
    with pytest.raises(ValueError, match="3 answers"):
        by.pairs_of([1.0, 2.0], [3], [1, 2], [1, 1])
    none = by.pairs_of([1.0, 2.0], [2], [1, 1], [1, 1])
    assert (
        len(none) == 0
        and np.isnan(by.accuracy(none)["mean"])
        and by.calibration(none)["error"] == 0
    )
