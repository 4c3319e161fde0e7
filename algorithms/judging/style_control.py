"""Win rates without the advantage of style, as Arena-Hard and Chatbot Arena control it.

A Bradley-Terry model with features of style beside the models (Li et al., arXiv:2406.11939; LMSYS,
"Does style matter?", 2024): of model m against the baseline on instruction i

    logit p = strength of m + weights . style,

where style is how far the two answers differ, in deviations over all comparisons. The controlled
rate is sigmoid(strength): the rate between answers of one style. A tie is half a win. Departures
from Arena-Hard: its features have mean 0, so that a rate is that at the mean difference of all
models on the table, and a model alone is not controlled at all; the rate is that of the fit and not
the median of its resamples, which draw instructions here and single battles there; a ridge of 1e-6
keeps the strength of a model that always wins finite.

Shapes: N = comparisons, S = features of style, M = models.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayward.algorithms.judging.agreement import numbered

Floats = NDArray[np.float64]
RIDGE = 1e-6
STEPS = 50
RESAMPLES = 200


@dataclass(frozen=True)
class Controlled:
    """Rates of the models in percent with their 95 % intervals [M], and the weights of style [S].

    A weight above 0: the judge likes more of it.
    """

    rate_M: Floats
    low_M: Floats
    high_M: Floats
    weights_S: Floats


def differences(model_NS: ArrayLike, baseline_NS: ArrayLike) -> Floats:
    """Features of style [N, S] from the counts of both answers, the length first.

    Of lengths a and b (a - b) / (a + b); of the others, as counts by character, (a - b) / (a + b +
    1). Then each over its deviation; one that never differs is 0.
    """
    model, baseline = (np.asarray(each, np.float64) for each in (model_NS, baseline_NS))
    lengths = [np.maximum(each[:, :1], 1) for each in (model, baseline)]
    densities = [each[:, 1:] / of for each, of in zip((model, baseline), lengths, strict=True)]
    length_N1 = (model[:, :1] - baseline[:, :1]) / (lengths[0] + lengths[1])
    others = (densities[0] - densities[1]) / (densities[0] + densities[1] + 1)
    features_NS: Floats = np.concatenate([length_N1, others], axis=1)
    count, features = features_NS.shape
    deviation_S = features_NS.std(axis=0, ddof=1) if count > 1 else np.zeros(features)
    return features_NS / np.where(deviation_S > 0, deviation_S, 1)


def controlled(
    share_N: ArrayLike,
    weight_N: ArrayLike,
    style_NS: ArrayLike,
    models_N: Sequence[int],
    instructions_N: Sequence[Hashable],
    seed: int = 0,
) -> Controlled:
    """Rates of all models at once: they share the weights of style.

    `share_N`: the model's part of each comparison, 0 to 1; `weight_N`: how often it counts;
    `models_N`: numbers of the models from 0, none left out; the resamples draw whole
    `instructions_N`.
    """
    share, weight = (np.asarray(each, np.float64) for each in (share_N, weight_N))
    style, model = np.asarray(style_NS, np.float64), np.asarray(models_N, np.int64)
    count = int(model.max()) + 1
    features = np.concatenate([np.eye(count)[model], style], axis=1)
    fitted = _fit(features, share, weight)
    group_N = numbered(instructions_N)
    groups = int(group_N.max()) + 1
    rng = np.random.default_rng(seed)
    rates = []
    for _ in range(RESAMPLES):
        times_N = rng.multinomial(groups, np.full(groups, 1 / groups))[group_N]
        rates.append(_sigmoid(_fit(features, share, weight * times_N, fitted)[:count]))
    low_M, high_M = np.quantile(rates, [0.025, 0.975], axis=0)
    return Controlled(100 * _sigmoid(fitted[:count]), 100 * low_M, 100 * high_M, fitted[count:])


def _fit(
    features_NF: Floats, share_N: Floats, weight_N: Floats, start_F: Floats | None = None
) -> Floats:
    """The coefficients [F] of greatest likelihood, by Newton's method."""
    ridge_FF = RIDGE * np.eye(features_NF.shape[1])
    fitted_F = np.zeros(features_NF.shape[1]) if start_F is None else start_F
    for _ in range(STEPS):
        chance_N = _sigmoid(features_NF @ fitted_F)
        gradient_F = features_NF.T @ (weight_N * (share_N - chance_N)) - RIDGE * fitted_F
        curvature_N = weight_N * chance_N * (1 - chance_N)
        step_F = np.linalg.solve((features_NF.T * curvature_N) @ features_NF + ridge_FF, gradient_F)
        # Where a model always wins the likelihood is flat far out, and a whole step leads nowhere.
        size = float(np.abs(step_F).max())
        fitted_F = fitted_F + step_F * min(1.0, 2.0 / size if size > 0 else 1.0)
        if size < 1e-9:
            break
    return fitted_F


def _sigmoid(logits: Floats) -> Floats:
    chances: Floats = np.exp(-np.logaddexp(0, -logits))
    return chances
