"""How far two judges agree on pairs of answers: shares, Cohen's kappa, and the part of length.

A verdict is 0 where the first answer is better, 1 where the second is, 0.5 where neither is.
Intervals are 95 % of the percentile bootstrap over groups: the pairs of one prompt belong together.
A measure that is of nothing is None. Cohen (1960): kappa = (p - e) / (1 - e), with p the share of
equal verdicts and e that of two judges who draw theirs from the same shares independently.

Shapes: N = pairs, G = groups, R = resamples, 3 x 3: verdicts of the one by those of the other.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayward.algorithms.reward_measure import RESAMPLES, interval

Floats = NDArray[np.float64]
Groups = Sequence[Hashable]


def numbered(groups_N: Groups) -> NDArray[np.int64]:
    """A number for each group, from 0 [N]."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups_N))}
    return np.array([numbers[group] for group in groups_N], dtype=np.int64)


def same(one_N: ArrayLike, other_N: ArrayLike, groups_N: Groups, seed: int = 0) -> dict[str, Any]:
    """Share of equal verdicts, a tie being one of three, and Cohen's kappa.

    Keys "same" and "kappa", each with mean, low, high, and n.
    """
    group_N = numbered(groups_N)
    tables_G9 = _tables(one_N, other_N, group_N)
    if not len(tables_G9):
        return {name: _nothing() for name in ("same", "kappa")}
    groups = len(tables_G9)
    draws_RG = np.random.default_rng(seed).multinomial(
        groups, np.full(groups, 1 / groups), RESAMPLES
    )
    drawn_R33 = (draws_RG @ tables_G9).reshape(-1, 3, 3)
    whole_133 = tables_G9.sum(axis=0).reshape(1, 3, 3)
    measured = {}
    for name, of in (("same", _same), ("kappa", _kappa)):
        values_R = of(drawn_R33)
        mean = float(of(whole_133)[0])
        # A resample in which all verdicts are alike has no kappa.
        values_R = values_R[~np.isnan(values_R)]
        low, high = np.quantile(values_R, [0.025, 0.975]) if len(values_R) else (np.nan, np.nan)
        measured[name] = _told(mean, float(low), float(high), len(group_N))
    return measured


def accuracy(
    judge_N: ArrayLike, label_N: ArrayLike, groups_N: Groups, seed: int = 0
) -> dict[str, Any]:
    """Share of the pairs in which the label prefers one answer that the judge gets right.

    A tie of the judge counts one half.
    """
    correct_N, group_N = _correct(judge_N, label_N), numbered(groups_N)
    decided_N = ~np.isnan(correct_N)
    return mean_of(correct_N[decided_N], group_N[decided_N], seed)


def better_than(
    judge_N: ArrayLike, other_N: ArrayLike, label_N: ArrayLike, groups_N: Groups, seed: int = 0
) -> dict[str, Any]:
    """Accuracy of a judge less that of another on the same pairs."""
    gap_N = _correct(judge_N, label_N) - _correct(other_N, label_N)
    decided_N = ~np.isnan(gap_N)
    return mean_of(gap_N[decided_N], numbered(groups_N)[decided_N], seed)


def longer_preferred(
    verdict_N: ArrayLike, gap_N: ArrayLike, groups_N: Groups, seed: int = 0
) -> dict[str, Any]:
    """Share of verdicts for the longer answer, of those that prefer one and differ in length.

    `gap_N`: the second answer's length less the first's.
    """
    verdict, gap = np.asarray(verdict_N, np.float64), np.asarray(gap_N, np.float64)
    counted_N = (verdict != 0.5) & (gap != 0) & ~np.isnan(verdict)
    longer_N = ((verdict == 1) == (gap > 0)).astype(np.float64)
    return mean_of(longer_N[counted_N], numbered(groups_N)[counted_N], seed)


def mean_of(values_N: Floats, group_N: NDArray[np.int64], seed: int) -> dict[str, Any]:
    """Mean with its interval by drawing whole groups, and how many values it is of."""
    if not len(values_N):
        return _nothing()
    return _told(float(values_N.mean()), *interval(values_N, group_N, seed), len(values_N))


def spearman(order: Sequence[float]) -> float:
    """Rank correlation of an order of different ranks with the sorted one: 1 the same."""
    ranks_K, count = np.argsort(np.argsort(order)), len(order)
    squares = float(((ranks_K - np.arange(count)) ** 2).sum())
    return 1 - 6 * squares / (count * (count**2 - 1))


def pairs_in_order(order: Sequence[float]) -> float:
    """Share of the pairs of an order of different ranks that stand as in the sorted one."""
    first, second = np.triu_indices(len(order), 1)
    ranks_K = np.asarray(order, dtype=np.float64)
    return float((ranks_K[first] < ranks_K[second]).mean())


def _tables(one_N: ArrayLike, other_N: ArrayLike, group_N: NDArray[np.int64]) -> Floats:
    """Counts of (verdict of one, verdict of the other) by group [G, 9]."""
    places = [
        np.rint(2 * np.asarray(each, np.float64)).astype(np.int64) for each in (one_N, other_N)
    ]
    cell_N = group_N * 9 + 3 * places[0] + places[1]
    groups = int(group_N.max()) + 1 if len(group_N) else 0
    return np.bincount(cell_N, minlength=9 * groups).reshape(groups, 9).astype(np.float64)


def _same(tables_R33: Floats) -> Floats:
    shares: Floats = np.trace(tables_R33, axis1=1, axis2=2) / tables_R33.sum(axis=(1, 2))
    return shares


def _kappa(tables_R33: Floats) -> Floats:
    total_R = tables_R33.sum(axis=(1, 2))
    chance_R = (tables_R33.sum(axis=1) * tables_R33.sum(axis=2)).sum(axis=1) / total_R**2
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa_R: Floats = (_same(tables_R33) - chance_R) / (1 - chance_R)
    kappa_R[chance_R == 1] = np.nan
    return kappa_R


def _correct(judge_N: ArrayLike, label_N: ArrayLike) -> Floats:
    """1 right, 0 wrong, 0.5 for a tie of the judge; NaN where the label prefers neither."""
    judge, label = np.asarray(judge_N, np.float64), np.asarray(label_N, np.float64)
    return np.where(label == 0.5, np.nan, 1 - np.abs(judge - label))


def _told(mean: float, low: float, high: float, count: int) -> dict[str, Any]:
    named = {"mean": mean, "low": low, "high": high}
    return {**{key: None if np.isnan(value) else value for key, value in named.items()}, "n": count}


def _nothing() -> dict[str, Any]:
    return {"mean": None, "low": None, "high": None, "n": 0}
