"""Stage dpo: direct preference optimization and its kin, the policy itself learns from rankings.

It needs no reward model, critic or rollouts. The last stage of Xwin-LM's 2024 paper
(arXiv:2405.20335). Rankings are those that people brought, with KTO also labelled answers;
or of the policy's own answers, as that paper advises for what is dispreferred: those of rejection
sampling, ranked by the reward model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rayward.actors.training.dpo import dpo_loop
from rayward.cluster.connect import connect
from rayward.configs.plan import inputs, optimizer_steps
from rayward.configs.stages import learns_labels
from rayward.data.ragged import merge
from rayward.data.records import Prompt, Ranking
from rayward.pipelines.rows.labelled import prepared_labels
from rayward.pipelines.rows.ranked import ranked_rows
from rayward.pipelines.rows.records import prepared
from rayward.pipelines.rows.renderer import Renderer, check_vocabulary
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.files import read_jsonl
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.metrics import table
from rayward.pipelines.run.stage import Stage, begin
from rayward.pipelines.scoring.reward_measures import measure
from rayward.pipelines.training.labels import learn_labels
from rayward.pipelines.training.ray_train import RANKED_SHOWN, job, train

LAST = (
    "loss",
    "sft_loss",
    "odds_loss",
    "best_moved",
    "worst_moved",
    "best_logprob",
    "worst_logprob",
)
"""Figures of the last step, those that the objective has, among the stage's."""


def train_dpo(run: Run) -> dict[str, Any] | None:
    """Do the stage; None if it was done before."""
    config, dpo = run.config, run.config.dpo
    stage = begin(run, "dpo", inputs(config, "dpo"))
    if stage is None:
        return None
    connect(config.cluster)
    renderer = Renderer.of_run(run)
    # Only the one that is meant: the others may be none of this run's.
    match dpo.start:
        case "sft":
            model = run.first
        case "base":
            model = run.base
        case "sample":
            model = run.model("sample")
    check_vocabulary(renderer.tokenizer, model)
    rankings = prepared(run, "rankings")
    if dpo.data == "samples":
        samples = list(read_jsonl(run.folder / "sample" / "samples.jsonl"))
        rankings = list(sampled_rankings(prepared(run, "prompts"), samples, dpo.answers_per_prompt))
        if unknown := sum(row["kept"] and not _ends_known(row) for row in samples):
            print(
                f"dpo: {unknown} of {len(samples)} prompts are left out: sample was made by an "
                "earlier version, which does not say which of their answers were cut; rayward "
                "align CONFIG --redo sample takes them in"
            )
    learn = learn_labels if learns_labels(config) else learn_rankings
    metrics = learn(stage, model, rankings, renderer)
    table("dpo", metrics)
    return stage.finish(metrics)


def learn_rankings(
    stage: Stage, model: str, rankings: list[Ranking], renderer: Renderer
) -> dict[str, Any]:
    """Train on rankings; figures of the last step and of the held-out rankings."""
    run, config, dpo = stage.run, stage.run.config, stage.run.config.dpo
    kept, rows = ranked_rows(rankings, renderer, config.seed)
    if not kept:
        raise StageError(
            f"dpo.data {dpo.data}: none of {len(rankings)} rankings has two answers that fit the "
            "context"
        )
    counts = {"rankings": len(kept)}
    labels = len(prepared_labels(run, "labelled")) if dpo.data == "preferences" else 0
    if labels:
        counts["labelled_left_out"] = labels
        print(
            f"dpo: {labels} labelled answers are left out: dpo.objective {dpo.objective} learns "
            "from rankings; kto learns from both",
            flush=True,
        )
    heldout, heldout_rows = ranked_rows(prepared(run, "heldout"), renderer, config.seed)
    steps = optimizer_steps(len(kept), dpo.rankings_per_step, dpo.epochs)
    work = job(stage, model, rows, heldout_rows, dpo)
    reports = train(stage, "dpo", dpo_loop, work, steps, RANKED_SHOWN)
    last = {name: reports["last"][name] for name in LAST if name in reports["last"]}
    last |= {"kept_step": reports["kept"][0]["kept_step"]} if dpo.keep == "best" else {}
    measures: dict[str, Any] = {"heldout_rankings": 0}
    if heldout:
        scores = merge(reports["heldout_scores"], len(heldout_rows.ids))
        measures = measure(scores, heldout, heldout_rows)
    return counts | {"optimizer_steps": steps} | last | measures


def sampled_rankings(
    prompts: Sequence[Prompt], samples: Sequence[dict[str, Any]], count: int
) -> Iterator[Ranking]:
    """Of each prompt of rejection sampling its best answer and worse ones, evenly down to the
    worst, `count` in all.

    Prompts are left out that sampling did not keep, or whose answers are all the best one. No two
    answers are equal. An answer that was cut is none of them: as a row it would end with the end
    token, which nobody put there.
    """
    by_id = {prompt.id: prompt for prompt in prompts}
    for row in samples:
        if not row["kept"] or not _ends_known(row):
            continue
        # A row of an earlier version comes this far only if all of its answers ended.
        ended = row.get("ended", [True] * len(row["answers"]))
        drawn = zip(row["answers"], row["scores"], ended, strict=True)
        # By text, so that no two answers of a ranking are equal.
        scored = {text: score for text, score, whole in drawn if whole}
        worse = [
            text
            for text in scored
            if text and scored[text] < scored[row["response"]] and text != row["response"]
        ]
        ordered = [row["response"], *sorted(worse, key=lambda text: -scored[text])]
        # Fewer than `count` give the same place twice: each is taken once.
        pick = np.unique(np.linspace(0, len(ordered) - 1, count).round().astype(int))
        if len(pick) > 1:
            prompt = by_id[row["prompt_id"]]
            answers = [ordered[index] for index in pick]
            # Rank 0 is the best; equal scores share a rank, so no pair of them is learned from.
            levels = sorted({-scored[text] for text in answers})
            ranks = tuple(float(levels.index(-scored[text])) for text in answers)
            yield Ranking(prompt.turns, tuple(answers), "samples", prompt.id, ranks, prompt.tools)


def _ends_known(row: dict[str, Any]) -> bool:
    """Whether it is known which answers ended: earlier versions only counted them."""
    return "ended" in row or row["finished"] == len(row["answers"])
