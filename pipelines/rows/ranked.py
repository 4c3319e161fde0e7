"""Rankings as arrays of token rows, their ties broken, as the losses over rankings take them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import torch

from rayward.actors.training.rankings import RankedRows
from rayward.algorithms.preference import break_ties
from rayward.data.ragged import Chosen, Ragged, Rows
from rayward.data.records import Labelled, Ranking
from rayward.pipelines.rows.labelled import fit_labelled
from rayward.pipelines.rows.rankings import fit_rankings
from rayward.pipelines.rows.renderer import Renderer


def ranked_rows(
    rankings: list[Ranking],
    renderer: Renderer,
    seed: int | None,
    dropped: Counter[str] | None = None,
) -> tuple[list[Ranking], RankedRows]:
    """Rankings, ties in an order drawn by the seed (None keeps it), and their token rows.

    What does not fit is counted in `dropped`.
    """
    if seed is not None:
        rankings = without_ties(rankings, seed)
    kept, encoded = fit_rankings(rankings, renderer, Counter() if dropped is None else dropped)
    # All answers of all rankings, one after another; `sizes` says how many are of each.
    ids = Ragged.of([row.ids for ranking in encoded for row in ranking])
    answers = Ragged.of([row.weights for ranking in encoded for row in ranking], np.uint8)
    ranks = [rank for ranking in kept for rank in (ranking.ranks or range(len(ranking.answers)))]
    sizes = np.array([len(ranking) for ranking in encoded], dtype=np.int64)
    return kept, RankedRows(ids, sizes, np.array(ranks, dtype=np.float32), answers)


def labelled_rows(records: list[Labelled], renderer: Renderer) -> RankedRows:
    """Token rows of the labelled answers that fit."""
    kept, encoded = fit_labelled(records, renderer, Counter())
    ids = Ragged.of([row.ids for row in encoded])
    answers = Ragged.of([row.weights for row in encoded], np.uint8)
    return labelled_of(ids, answers, np.array([record.good for record in kept], dtype=bool))


def labelled_of(ids: Rows, answers: Rows, good: np.ndarray) -> RankedRows:
    """Labelled answers are rankings of one answer each, good or not."""
    ones = np.ones(len(good), np.int64)
    return RankedRows(ids, ones, ones.astype(np.float32), answers, good=good)


def best_and_worst(rankings: RankedRows) -> RankedRows:
    """Of each ranking the best answer as a good one and the worst as a bad one; those between say
    neither. (`fit_rankings` leaves rankings out whose answers are all tied.)
    """
    ends = np.cumsum(rankings.sizes)
    rows = np.stack([ends - rankings.sizes, ends - 1], axis=1).ravel()
    good = np.tile([True, False], len(rows) // 2)
    return labelled_of(Chosen(rankings.ids, rows), Chosen(rankings.answers, rows), good)


def without_ties(rankings: list[Ranking], seed: int) -> list[Ranking]:
    """Rankings with their ties in an order drawn by the seed."""
    # One generator for all: the order of the rankings decides which tie gets which draw.
    generator = torch.Generator().manual_seed(seed)
    return [_without_ties(ranking, generator) for ranking in rankings]


def _without_ties(ranking: Ranking, generator: torch.Generator) -> Ranking:
    """With tied answers in a random order: files often hold them in the order of their models."""
    if ranking.ranks is None:
        return ranking
    order = break_ties(ranking.ranks, generator)
    answers = tuple(ranking.answers[i] for i in order)
    ranks = tuple(ranking.ranks[i] for i in order)
    return replace(ranking, answers=answers, ranks=ranks)
