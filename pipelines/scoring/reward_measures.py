"""What a reward model's scores say of rankings, for the reward stage and reward-eval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rayward.actors.training.rankings import RankedRows
from rayward.algorithms import reward_measure as by
from rayward.algorithms.preference import kendall_tau
from rayward.data.records import Ranking

FIGURES_OF_SOURCE = {
    "pair_accuracy": "mean",
    "accuracy_low": "low",
    "accuracy_high": "high",
    "length_baseline": "length_baseline",
}
"""Names in a stage's metrics, and in the accuracy of `measures`."""


def by_source(
    scores: np.ndarray,
    rankings: Sequence[Ranking],
    rows: RankedRows,
    seed: int,
    second: np.ndarray | None = None,
) -> dict[str, Any]:
    """The measures of all rankings under "all" and, where there are several sources, of each.

    `scores` (and those of a second model): one for each row of `rows`, the answers of the rankings
    side by side. `seed` is that of the bootstrap intervals.
    """
    lengths = np.array(
        [len(answer) for ranking in rankings for answer in ranking.answers], dtype=float
    )
    # Where the answers of each ranking begin, and where the last ones end.
    starts = np.concatenate([[0], np.cumsum(rows.sizes)])
    sources = [ranking.source or "unnamed" for ranking in rankings]
    names = ["all"]
    if len(set(sources)) > 1:
        names += sorted(set(sources))
    by_name = {}
    for name in names:
        chosen = [index for index, source in enumerate(sources) if name in ("all", source)]
        pick = np.concatenate([np.arange(starts[index], starts[index + 1]) for index in chosen])
        by_name[name] = measures(
            scores[pick],
            rows.sizes[chosen].tolist(),
            rows.ranks[pick],
            lengths[pick],
            None if second is None else second[pick],
            seed,
        )
    return by_name


def measures(
    scores_N: np.ndarray,
    sizes: list[int],
    ranks_N: np.ndarray,
    lengths_N: np.ndarray,
    second_N: np.ndarray | None,
    seed: int,
) -> dict[str, Any]:
    """What algorithms/reward_measure.py can tell of some rankings; N = their answers."""
    pairs = by.pairs_of(scores_N, sizes, ranks_N, lengths_N)
    tau_B = kendall_tau(torch.as_tensor(scores_N), sizes, torch.as_tensor(ranks_N))
    figures = {
        "rankings": len(sizes),
        "accuracy": by.accuracy(pairs, seed=seed),
        "chance": 0.5,
        # A model that only counts tokens gets no more than chance here.
        "length_matched": by.accuracy(by.length_matched(pairs), seed=seed),
        "kendall_tau": float(tau_B.mean()),
        "top_1": by.top_1(scores_N, sizes, ranks_N),
        "calibration": by.calibration(pairs),
        "by_margin": by.by_margin(pairs),
        "by_rank": by.by_rank(pairs),
        "length_correlation": by.length_correlation(scores_N, sizes, lengths_N),
    }
    if second_N is not None:
        figures["agreement"] = by.agreement(pairs, by.pairs_of(second_N, sizes, ranks_N, lengths_N))
    return figures


def measure(scores: np.ndarray, rankings: list[Ranking], rows: RankedRows) -> dict[str, Any]:
    """The main figures of `reward-eval`, flat, with the pair accuracy of each source, its interval
    and baseline.
    """
    by_name = by_source(scores, rankings, rows, 0)
    whole = by_name.pop("all")
    accuracy = whole["accuracy"]
    figures = {
        "heldout_rankings": whole["rankings"],
        "heldout_pairs": accuracy["pairs"],
        "pair_accuracy": accuracy["mean"],
        "accuracy_low": accuracy["low"],
        "accuracy_high": accuracy["high"],
        "chance_baseline": whole["chance"],
        "length_baseline": accuracy["length_baseline"],
        "kendall_tau": whole["kendall_tau"],
        "top_1": whole["top_1"],
        "calibration_error": whole["calibration"]["error"],
        "length_correlation": whole["length_correlation"],
    }
    for name, of_source in by_name.items():
        for figure, key in FIGURES_OF_SOURCE.items():
            figures[f"{figure}_{name}"] = of_source["accuracy"][key]
    return figures
