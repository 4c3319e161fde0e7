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

Shapes: N = instructions, R = those with a verdict and both lengths, F = 3 features.
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
    instruction_difficulty and not_gamed_baseline.astype(float). `strength`: the C they were fitted
    with.
    """

    length: float
    difficulty: float
    model: float
    strength: float | None = None

    def rate(self, difficulty_N: ArrayLike) -> float:
        """The length-controlled win rate in percent."""
        return 100 * float(self._chances(difficulty_N).mean())

    def standard_error(self, difficulty_N: ArrayLike) -> float | None:
        """AlpacaEval's lc_standard_error: that of the mean of p over instructions, weights given.

        It does not tell how sure the weights are. None for a single instruction.
        """
        chance_N = self._chances(difficulty_N)
        if len(chance_N) < 2:
            return None
        return 100 * float(chance_N.std(ddof=1) / np.sqrt(len(chance_N)))

    def _chances(self, difficulty_N: ArrayLike) -> Floats:
        logit_N = self.model + self.difficulty * np.asarray(difficulty_N, dtype=np.float64)
        # exp(-log(1 + exp(-x))): no overflow, however large x is.
        chances: Floats = np.exp(-np.logaddexp(0, -logit_N))
        return chances


def refit(
    preferences_N: ArrayLike,
    length_1_N: ArrayLike,
    length_2_N: ArrayLike,
    difficulty_N: ArrayLike | None = None,
) -> Weights:
    """The weights that fit a model's verdicts; those without one (NaN) or a length are left out.

    Without difficulties `difficulty` is 0. ValueError: fewer than ten verdicts with both lengths.
    """
    features_RF, share_R, _ = _usable(preferences_N, length_1_N, length_2_N, difficulty_N)
    strength, fitted = _best_fit(features_RF, share_R)
    return _weights(fitted, strength)


def refit_interval(
    preferences_N: ArrayLike,
    length_1_N: ArrayLike,
    length_2_N: ArrayLike,
    difficulty_N: ArrayLike | None,
    strength: float,
    resamples: int,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of the rate: the weights are fitted anew to each resample of the
    instructions, with the same penalty, whose pull towards 50 % it does not tell.
    """
    features_RF, share_R, difficulty_R = _usable(
        preferences_N, length_1_N, length_2_N, difficulty_N
    )
    rng = np.random.default_rng(seed)
    rates = []
    for _ in range(resamples):
        drawn_R = rng.integers(len(share_R), size=len(share_R))
        weights = _weights(_fit(features_RF[drawn_R], share_R[drawn_R], strength), strength)
        rates.append(weights.rate(difficulty_R[drawn_R]))
    low, high = np.quantile(rates, [0.025, 0.975])
    return float(low), float(high)


def _usable(
    preferences_N: ArrayLike,
    length_1_N: ArrayLike,
    length_2_N: ArrayLike,
    difficulty_N: ArrayLike | None,
) -> tuple[Floats, Floats, Floats]:
    """Features [R, F], the model's shares [R] and difficulties [R] of the verdicts to be fitted."""
    share_N = shares(preferences_N)
    gap_N = np.asarray(length_1_N, dtype=np.float64) - np.asarray(length_2_N, dtype=np.float64)
    spread = np.nanstd(gap_N, ddof=1) if (~np.isnan(gap_N)).sum() > 1 else 0.0
    length_N = np.tanh(gap_N / spread) if spread else np.where(np.isnan(gap_N), np.nan, 0.0)
    # A feature that is 0 everywhere has the weight 0 under the penalty.
    difficulty = np.zeros_like(gap_N) if difficulty_N is None else difficulty_N
    difficulty = np.asarray(difficulty, dtype=np.float64)
    features_NF = np.stack([length_N, difficulty, np.ones_like(gap_N)], axis=1)
    usable_N = ~np.isnan(share_N) & ~np.isnan(features_NF).any(axis=1)
    if (usable := int(usable_N.sum())) < MIN_ROWS:
        raise ValueError(
            f"{usable} verdicts with both lengths, but a length-controlled rate is fitted to at "
            f"least {MIN_ROWS}"
        )
    return features_NF[usable_N], share_N[usable_N], difficulty[usable_N]


def _weights(fitted_F: Floats, strength: float) -> Weights:
    length, difficulty, model = (float(value) for value in fitted_F)
    return Weights(length, difficulty, model, float(strength))


def _best_fit(features_RF: Floats, share_R: Floats) -> tuple[float, Floats]:
    """The penalty that does best on rows that were held out, and the weights [F] with it."""
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

    best = float(min(STRENGTHS, key=loss))
    return best, _fit(features_RF, share_R, best)


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
