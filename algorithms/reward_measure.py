"""How good a reward model's scores are: agreement with rankings, calibration, and length's part.

All measures are over pairs of answers to one prompt that differ in rank. Under Bradley-Terry the
better answer of a pair wins with probability sigmoid(s_better - s_worse): `calibration` compares
the confidence that this gives with how often it is right (expected calibration error, Guo et al.,
arXiv:1706.04599). Intervals are of the bootstrap over prompts, because the pairs of one ranking
depend on each other. Equal scores count one half, as everywhere here.

Shapes: N = answers of all rankings, P = pairs, B = rankings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

BINS = 10
# Share of the longer answer by which the two lengths of a pair may differ.
MATCHED_LENGTH = 0.1
RESAMPLES = 2000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """Score, length and rank of the better answer minus the worse one's, and a pair's ranking."""

    score_P: Floats
    length_P: Floats
    relative_length_P: Floats
    rank_P: Floats
    ranking_P: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.score_P)

    def where(self, chosen_P: NDArray[np.bool_]) -> Pairs:
        """The chosen pairs."""
        return Pairs(*(getattr(self, column.name)[chosen_P] for column in fields(self)))


def pairs_of(
    scores_N: ArrayLike, sizes: Sequence[int], ranks_N: ArrayLike, lengths_N: ArrayLike
) -> Pairs:
    """All pairs of different rank (lower is better). ValueError: other lengths, NaN scores."""
    scores, ranks, lengths = (
        np.asarray(values, dtype=np.float64) for values in (scores_N, ranks_N, lengths_N)
    )
    if not len(scores) == len(ranks) == len(lengths) == sum(sizes):
        raise ValueError(
            f"{len(scores)} scores, {len(ranks)} ranks, {len(lengths)} lengths, {sum(sizes)} "
            "answers"
        )
    if np.isnan(scores).any():
        raise ValueError(
            f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN: the model has diverged"
        )
    better, worse, rankings = [], [], []
    for ranking, (end, size) in enumerate(zip(np.cumsum(sizes), sizes, strict=True)):
        rows = np.arange(end - size, end)
        first, second = np.triu_indices(size, 1)
        first, second = rows[first], rows[second]
        # The better answer first, whatever the order in the ranking.
        swap = ranks[first] > ranks[second]
        first, second = np.where(swap, second, first), np.where(swap, first, second)
        untied = ranks[first] != ranks[second]
        better.append(first[untied])
        worse.append(second[untied])
        rankings.append(np.full(int(untied.sum()), ranking))
    # An empty array in front: concatenate refuses to make nothing of no rankings.
    b, w = (np.concatenate([np.zeros(0, int), *rows]).astype(int) for rows in (better, worse))
    longer = np.maximum(np.maximum(lengths[b], lengths[w]), 1.0)
    gap = lengths[b] - lengths[w]
    ranking_P = np.concatenate([np.zeros(0, int), *rankings]).astype(np.int64)
    return Pairs(scores[b] - scores[w], gap, gap / longer, ranks[w] - ranks[b], ranking_P)


def right(differences_P: Floats) -> Floats:
    """1 where the better answer has the higher value, one half where they are equal."""
    return (differences_P > 0) + 0.5 * (differences_P == 0)


def accuracy(pairs: Pairs, seed: int = 0) -> dict[str, float]:
    """Pair accuracy with a 95 % interval, and that of "the longer one wins". NaN without pairs."""
    correct_P = right(pairs.score_P)
    low, high = interval(correct_P, pairs.ranking_P, seed)
    longer = float(right(pairs.length_P).mean()) if len(pairs) else float("nan")
    mean = float(correct_P.mean()) if len(pairs) else float("nan")
    return {"mean": mean, "low": low, "high": high, "pairs": len(pairs), "length_baseline": longer}


def interval(values_P: Floats, ranking_P: NDArray[np.int64], seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean over pairs, by drawing whole rankings."""
    if not len(values_P):
        return float("nan"), float("nan")
    # Numbered without gaps: a ranking without pairs is not drawn.
    _, row_P = np.unique(ranking_P, return_inverse=True)
    sums_B, counts_B = np.bincount(row_P, values_P), np.bincount(row_P)
    # How often each ranking is drawn: a row of counts is one resample, and two products its mean.
    draws = np.random.default_rng(seed).multinomial(
        len(sums_B), np.full(len(sums_B), 1 / len(sums_B)), RESAMPLES
    )
    low, high = np.quantile((draws @ sums_B) / (draws @ counts_B), [0.025, 0.975])
    return float(low), float(high)


