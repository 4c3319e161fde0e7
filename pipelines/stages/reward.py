"""Stage reward: the reward model, a scalar head on the SFT model, trained on rankings.

Where a second reward model is the judge of the evaluation, it is trained here too, on rankings that
the first never sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from rayward.actors.training.rankings import RankedRows
from rayward.actors.training.reward_model import reward_loop
from rayward.cluster.connect import connect
from rayward.configs.labels import LABELS_ALONE
from rayward.configs.plan import inputs, optimizer_steps
from rayward.configs.stages import trains_judge
from rayward.data.model_files.hub_models import local
from rayward.data.ragged import Ragged, merge
from rayward.data.records import Ranking
from rayward.pipelines.rows.labelled import prepared_labels
from rayward.pipelines.rows.ranked import ranked_rows
from rayward.pipelines.rows.records import prepared
from rayward.pipelines.rows.renderer import Renderer, check_vocabulary
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.metrics import table
from rayward.pipelines.run.stage import Stage, begin
from rayward.pipelines.scoring.reward_measures import measure
from rayward.pipelines.training.ray_train import RANKED_SHOWN, job, train

CENTRE_ROWS = 256
"""Held-out SFT answers, at most, whose mean score becomes 0."""


def train_reward_models(run: Run) -> dict[str, Any] | None:
    """Do the stage; None if it was done before."""
    config = run.config
    stage = begin(run, "reward", inputs(config, "reward"))
    if stage is None:
        return None
    connect(config.cluster)
    metrics = _train(stage, "rankings", "model", config.seed)
    if labels := len(prepared_labels(run, "labelled")):
        metrics["labelled_left_out"] = labels
        print(f"reward: {labels} labelled answers are left out: {LABELS_ALONE}", flush=True)
    noise_ceiling = run.manifest("prepare")["metrics"].get("noise_ceiling")
    if noise_ceiling is not None:
        metrics["noise_ceiling"] = noise_ceiling
        metrics["share_of_ceiling"] = metrics["pair_accuracy"] / noise_ceiling
    if trains_judge(config):
        # Another seed for another head and order: a judge with the same errors would see none.
        metrics["judge"] = _train(stage, "judge", "judge", config.seed + 1)
    table("reward", {name: value for name, value in metrics.items() if name != "judge"})
    if "judge" in metrics:
        table("judge (a second reward model, on other rankings)", metrics["judge"])
    return stage.finish(metrics)


def _train(stage: Stage, rankings_name: str, folder: str, seed: int) -> dict[str, Any]:
    """Train one reward model into the stage's `folder`; its measures on the held-out rankings."""
    fitted = fit(
        stage, prepared(stage.run, rankings_name), prepared(stage.run, "heldout"), folder, seed
    )
    figures = {
        "rankings": fitted.trained,
        "optimizer_steps": fitted.steps,
        "loss": fitted.last["loss"],
        "centred_on": fitted.centred_on,
    }
    if fitted.kept:
        figures["kept_step"] = fitted.kept["kept_step"]
    return figures | measure(fitted.scores, fitted.heldout, fitted.rows)


@dataclass(frozen=True)
class Fitted:
    """What training left: counts, the last step's metrics, and scores of the held-out answers.

    `centred_on`: SFT's answers whose mean score became 0. `kept`: what is told of the state, where
    it is the best one.
    """

    trained: int
    steps: int
    last: dict[str, Any]
    centred_on: int
    kept: dict[str, Any]
    scores: np.ndarray
    heldout: list[Ranking]
    rows: RankedRows


def fit(
    stage: Stage, rankings: list[Ranking], heldout: list[Ranking], folder: str, seed: int
) -> Fitted:
    """Train a reward model, from the run's SFT model or reward.path, into the stage's `folder`."""
    run, config = stage.run, stage.run.config
    renderer = Renderer.of_run(run)
    start = local(config.reward.path) if config.reward.path else run.first
    check_vocabulary(renderer.tokenizer, start)
    rows = ranked_rows(rankings, renderer, seed)[1]
    heldout, heldout_rows = ranked_rows(heldout, renderer, seed)
    # Rankings fix the scores up to a constant only. It is chosen so that SFT's answers score 0 on
    # the average, and a reward above 0 is better than those.
    answers = _sft_answers(run, renderer)
    steps = optimizer_steps(len(rows.sizes), config.reward.rankings_per_step, config.reward.epochs)
    centre = ray.put(answers) if len(answers) else None
    work = job(stage, start, rows, heldout_rows, config.reward, folder, seed=seed, centre=centre)
    name = "reward" if folder == "model" else folder
    reports = train(
        stage, name, reward_loop, work, steps, RANKED_SHOWN, "" if folder == "model" else folder
    )
    scores = merge(reports["heldout_scores"], len(heldout_rows.ids))
    kept = reports["kept"][0] if config.reward.keep == "best" else {}
    return Fitted(
        len(rows.sizes), steps, reports["last"], len(answers), kept, scores, heldout, heldout_rows
    )


def _sft_answers(run: Run, renderer: Renderer) -> Ragged:
    """Token rows of held-out SFT conversations, whose mean score becomes 0; prints if of none."""
    heldout = prepared(run, "sft_heldout")
    trained = [record for record in heldout if record.turns[-1].loss_weight]
    rows = [renderer.scored(record.turns, tools=record.tools).ids for record in trained]
    # Whole ones only: the score is that of the end, which a cut row lacks.
    whole = [row for row in rows if len(row) <= renderer.context_tokens][:CENTRE_ROWS]
    if not whole:
        print(
            f"reward: the scores are NOT centred, their mean is arbitrary. {len(heldout)} SFT "
            f"answers are held out: {len(trained)} end with an answer that is trained, none of "
            f"these within model.context_tokens ({renderer.context_tokens})"
        )
    return Ragged.of(whole)
