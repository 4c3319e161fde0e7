"""The token rows that the prepare stage left, as the training loops take them: they stay in its
files, which each process of a training opens for itself.

A run that an earlier version prepared has no such files; its records are tokenised once more.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from rayward.actors.training.rankings import RankedRows
from rayward.actors.training.supervised import WeightedRows
from rayward.algorithms.preference import break_ties
from rayward.data.ragged import Chosen, Rows
from rayward.data.records import Prompt
from rayward.data.token_columns import MappedRows, MappedWeights, column
from rayward.pipelines.rows.conversations import fit_conversations, sft_rows
from rayward.pipelines.rows.labelled import prepared_labels
from rayward.pipelines.rows.prepared_file import token_path
from rayward.pipelines.rows.prompts import fit_prompts
from rayward.pipelines.rows.ranked import labelled_of, labelled_rows, ranked_rows
from rayward.pipelines.rows.records import prepared
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.run.folder import Run


def weighted_rows(run: Run, name: str, renderer: Renderer) -> WeightedRows:
    """Conversations of `name`, in the words and weights of stage sft."""
    path = token_path(run.folder / "prepare", name)
    if path.is_file():
        return WeightedRows(MappedRows(path, "ids"), MappedWeights(path))
    records = prepared(run, name)
    encoded = fit_conversations(records, renderer, Counter(), run.config.sft)[1]
    return WeightedRows(*sft_rows(encoded))


def prompt_rows(run: Run, name: str, renderer: Renderer) -> tuple[list[Prompt], Rows]:
    """Prompts of `name` and their rows, as `fit_prompts` gives them of rollout.max_new_tokens."""
    records, path = prepared(run, name), token_path(run.folder / "prepare", name)
    if path.is_file():
        return records, MappedRows(path, "ids")
    longest = run.config.rollout.max_new_tokens
    return fit_prompts(records, renderer, longest, Counter(), repeated=True)


def ranked(run: Run, name: str, renderer: Renderer, seed: int) -> RankedRows:
    """Rankings of `name`, ties in an order drawn by the seed, as `ranked_rows` gives them."""
    path = token_path(run.folder / "prepare", name)
    if not path.is_file():
        return ranked_rows(prepared(run, name), renderer, seed)[1]
    ids = MappedRows(path, "ids")
    if not len(ids):
        return ranked_rows([], renderer, seed)[1]
    starts = np.flatnonzero(column(path, "place").to_numpy() == 0)
    sizes = np.diff(np.append(starts, len(ids)))
    # NaN: the ranking came without ranks, and its answers keep their order.
    given = column(path, "rank").to_numpy(zero_copy_only=False)
    chosen = np.arange(len(ids))
    ranks = (chosen - np.repeat(starts, sizes)).astype(np.float64)
    # One generator for all: the order of the rankings decides which tie gets which draw.
    generator = torch.Generator().manual_seed(seed)
    for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
        if not np.isnan(given[start]):
            own = given[start : start + size]
            order = np.array(break_ties(own.tolist(), generator))
            chosen[start : start + size] = start + order
            ranks[start : start + size] = own[order]
    return RankedRows(
        Chosen(ids, chosen),
        sizes,
        ranks.astype(np.float32),
        Chosen(MappedWeights(path, np.uint8), chosen),
    )


def labelled(run: Run, name: str, renderer: Renderer) -> RankedRows:
    """Labelled answers of `name`, as `labelled_rows` gives them."""
    path = token_path(run.folder / "prepare", name)
    if not path.is_file():
        return labelled_rows(prepared_labels(run, name), renderer)
    ids = MappedRows(path, "ids")
    if not len(ids):
        return labelled_rows([], renderer)
    good = column(path, "good").to_numpy(zero_copy_only=False).astype(bool)
    return labelled_of(ids, MappedWeights(path, np.uint8), good)
