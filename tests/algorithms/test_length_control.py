"""The length-controlled win rate: recovered from verdicts that were made by the model itself, and
beside the estimator that AlpacaEval uses.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from rayward.algorithms.judging.length_control import Weights, refit, refit_interval

ROWS = 805
Numbers = np.ndarray


def logistic(x: Numbers) -> Numbers:
    return 1 / (1 + np.exp(-x))


def world(length: float, difficulty: float, model: float) -> tuple[Numbers, Numbers, Numbers]:
    """Preferences that these weights make, gaps of lengths in characters, difficulties."""
    rng = np.random.default_rng(1)
    gap_N, difficulty_N = rng.normal(300, 800, ROWS).round(), rng.normal(size=ROWS)
    feature_N = np.tanh(gap_N / gap_N.std(ddof=1))
    preference_N = 1 + logistic(length * feature_N + difficulty * difficulty_N + model)
    return preference_N, gap_N, difficulty_N


def test_weights_are_recovered() -> None:
    """Soft targets without noise have one best fit: the weights that made them."""
    preference_N, gap_N, difficulty_N = world(-1.5, 0.8, -0.4)
    got = refit(preference_N, 2000 + gap_N, np.full(ROWS, 2000), difficulty_N)
    assert (got.length, got.difficulty, got.model) == pytest.approx((-1.5, 0.8, -0.4), abs=0.01)
    expected = 100 * logistic(0.8 * difficulty_N - 0.4).mean()
    assert got.rate(difficulty_N) == pytest.approx(expected, abs=0.1)


def test_without_difficulties_the_rate_is_the_bias() -> None:
    """LC = sigmoid(b), whatever length did to the raw rate."""
    preference_N, gap_N, _ = world(-2, 0, 0.3)
    got = refit(preference_N, gap_N + 5000, np.full(ROWS, 5000))
    raw = 100 * (preference_N - 1).mean()
    assert got.rate([0.0]) == pytest.approx(100 / (1 + math.exp(-0.3)), abs=0.2)
    assert abs(raw - got.rate([0.0])) > 5


def test_published_weights_by_hand() -> None:
    """sigmoid(0) = 1/2 and sigmoid(log 3) = 3/4."""
    weights = Weights(length=9.0, difficulty=math.log(3), model=0.0)
    assert weights.rate([0, 1]) == pytest.approx(62.5)
    assert Weights(0, 0, 0).rate([5.0, -900.0]) == 50
    assert Weights(0, 1, 0).rate([-5000.0]) == 0


def test_the_error_and_the_interval_of_a_rate() -> None:
    # 1/2 and 3/4: standard deviation 1/8 times the root of 2, over the root of 2.
    assert Weights(0, math.log(3), 0).standard_error([0, 1]) == pytest.approx(12.5)
    assert Weights(0, 1, 0).standard_error([0.0]) is None
    preference_N, gap_N, difficulty_N = world(-1, 0.5, 0.4)
    won_N = 1 + (np.random.default_rng(5).random(ROWS) < preference_N - 1)
    columns = (won_N, gap_N, np.zeros(ROWS), difficulty_N)
    weights = refit(*columns)
    assert weights.strength is not None
    low, high = refit_interval(*columns, weights.strength, resamples=60)
    assert low < weights.rate(difficulty_N) < high
    # About four standard errors of 805 coins; the length's weight is not known either.
    assert 5 < high - low < 14
    assert (low, high) == refit_interval(*columns, weights.strength, resamples=60)
    # The penalty pulls a little towards 50, which the interval does not tell.
    truth = 100 * logistic(0.5 * difficulty_N + 0.4).mean()
    assert low - 2 < truth < high + 2


def test_verdicts_that_are_missing_change_nothing() -> None:
    preference_N, gap_N, difficulty_N = world(-1, 0.5, 0.2)
    kept = slice(0, 700)
    want = refit(preference_N[kept], gap_N[kept], np.zeros(700), difficulty_N[kept])
    # Rows without a length count neither for the fit nor for the spread of lengths.
    gap_N[700:], preference_N[750:] = np.nan, np.nan
    got = refit(preference_N, gap_N, np.zeros(ROWS), difficulty_N)
    assert vars(got) == pytest.approx(vars(want), rel=1e-9)


def test_too_few_verdicts_are_told() -> None:
    with pytest.raises(ValueError, match="9 verdicts with both lengths, but .* at least 10"):
        refit([1.5] * 9, [1] * 9, [2] * 9)
    # Equal lengths say nothing of length, and are no division by zero.
    assert refit([1, 2] * 10, [7] * 20, [7] * 20).rate([0.0]) == pytest.approx(50, abs=0.01)


def test_the_fit_is_that_of_scikit_learns_own_search() -> None:
    """LogisticRegressionCV, as AlpacaEval calls it: with folds by row, on hard targets its score
    and ours are the same one.
    """
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import GroupKFold

    rng = np.random.default_rng(3)
    preference_N, gap_N, difficulty_N = world(-1, 0.7, 0.1)
    # Ones and zeros of the same chances: noise, so that the penalty matters.
    won_N = (rng.random(ROWS) < preference_N - 1).astype(int)
    features_NF = np.stack([np.tanh(gap_N / gap_N.std(ddof=1)), difficulty_N, np.ones(ROWS)], 1)
    folds = list(GroupKFold(5).split(features_NF, groups=np.arange(ROWS)))
    theirs = LogisticRegressionCV(
        Cs=10,
        cv=folds,
        l1_ratios=(1.0,),
        solver="liblinear",
        fit_intercept=False,
        random_state=123,
        scoring="neg_log_loss",
        use_legacy_attributes=False,
    ).fit(features_NF, won_N)
    ours = refit(1 + won_N, gap_N, np.zeros(ROWS), difficulty_N)
    weights = (ours.length, ours.difficulty, ours.model)
    assert weights == pytest.approx(tuple(theirs.coef_[0]), abs=2e-3)
