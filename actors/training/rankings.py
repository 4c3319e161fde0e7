"""Rankings as token rows: how they are cut into micro-batches, and the loss of their scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayward.actors.training.engine import MetricSums
from rayward.algorithms.preference import pair_accuracy, pair_split, plackett_luce
from rayward.configs.sections.training import Preferences
from rayward.data.ragged import Ragged


@dataclass(frozen=True)
class RankedRows:
    """Token rows of every answer's conversation, a ranking's answers side by side, best first."""

    ids: Ragged
    sizes: np.ndarray
    """[rankings] answers of each."""
    ranks: np.ndarray
    """[answers] rising in a ranking; equal ones are ties."""
    answers: Ragged
    """1 at the tokens of the answer itself, 0 before."""
    reference: np.ndarray | None = None
    """[answers] log-prob of the whole answer by the reference model of DPO, in nats."""
    good: np.ndarray | None = None
    """[answers] of KTO, whose rankings have one answer each: whether it is a good one."""

    def rows_of(self, rankings: list[int]) -> list[int]:
        """The rows of the given rankings, one ranking after the other."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        return [row for ranking in rankings for row in range(starts[ranking], starts[ranking + 1])]

    def take(self, rankings: list[int]) -> RankedRows:
        """The given rankings with all their answers."""
        # The dtype is for an empty micro-batch: numpy makes floats of [], which do not index.
        rows = np.array(self.rows_of(rankings), dtype=np.int64)
        return RankedRows(
            self.ids.take(rows),
            self.sizes[np.array(rankings, dtype=np.int64)],
            self.ranks[rows],
            self.answers.take(rows),
            None if self.reference is None else self.reference[rows],
            None if self.good is None else self.good[rows],
        )


def rankings_of(step: RankedRows, plan: list[list[int]]) -> list[list[int]]:
    """For micro-batches of rows, which hold whole rankings in order: the rankings of each."""
    ranking_of_row = np.repeat(np.arange(len(step.sizes)), step.sizes)
    return [list(dict.fromkeys(ranking_of_row[rows].tolist())) for rows in plan]


def ranking_loss(
    settings: Preferences, scores_N: Tensor, rankings: RankedRows
) -> tuple[Tensor, MetricSums]:
    """Sum over rankings of the loss that the settings name; and the sums of pairs, all and right.

    `scores_N`: of every answer. On no rankings it is 0, with a gradient of 0.
    """
    sizes, ranks_N = rankings.sizes.tolist(), torch.from_numpy(rankings.ranks).to(scores_N.device)
    # Without ranks the losses take the order of the rows for the truth, also among ties.
    ties_N = ranks_N if settings.ties == "average" else None
    if settings.loss == "plackett_luce":
        loss = plackett_luce(scores_N, sizes, ranks_N=ties_N)
    else:
        # A margin is a multiple of the ranks' difference, so it needs the ranks in any case.
        pair_ranks_N = ranks_N if settings.margin else ties_N
        loss = pair_split(scores_N, sizes, ranks_N=pair_ranks_N, margin=settings.margin)
    correct, pairs = pair_accuracy(scores_N.detach(), sizes, ranks_N)
    return loss, {"correct_sum": correct, "pairs_sum": float(pairs)}