def length_matched(pairs: Pairs) -> Pairs:
    """Pairs whose answers differ in length by at most MATCHED_LENGTH of the longer one."""
    return pairs.where(np.abs(pairs.relative_length_P) <= MATCHED_LENGTH)


def calibration(pairs: Pairs) -> dict[str, Any]:
    """Expected calibration error; of each bin its mean confidence, how often it is right, its
    pairs.

    Keys `error` and `bins`.
    """
    # From 0.5 to 1, for the better answer is the one with the higher score. exp stays finite.
    confidence_P = 1 / (1 + np.exp(-np.abs(np.clip(pairs.score_P, -50, 50))))
    bin_P = np.minimum(((confidence_P - 0.5) * 2 * BINS).astype(int), BINS - 1)
    rows = _binned(bin_P, range(BINS), confidence_P, right(pairs.score_P))
    error = sum(row["pairs"] * abs(row["value"] - row["accuracy"]) for row in rows) / max(
        len(pairs), 1
    )
    return {"error": float(error), "bins": rows}


def by_margin(pairs: Pairs) -> list[dict[str, float]]:
    """Accuracy in fifths of the pairs by the size of their score difference."""
    size_P = np.abs(pairs.score_P)
    # The rank of each size, then its fifth. Stable: the order of equal sizes is that of the pairs.
    fifth_P = np.argsort(np.argsort(size_P, kind="stable"), kind="stable") * 5 // max(len(pairs), 1)
    return _binned(fifth_P, range(5), size_P, right(pairs.score_P))


def by_rank(pairs: Pairs) -> list[dict[str, float]]:
    """Accuracy by the difference in rank: far apart should be easier."""
    return _binned(
        pairs.rank_P, np.unique(pairs.rank_P).tolist(), pairs.rank_P, right(pairs.score_P)
    )


def length_correlation(scores_N: ArrayLike, sizes: Sequence[int], lengths_N: ArrayLike) -> float:
    """Mean over prompts of Spearman's correlation of score and length; NaN where none varies."""
    from scipy.stats import spearmanr

    correlations, start = [], 0
    scores, lengths = np.asarray(scores_N, np.float64), np.asarray(lengths_N, np.float64)
    for size in sizes:
        s, n = scores[start : start + size], lengths[start : start + size]
        if len(set(s)) > 1 and len(set(n)) > 1:
            correlations.append(float(spearmanr(s, n).statistic))
        start += size
    return float(np.mean(correlations)) if correlations else float("nan")


def top_1(scores_N: ArrayLike, sizes: Sequence[int], ranks_N: ArrayLike) -> float:
    """Share of rankings whose highest score is on a best answer; tied highest scores share."""
    scores, ranks = np.asarray(scores_N, np.float64), np.asarray(ranks_N, np.float64)
    shares, start = [], 0
    for size in sizes:
        s, r = scores[start : start + size], ranks[start : start + size]
        shares.append(float((r[s == s.max()] == r.min()).mean()))
        start += size
    return float(np.mean(shares)) if shares else float("nan")


def agreement(first: Pairs, second: Pairs) -> float:
    """Share of pairs that two models order alike; equal scores of one of them count one half."""
    product_P = np.sign(first.score_P) * np.sign(second.score_P)
    return float(right(product_P).mean()) if len(first) else float("nan")


def _binned(
    bin_P: NDArray[Any], bins: Iterable[float], value_P: Floats, correct_P: Floats
) -> list[dict[str, float]]:
    """Of each bin that has pairs: mean value, accuracy, pairs."""
    rows = []
    for number in bins:
        inside_P = bin_P == number
        if inside_P.any():
            means = {
                "value": float(value_P[inside_P].mean()),
                "accuracy": float(correct_P[inside_P].mean()),
            }
            rows.append({**means, "pairs": int(inside_P.sum())})
    return rows
