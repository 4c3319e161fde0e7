"""Rankings as token rows, ties broken, with what does not fit left out and counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import torch

from rayward.actors.training.ranked import RankedRows
from rayward.algorithms.preference import break_ties
from rayward.data.ragged import Ragged
from rayward.data.records import Ranking
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.rows.rows import fit_rankings


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
        generator = torch.Generator().manual_seed(seed)
        rankings = [_without_ties(ranking, generator) for ranking in rankings]
    kept, encoded = fit_rankings(rankings, renderer, Counter() if dropped is None else dropped)
    ids = Ragged.of([row.ids for ranking in encoded for row in ranking])
    answers = Ragged.of([row.weights for ranking in encoded for row in ranking], np.uint8)
    ranks = [rank for ranking in kept for rank in (ranking.ranks or range(len(ranking.answers)))]
    sizes = np.array([len(ranking) for ranking in encoded], dtype=np.int64)
    return kept, RankedRows(ids, sizes, np.array(ranks, dtype=np.float32), answers)


def _without_ties(ranking: Ranking, generator: torch.Generator) -> Ranking:
    if ranking.ranks is None:
        return ranking
    order = break_ties(ranking.ranks, generator)
    answers, ranks = (
        tuple(ranking.answers[i] for i in order),
        tuple(ranking.ranks[i] for i in order),
    )
    return replace(ranking, answers=answers, ranks=ranks)
