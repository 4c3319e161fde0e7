"""RewardBench 2's and RM-Bench's figures, worked out by hand from the papers' rules."""

from __future__ import annotations

from math import tanh

import numpy as np
import pytest

from rayward.algorithms.reward_benches import (
    TIES_WEIGHTS,
    Part,
    best_of,
    figure,
    gaps,
    styles,
    ties,
)


@pytest.mark.parametrize(
    ("right", "wrong", "share"),
    [
        ([2.0], [1.0, 0.0, 1.9], 1),
        ([2.0], [1.0, 2.5, 0.0], 0),
        ([2.0], [2.0, 0.0, 1.0], 1 / 2),
        ([2.0], [2.0, 2.0, 2.0], 1 / 4),
    ],
)
def test_answers_that_share_the_highest_score_share_the_point(right, wrong, share) -> None:
    assert best_of(right, wrong) == share


# Tied and "ref" scores of four prompts; the last one has no "ref".
TIES = [
    (gaps([5, 4, 3], [2, 0]), gaps([4], [1, 2])),  # gap 1, spread 2; gap 2
    (gaps([3, 2.5], [1]), gaps([1], [2])),  # gap 1.5, spread 0.5; gap -1
    (gaps([1, 1], [1]), gaps([3], [0])),  # gap 0, spread 0; gap 3
    (gaps([2, 2], [0]), None),  # gap 2, spread 0
]


def test_ties_are_60_percent_accuracy_and_40_percent_margin() -> None:
    values_N5 = ties(TIES)
    nan = np.nan
    by_hand = [
        [1, 1, 0, 0, tanh(1 / 2 - 1)],
        [1, 0, 1, 0, tanh(-1 / 0.5 - 1)],
        [0, 1, 0, 0, 0],
        [1, nan, nan, nan, nan],
    ]
    np.testing.assert_allclose(values_N5, by_hand)
    found = figure([Part(values_N5, TIES_WEIGHTS)], seed=0)
    # 0.3 * 3/4 + 0.3 * 2/3 + 0.2 * 1/3 + 0.2 * 0 - 0.01 * 0.485724
    assert found["mean"] == pytest.approx(0.486809, abs=1e-6)
    assert found["low"] < found["mean"] < found["high"] and found["n"] == 4


def test_a_perfect_model_has_a_hundredth_more_than_1_and_one_that_is_always_wrong_less_than_0() -> (
    None
):
    perfect = ties([(gaps([9, 9], [0]), gaps([9], [0]))] * 3)
    assert figure([Part(perfect, TIES_WEIGHTS)], 0)["mean"] == pytest.approx(1.01)
    wrong = ties([(gaps([0, 0], [9]), gaps([0], [9]))] * 3)
    assert figure([Part(wrong, TIES_WEIGHTS)], 0)["mean"] == pytest.approx(-0.01)


def test_without_ref_prompts_their_parts_count_nothing() -> None:
    alone = ties([(gaps([9, 9], [0]), None)])
    assert figure([Part(alone, TIES_WEIGHTS)], 0)["mean"] == pytest.approx(0.3)


def test_styles_by_hand_and_equal_scores_are_wrong() -> None:
    assert styles([1, 2, 3], [0, 2, 2.5]).tolist() == [0, pytest.approx(2 / 3), 1]
    assert styles([1, 1, 1], [1, 1, 1]).tolist() == [0, 0, 0]
    assert styles([3, 0, 0], [1, 2, 9]).tolist() == [pytest.approx(1 / 3), pytest.approx(1 / 3), 0]
    with pytest.raises(ValueError, match="2 and 3 scores, but RM-Bench has 3"):
        styles([1, 2], [1, 2, 3])


def test_a_figure_of_several_subsets_is_the_mean_of_theirs_whatever_their_sizes() -> None:
    small, large = np.array([[1.0], [1.0]]), np.zeros((50, 1))
    found = figure([Part(small, (0.5,)), Part(large, (0.5,))], seed=1)
    assert found == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 52}
    mixed = np.array([[1.0], [0.0]] * 200)
    low, high = (figure([Part(mixed, (1.0,))], seed=1)[name] for name in ("low", "high"))
    # The normal approximation of 400 throws of a coin: 0.5 and 1.96 standard errors of 0.025.
    assert (low, high) == (pytest.approx(0.451, abs=0.005), pytest.approx(0.549, abs=0.005))
    with pytest.raises(ValueError, match="no prompts"):
        figure([], 0)
