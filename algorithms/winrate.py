"""Outcomes of comparisons with the interval of their mean, and the KL of best-of-n sampling.

Ties count one half, as in AlpacaEval and MT-Bench. Intervals are of the percentile bootstrap (Efron
1979). The KL of Beirami et al., arXiv:2401.01879, is an upper bound. Departure from AlpacaEval:
rates are in [0, 1], not in percent, and a NaN is an error instead of being dropped, so that the
caller counts what could not be judged.

Shapes: N = comparisons.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
# Bounds the memory of the bootstrap: indices drawn at a time (8 MiB).
_DRAWS_PER_CHUNK = 1 << 20


def outcomes(scores_a_N: ArrayLike, scores_b_N: ArrayLike) -> NDArray[np.float64]:
    """1 where a wins, 0 where b wins, 0.5 for a tie: [N]. ValueError: other lengths, no rows,
    NaN."""
    a, b = _scores(scores_a_N, "scores_a"), _scores(scores_b_N, "scores_b")
    if len(a) != len(b):
        raise ValueError(f"{len(a)} scores of a but {len(b)} of b: pass both for the same prompts")
    # Compared, not subtracted: the difference of two infinities would be NaN.
    result: NDArray[np.float64] = (a > b) + 0.5 * (a == b)
    return result


def bootstrap_interval(
    outcomes_N: ArrayLike, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of the mean of the outcomes (any numbers): (low, high).

    The same seed gives the same one. Too narrow for fewer than about 30 comparisons. ValueError: no
    rows, NaN, resamples < 1.
    """
    values_N = _scores(outcomes_N, "outcomes")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, but must be at least 1 (usually 10000)")
    rng = np.random.default_rng(seed)
    rows = max(1, _DRAWS_PER_CHUNK // len(values_N))
    means = []
    for done in range(0, resamples, rows):
        shape = (min(rows, resamples - done), len(values_N))
        means.append(values_N[rng.integers(len(values_N), size=shape)].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n nats: upper bound of KL(best-of-n || policy). ValueError: n < 1."""
    if n < 1:
        raise ValueError(f"n is {n}, but at least 1 sample is needed")
    return math.log(n) - (n - 1) / n


def _scores(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(
            f"{name} has shape {list(array.shape)}, but must be flat with at least 1 entry"
        )
    num_nan = int(np.isnan(array).sum())
    if num_nan:
        raise ValueError(
            f"{num_nan} of {len(array)} {name} are NaN: drop these rows and count them"
        )
    return array
