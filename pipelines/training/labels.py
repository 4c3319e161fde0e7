"""KTO of stage dpo: learning from labelled answers, and from rankings as two of them each."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rayward.actors.training.dpo import dpo_loop
from rayward.actors.training.rankings import RankedRows
from rayward.algorithms.objectives import separation
from rayward.configs.plan import optimizer_steps
from rayward.configs.sections.training import Dpo
from rayward.data.ragged import Behind, merge
from rayward.data.records import Ranking
from rayward.pipelines.rows.prepared_rows import labelled, ranked
from rayward.pipelines.rows.ranked import (
    best_and_worst,
    labelled_of,
    labelled_rows,
    ranked_rows,
)
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.stage import Stage
from rayward.pipelines.training.ray_train import job, train

SHOWN = ("loss", "reference_point", "heldout_auc")
"""Metrics beside the bar."""
ADVISED = (1.0, 4 / 3)
"""Weight of all good answers over that of all bad ones (arXiv:2402.01306, eq. 8)."""


def learn_labels(
    stage: Stage, model: str, sampled: list[Ranking] | None, renderer: Renderer
) -> dict[str, Any]:
    """Train by KTO on labelled answers and rankings; figures of the last step and of the held-out
    answers.

    `sampled`: rankings of samples; None takes those that prepare left, and its labelled answers.
    """
    run, dpo, seed = stage.run, stage.run.config.dpo, stage.run.config.seed
    if sampled is None:
        labels = labelled(run, "labelled", renderer)
        rankings = ranked(run, "rankings", renderer, seed)
    else:
        labels, rankings = labelled_rows([], renderer), ranked_rows(sampled, renderer, seed)[1]
    rows = with_rankings(labels, rankings)
    counts = _account(rows, rankings, dpo)
    heldout = with_rankings(
        labelled(run, "labelled_heldout", renderer), ranked(run, "heldout", renderer, seed)
    )
    steps = optimizer_steps(len(rows.ids), dpo.rankings_per_step, dpo.epochs)
    work = job(stage, model, rows, heldout, dpo)
    reports = train(stage, "dpo", dpo_loop, work, steps, SHOWN)
    names = ("loss", "reference_point", "reward_good", "reward_bad")
    last = {name: reports["last"][name] for name in names if name in reports["last"]}
    last |= {"kept_step": reports["kept"][0]["kept_step"]} if dpo.keep == "best" else {}
    count = len(heldout.ids)
    figures: dict[str, Any] = {"optimizer_steps": steps, **last, "heldout_labelled": count}
    if count:
        scores = torch.from_numpy(merge(reports["heldout_scores"], count))
        good = torch.from_numpy(heldout.good)
        figures["auc"] = separation(scores, good)
        for name, of_kind in (("good", scores[good]), ("bad", scores[~good])):
            if len(of_kind):
                figures[f"heldout_reward_{name}"] = float(of_kind.mean())
    return counts | figures


def with_rankings(labels: RankedRows, rankings: RankedRows) -> RankedRows:
    """Labelled answers, and behind them those of rankings."""
    more = best_and_worst(rankings)
    assert labels.good is not None and more.good is not None
    return labelled_of(
        Behind(labels.ids, more.ids),
        Behind(labels.answers, more.answers),
        np.concatenate([labels.good, more.good]),
    )


def _account(rows: RankedRows, rankings: RankedRows, dpo: Dpo) -> dict[str, int]:
    """Counts of what is learned from, which are told. StageError where one kind is missing.

    `rankings`: those whose answers are among the rows.
    """
    assert rows.good is not None
    good = int(rows.good.sum())
    bad = len(rows.good) - good
    if not good or not bad:
        kind = "good" if good else "bad"
        found = f"all {good + bad} are {kind}" if good + bad else "there is none"
        raise StageError(
            "dpo.objective kto learns from good and bad answers, and of those that fit the "
            f"context {found}; add the others to data.preferences"
        )
    counts = {"labelled": good + bad, "good": good, "bad": bad}
    told = f"dpo: {good + bad} labelled answers, {good} good and {bad} bad"
    if learned := len(rankings.sizes):
        middle = int((rankings.sizes - 2).sum())
        counts |= {"from_rankings": learned, "middle_answers_left_out": middle}
        told += f"; {learned} rankings gave their best as good and their worst as bad"
        told += f", {middle} answers between are left out" * bool(middle)
    print(told, flush=True)
    ratio = dpo.kto.desirable_weight * good / (dpo.kto.undesirable_weight * bad)
    low, high = ADVISED
    if not low <= ratio <= high:
        weight = dpo.kto.undesirable_weight * bad / good
        print(
            f"dpo: all good answers weigh {ratio:.3g} times as much as all bad ones, and {low:g} "
            f"to {high:.3g} is advised: dpo.kto.desirable_weight {low * weight:.3g} to "
            f"{high * weight:.3g}",
            flush=True,
        )
    if _one_prompt(rows):
        print("dpo: all answers are to one prompt: KTO's reference point stays 0", flush=True)
    return counts


def _one_prompt(rows: RankedRows) -> bool:
    """Whether all answers are to the same prompt."""

    def prompt(row: int) -> bytes:
        return bytes(rows.ids[row][: int(np.argmax(rows.answers[row]))])

    first = prompt(0)
    return all(prompt(row) == first for row in range(1, len(rows.ids)))
