"""KTO of stage dpo: learning from labelled answers, and from rankings as two of them each."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

from rayward.actors.training.dpo import dpo_loop
from rayward.algorithms.objectives import separation
from rayward.configs.plan import optimizer_steps
from rayward.configs.sections.training import Dpo
from rayward.data.ragged import merge
from rayward.data.records import Labelled, Ranking
from rayward.pipelines.rows.labelled import labels_of, prepared_labels
from rayward.pipelines.rows.prompts import prompt_key
from rayward.pipelines.rows.ranked import labelled_rows, without_ties
from rayward.pipelines.rows.records import prepared
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.stage import Stage
from rayward.pipelines.training.ray_train import job, train

SHOWN = ("loss", "reference_point", "heldout_auc")
"""Metrics beside the bar."""
ADVISED = (1.0, 4 / 3)
"""Weight of all good answers over that of all bad ones (arXiv:2402.01306, eq. 8)."""

Pair: TypeAlias = tuple[Ranking, tuple[Labelled, Labelled]]
"""A ranking, and its best answer as a good one and its worst as a bad one."""


def learn_labels(
    stage: Stage, model: str, sampled: list[Ranking] | None, renderer: Renderer
) -> dict[str, Any]:
    """Train by KTO on labelled answers and rankings; figures of the last step and of the held-out
    answers.

    `sampled`: rankings of samples; None takes those that prepare left, and its labelled answers.
    """
    run, dpo, seed = stage.run, stage.run.config.dpo, stage.run.config.seed
    labelled = prepared_labels(run, "labelled") if sampled is None else []
    rankings = prepared(run, "rankings") if sampled is None else sampled
    pairs = label_pairs(rankings, seed)
    kept, rows = labelled_rows([*labelled, *_answers(pairs)], renderer)
    tied = len(rankings) - len(pairs)
    counts = _account(kept, learned_rankings(pairs, kept), tied, dpo)
    measured = _answers(label_pairs(prepared(run, "heldout"), seed))
    heldout, heldout_rows = labelled_rows(
        [*prepared_labels(run, "labelled_heldout"), *measured], renderer
    )
    steps = optimizer_steps(len(kept), dpo.rankings_per_step, dpo.epochs)
    work = job(stage, model, rows, heldout_rows, dpo)
    reports = train(stage, "dpo", dpo_loop, work, steps, SHOWN)
    names = ("loss", "reference_point", "reward_good", "reward_bad")
    last = {name: reports["last"][name] for name in names if name in reports["last"]}
    last |= {"kept_step": reports["kept"][0]["kept_step"]} if dpo.keep == "best" else {}
    figures: dict[str, Any] = {"optimizer_steps": steps, **last, "heldout_labelled": len(heldout)}
    if heldout:
        scores = torch.from_numpy(merge(reports["heldout_scores"], len(heldout_rows.ids)))
        good = torch.tensor([record.good for record in heldout])
        figures["auc"] = separation(scores, good)
        for name, of_kind in (("good", scores[good]), ("bad", scores[~good])):
            if len(of_kind):
                figures[f"heldout_reward_{name}"] = float(of_kind.mean())
    return counts | figures


def label_pairs(rankings: list[Ranking], seed: int) -> list[Pair]:
    """The rankings, but for those whose answers are all tied: of equals, none is good or bad."""
    return [
        (ranking, labels_of(ranking))
        for ranking in without_ties(rankings, seed)
        if ranking.ranks is None or len(set(ranking.ranks)) > 1
    ]


def _answers(pairs: list[Pair]) -> list[Labelled]:
    return [label for _, labels in pairs for label in labels]


def learned_rankings(pairs: list[Pair], kept: list[Labelled]) -> list[Ranking]:
    """The rankings of which an answer is among those `kept`, the very objects."""
    learned = set(map(id, kept))
    return [ranking for ranking, labels in pairs if any(id(label) in learned for label in labels)]


def _account(kept: list[Labelled], rankings: list[Ranking], tied: int, dpo: Dpo) -> dict[str, int]:
    """Counts of what is learned from, which are told. StageError where one kind is missing.

    `rankings`: those of which an answer is learned; `tied`: those of which none is.
    """
    good = sum(record.good for record in kept)
    bad = len(kept) - good
    if not good or not bad:
        found = f"all {len(kept)} are {'good' if good else 'bad'}" if kept else "there is none"
        raise StageError(
            "dpo.objective kto learns from good and bad answers, and of those that fit the "
            f"context {found}; add the others to data.preferences"
        )
    counts = {"labelled": len(kept), "good": good, "bad": bad}
    told = f"dpo: {len(kept)} labelled answers, {good} good and {bad} bad"
    if rankings:
        middle = sum(len(ranking.answers) - 2 for ranking in rankings)
        counts |= {"from_rankings": len(rankings), "middle_answers_left_out": middle}
        told += f"; {len(rankings)} rankings gave their best as good and their worst as bad"
        told += f", {middle} answers between are left out" * bool(middle)
    if tied:
        counts["tied_rankings_left_out"] = tied
        told += f"; {tied} rankings whose answers are all tied are left out"
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
    if len({prompt_key(record.turns) for record in kept}) == 1:
        print("dpo: all answers are to one prompt: KTO's reference point stays 0", flush=True)
    return counts
