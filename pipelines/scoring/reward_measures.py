"""What a reward model's scores say of rankings, for the stage that trains it and for reward-eval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rayward.actors.training.ranked import RankedRows
from rayward.algorithms import reward_measure as by
from rayward.algorithms.preference import kendall_tau
from rayward.data.records import Ranking

OF_SOURCE = {
    "pair_accuracy": "mean",
    "accuracy_low": "low",
    "accuracy_high": "high",
    "length_baseline": "length_baseline",
}


def by_source(
    scores: Any, rankings: Sequence[Any], rows: Any, seed: int, second: Any = None
) -> dict[str, Any]:
    """The measures of all rankings under "all" and, where there are several sources, of each.

    `scores` (and those of a second model): one for each row of `rows`, the answers of the rankings
    side by side.
    """
    lengths = np.array(
        [len(answer) for ranking in rankings for answer in ranking.answers], dtype=float
    )
    starts = np.concatenate([[0], np.cumsum(rows.sizes)])
    of = [ranking.source or "unnamed" for ranking in rankings]
    found = {}
    for name in ["all", *sorted(set(of))] if len(set(of)) > 1 else ["all"]:
        mine = [index for index in range(len(of)) if name in ("all", of[index])]
        pick = np.concatenate([np.arange(starts[index], starts[index + 1]) for index in mine])
        theirs = None if second is None else second[pick]
        found[name] = measures(
            scores[pick], rows.sizes[mine].tolist(), rows.ranks[pick], lengths[pick], theirs, seed
        )
    return found


def measures(
    scores: Any, sizes: list[int], ranks: Any, lengths: Any, second: Any, seed: int
) -> dict[str, Any]:
    """What algorithms/reward_measure.py can tell of some rankings."""
    pairs = by.pairs_of(scores, sizes, ranks, lengths)
    tau_B = kendall_tau(torch.as_tensor(scores), sizes, torch.as_tensor(ranks))
    found = {
        "rankings": len(sizes),
        "accuracy": by.accuracy(pairs, seed=seed),
        "chance": 0.5,
        "length_matched": by.accuracy(by.length_matched(pairs), seed=seed),
        "kendall_tau": float(tau_B.mean()),
        "top_1": by.top_1(scores, sizes, ranks),
        "calibration": by.calibration(pairs),
        "by_margin": by.by_margin(pairs),
        "by_rank": by.by_rank(pairs),
        "length_correlation": by.length_correlation(scores, sizes, lengths),
    }
    if second is not None:
        found["agreement"] = by.agreement(pairs, by.pairs_of(second, sizes, ranks, lengths))
    return found


def measure(scores: np.ndarray, rankings: list[Ranking], rows: RankedRows) -> dict[str, Any]:
    """The main figures of `reward-eval`, flat; of each source its pair accuracy, with its interval
    and baseline.
    """
    found = by_source(scores, rankings, rows, 0)
    of = found["all"]
    accuracy = of["accuracy"]
    return {
        "heldout_rankings": of["rankings"],
        "heldout_pairs": accuracy["pairs"],
        "pair_accuracy": accuracy["mean"],
        "accuracy_low": accuracy["low"],
        "accuracy_high": accuracy["high"],
        "chance_baseline": of["chance"],
        "length_baseline": accuracy["length_baseline"],
        "kendall_tau": of["kendall_tau"],
        "top_1": of["top_1"],
        "calibration_error": of["calibration"]["error"],
        "length_correlation": of["length_correlation"],
        **{
            f"{told}_{name}": found[name]["accuracy"][figure]
            for name in found
            if name != "all"
            for told, figure in OF_SOURCE.items()
        },
    }
