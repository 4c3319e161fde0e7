"""Win rates of AlpacaEval (arXiv:2404.04475), in the units of its leaderboards: percent.

A preference lies between 1, the baseline's answer is better, and 2, the model's is; 1.5 is a tie,
and 0 is one in old files. A verdict that is missing is NaN and takes no part. Intervals are of the
percentile bootstrap over instructions.

Shapes: N = instructions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayward.algorithms.winrate import bootstrap_interval

Floats = NDArray[np.float64]
TIE = 1.5
OLD_TIE = 0


def shares(preferences_N: ArrayLike) -> Floats:
    """The model's share of each comparison [N], 0 to 1: preference - 1, of a tie 0.5; NaN stays."""
    preference_N = np.array(preferences_N, dtype=np.float64)
    preference_N[preference_N == OLD_TIE] = TIE
    return preference_N - 1


def win_rate(preferences_N: ArrayLike, seed: int = 0) -> dict[str, Any]:
    """AlpacaEval's win rate, standard error and discrete win rate, and the interval of the first.

    A rate is None where no verdict is there, the standard error also where there is only one. The
    discrete one counts who wins, and a tie one half.
    """
    share_N = shares(preferences_N)
    share_N = share_N[~np.isnan(share_N)]
    count = len(share_N)
    if not count:
        names = ("win_rate", "standard_error", "discrete_win_rate", "low", "high")
        return {**dict.fromkeys(names), "n_total": 0}
    wins, ties = int((share_N > 0.5).sum()), int((share_N == 0.5).sum())
    error = float(share_N.std(ddof=1) / np.sqrt(count)) if count > 1 else None
    low, high = bootstrap_interval(share_N, seed=seed)
    return {
        "win_rate": 100 * float(share_N.mean()),
        "standard_error": None if error is None else 100 * error,
        "discrete_win_rate": 100 * (wins + ties / 2) / count,
        "n_total": count,
        "low": 100 * low,
        "high": 100 * high,
    }


def difference(
    preferences_a_N: ArrayLike, preferences_b_N: ArrayLike, seed: int = 0
) -> dict[str, Any]:
    """Win rate of a less that of b over the instructions that both have a verdict of.

    The same instructions are drawn for both, so what makes some of them hard for all falls out of
    the interval. ValueError: other lengths, or no instruction of which both have a verdict.
    """
    a_N, b_N = shares(preferences_a_N), shares(preferences_b_N)
    if len(a_N) != len(b_N):
        raise ValueError(
            f"{len(a_N)} verdicts of a but {len(b_N)} of b: pass the same rows of both"
        )
    gap_N = a_N - b_N
    gap_N = gap_N[~np.isnan(gap_N)]
    if not len(gap_N):
        raise ValueError("the two have a verdict of no instruction in common")
    low, high = bootstrap_interval(gap_N, seed=seed)
    return {
        "difference": 100 * float(gap_N.mean()),
        "low": 100 * low,
        "high": 100 * high,
        "n_total": len(gap_N),
        "better": int((gap_N > 0).sum()),
        "worse": int((gap_N < 0).sum()),
    }
