"""The length-controlled win rate of AlpacaEval 2 (Dubois et al., arXiv:2404.04475).

A logistic model without intercept gives the share p of a comparison that goes to the model:

    logit p = l * tanh(gap) + d * difficulty + b

gap: the baseline's length less the model's, in characters, over its standard deviation;
difficulty: one number an instruction, the same for all models. The length-controlled rate is the
mean of p over the instructions with gap = 0. Without difficulties the second term falls away.

The weights are fitted as AlpacaEval does: logistic loss with an L1 penalty (liblinear) whose
strength is the best of ten in five folds, judged by the loss at the soft targets. Departure: its
two data sets of a baseline that games lengths, which pull the weights of all models towards each
other, are not published with its results, and take no part. So rates differ from the leaderboard.

Shapes: N = instructions, R = those with a verdict and both lengths, F = 2 or 3 features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayward.algorithms.judging.win_rates import Floats, shares

STRENGTHS = np.logspace(-4, 4, 10)  # of C, the inverse of the penalty's weight
FOLDS = 5
MIN_ROWS = 2 * FOLDS


@dataclass(frozen=True)
class Weights:
    """l, d and b of a model. AlpacaEval's files call them np.tanh(std_delta_len),
    instruction_difficulty and not_gamed_baseline.astype(float).
    """

    length: float
    difficulty: float
    model: float

    def rate(self, difficulty_N: ArrayLike) -> float:
        """The length-controlled win rate in percent."""
        logit_N = self.model + self.difficulty * np.asarray(difficulty_N, dtype=np.float64)
        # exp(-log(1 + exp(-x))): no overflow, however large x is.
        return 100 * float(np.exp(-np.logaddexp(0, -logit_N)).mean())


def refit(
    preferences_N: ArrayLike,
    length_1_N: ArrayLike,
    length_2_N: ArrayLike,
    difficulty_N: ArrayLike | None = None,
) -> Weights:
    """The weights that fit a model's verdicts; those without one (NaN) or a length are left out.

    Without difficulties `difficulty` is 0. ValueError: fewer than ten verdicts with both lengths.
    """
    share_N = shares(preferences_N)
    gap_N = np.asarray(length_1_N, dtype=np.float64) - np.asarray(length_2_N, dtype=np.float64)
    spread = np.nanstd(gap_N, ddof=1) if (~np.isnan(gap_N)).sum() > 1 else 0.0
    columns = [np.tanh(gap_N / spread) if spread else np.where(np.isnan(gap_N), np.nan, 0.0)]
    if difficulty_N is not None:
        columns.append(np.asarray(difficulty_N, dtype=np.float64))
    features_NF = np.stack([*columns, np.ones_like(gap_N)], axis=1)
    usable_N = ~np.isnan(share_N) & ~np.isnan(features_NF).any(axis=1)
    if (usable := int(usable_N.sum())) < MIN_ROWS:
        raise ValueError(
            f"{usable} verdicts with both lengths, but a length-controlled rate is fitted to at "
            f"least {MIN_ROWS}"
        )
    fitted = _best_fit(features_NF[usable_N], share_N[usable_N])
    difficulty = float(fitted[1]) if difficulty_N is not None else 0.0
    return Weights(float(fitted[0]), difficulty, float(fitted[-1]))


def _best_fit(features_RF: Floats, share_R: Floats) -> Floats:
    """The weights [F] with the penalty that does best on rows that were held out."""
    # A second to import, and an extra (rayward[data]).
    from sklearn.model_selection import GroupKFold

    folds = list(GroupKFold(FOLDS).split(np.tile(features_RF, (2, 1)), groups=_rows_twice(share_R)))
    count = len(share_R)

    def loss(strength: float) -> float:
        losses = []
        for train, test in folds:
            # Both copies of a row are in one fold, so the first halves name the rows.
            train_R, test_R = train[train < count], test[test < count]
            logit_R = features_RF[test_R] @ _fit(features_RF[train_R], share_R[train_R], strength)
            losses.append(_soft_loss(logit_R, share_R[test_R]))
        return float(np.mean(losses))

    return _fit(features_RF, share_R, min(STRENGTHS, key=loss))


def _rows_twice(share_R: Floats) -> NDArray[np.int64]:
    """The number of its row for each of two copies."""
    return np.tile(np.arange(len(share_R)), 2)


def _fit(features_RF: Floats, share_R: Floats, strength: float) -> Floats:
    """The weights [F] at one penalty: each row once as won and once as lost, weighted by share."""
    from sklearn.linear_model import LogisticRegression

    won_2R = np.repeat([1, 0], len(share_R))
    weight_2R = np.concatenate([share_R, 1 - share_R])
    model: Any = LogisticRegression(
        C=strength, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=123
    )
    # Both classes are there always, though all of one may have no weight.
    model.fit(np.tile(features_RF, (2, 1)), won_2R, sample_weight=weight_2R)
    coefficients: Floats = model.coef_[0]
    return coefficients


def _soft_loss(logit_R: Floats, share_R: Floats) -> float:
    """Mean log loss at targets between 0 and 1, of probabilities kept off 0 and 1 by 1e-15."""
    chance_R = np.clip(np.exp(-np.logaddexp(0, -logit_R)), 1e-15, 1 - 1e-15)
    return float(-(share_R * np.log(chance_R) + (1 - share_R) * np.log1p(-chance_R)).mean())
