"""Win rates with intervals, and the theory of best-of-n sampling.

Ties count one half, as in AlpacaEval and MT-Bench. Intervals: percentile bootstrap (Efron 1979) for any
outcomes, and Wilson (1927) for counts, which stays inside [0, 1] and is honest at 0 wins. Best-of-n: the KL
of Beirami et al., arXiv:2401.01879, is an upper bound; `expected_max` is the estimator that uses all N >= n
scores instead of one draw. Departure from AlpacaEval: rates are in [0, 1], not in percent, and a NaN is an
error instead of being dropped, so that the caller counts what could not be judged.

Shapes: N = comparisons or scores.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Bounds the memory of the bootstrap: indices drawn at a time (8 MiB).
_DRAWS_PER_CHUNK = 1 << 20


def outcomes(scores_a_N: ArrayLike, scores_b_N: ArrayLike) -> NDArray[np.float64]:
    """1 where a wins, 0 where b wins, 0.5 for a tie: [N]. ValueError: lengths that differ, no rows, NaN."""
    a, b = _scores(scores_a_N, "scores_a"), _scores(scores_b_N, "scores_b")
    if len(a) != len(b):
        raise ValueError(f"{len(a)} scores of a but {len(b)} of b: pass both for the same prompts")
    # Compared, not subtracted: the difference of two infinities would be NaN.
    result: NDArray[np.float64] = (a > b) + 0.5 * (a == b)
    return result


def win_rate(scores_a_N: ArrayLike, scores_b_N: ArrayLike) -> float:
    """Share of prompts where a's score is higher, ties one half. ValueError as `outcomes`."""
    return float(outcomes(scores_a_N, scores_b_N).mean())


def bootstrap_interval(
    outcomes_N: ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of the outcomes (any numbers): (low, high). The same seed gives the
    same one.

    Too narrow for few comparisons: use `wilson_interval` below about 30. ValueError: no rows, NaN,
    confidence outside of (0, 1), resamples < 1.
    """
    values_N = _scores(outcomes_N, "outcomes")
    _check_confidence(confidence)
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, but must be at least 1 (usually 10000)")
    rng = np.random.default_rng(seed)
    rows = max(1, _DRAWS_PER_CHUNK // len(values_N))
    means = [
        values_N[rng.integers(len(values_N), size=(min(rows, resamples - done), len(values_N)))].mean(axis=1)
        for done in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def wilson_interval(wins: float, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of wins / total: (low, high). A tie may count as half a win.

    ValueError: total < 1, wins outside of [0, total], confidence outside of (0, 1).
    """
    _check_confidence(confidence)
    if total < 1 or not 0 <= wins <= total:
        raise ValueError(f"wins is {wins} of {total}, but need total >= 1 and 0 <= wins <= total")
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    rate = wins / total
    centre = (rate + z2 / (2 * total)) / (1 + z2 / total)
    half_width = math.sqrt(z2 * (rate * (1 - rate) / total + z2 / (4 * total**2))) / (1 + z2 / total)
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n nats: upper bound of KL(best-of-n policy || policy). ValueError: n < 1."""
    _check_n(n)
    return math.log(n) - (n - 1) / n


def best_of_n_win_rate(n: int) -> float:
    """n / (n + 1): win rate of the best of n samples against one, by the judge that chose it; an upper
    bound if scores can tie. ValueError: n < 1."""
    _check_n(n)
    return n / (n + 1)


def expected_max(scores_N: ArrayLike, n: int) -> float:
    """Unbiased estimate of the expected best of n scores, from N >= n: the mean over all subsets of size n.

    sum_i C(i - 1, n - 1) / C(N, n) * s_(i), ascending. ValueError: n < 1, fewer than n scores, NaN.
    """
    _check_n(n)
    ascending = np.sort(_scores(scores_N, "scores"))
    total = len(ascending)
    if total < n:
        raise ValueError(f"{total} scores cannot estimate the best of {n}: sample at least {n} per prompt")
    # Exact integers: the quotient of two floats would overflow from N of about 1000 on.
    subsets = math.comb(total, n)
    weights = [math.comb(i - 1, n - 1) / subsets for i in range(n, total + 1)]
    return float(np.dot(weights, ascending[n - 1 :]))


def _scores(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"{name} has shape {list(array.shape)}, but must be flat with at least 1 entry")
    num_nan = int(np.isnan(array).sum())
    if num_nan:
        raise ValueError(f"{num_nan} of {len(array)} {name} are NaN: drop these rows and count them")
    return array


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}, but must lie between 0 and 1, for instance 0.95")


def _check_n(n: int) -> None:
    if n < 1:
        raise ValueError(f"n is {n}, but at least 1 sample is needed")
