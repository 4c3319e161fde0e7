"""Stage 3: the reward model, a scalar head on the SFT model trained on rankings, measured on
held-out ones.

Where a second reward model is the judge of the evaluation, it is trained here too, on rankings that
the first never sees.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch

from rayward.actors.training.ranked import RankedRows, reward_loop
from rayward.algorithms.preference import break_ties
from rayward.cluster.connect import connect
from rayward.configs.plan import inputs, optimizer_steps
from rayward.configs.stages import trains_judge
from rayward.data.model_files.hub_models import local
from rayward.data.ragged import Ragged, merge
from rayward.data.records import Ranking
from rayward.pipelines.model_tools.reward_eval import by_source
from rayward.pipelines.rows.renderer import Renderer, check_vocabulary
from rayward.pipelines.rows.rows import fit_rankings, prepared
from rayward.pipelines.run.stage import Run, Stage, begin, table
from rayward.pipelines.run.training import job, train

CENTRE_ROWS = 256
SHOWN = ("loss", "pair_accuracy", "heldout_accuracy")
OF_SOURCE = {
    "pair_accuracy": "mean",
    "accuracy_low": "low",
    "accuracy_high": "high",
    "length_baseline": "length_baseline",
}


def train_reward_models(run: Run) -> dict[str, Any] | None:
    """Do the stage; None if it was done before."""
    config = run.config
    stage = begin(run, "reward", inputs(config, "reward"))
    if stage is None:
        return None
    connect(config.cluster)
    metrics = _train(stage, "rankings", "model", config.seed)
    noise_ceiling = run.manifest("prepare")["metrics"].get("noise_ceiling")
    if noise_ceiling is not None:
        metrics["noise_ceiling"] = noise_ceiling
        metrics["share_of_ceiling"] = metrics["pair_accuracy"] / noise_ceiling
    if trains_judge(config):
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
    }
    figures |= {"centred_on": fitted.centred_on} | {
        name: fitted.kept[name] for name in ("kept_step",) if fitted.kept
    }
    return figures | measure(fitted.scores, fitted.heldout, fitted.rows)


@dataclass(frozen=True)
class Fitted:
    """What training left: counts, the last step's metrics, and the scores of the held-out rankings'
    answers.

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
    """Train a reward model on rankings, from the run's SFT model or reward.path, into the stage's
    `folder`.
    """
    run, config = stage.run, stage.run.config
    renderer = Renderer.of_run(run)
    start = local(config.reward.path) if config.reward.path else run.first
    check_vocabulary(renderer.tokenizer, start)
    rows = ranked_rows(rankings, renderer, seed)[1]
    heldout, heldout_rows = ranked_rows(heldout, renderer, seed)
    answers = _sft_answers(run, renderer)
    steps = optimizer_steps(len(rows.sizes), config.reward.rankings_per_step, config.reward.epochs)
    centre = ray.put(answers) if len(answers) else None
    work = job(stage, start, rows, heldout_rows, config.reward, folder, seed=seed, centre=centre)
    name = "reward" if folder == "model" else folder
    said = train(stage, name, reward_loop, work, steps, SHOWN, "" if folder == "model" else folder)
    scores = merge(said["heldout_scores"], len(heldout_rows.ids))
    kept = said["kept"][0] if config.reward.keep == "best" else {}
    return Fitted(
        len(rows.sizes), steps, said["last"], len(answers), kept, scores, heldout, heldout_rows
    )


def _sft_answers(run: Run, renderer: Renderer) -> Ragged:
    """Token rows of held-out SFT conversations, whose mean score becomes 0; told where there are
    none.
    """
    heldout = prepared(run, "sft_heldout")
    trained = [record for record in heldout if record.turns[-1].loss_weight]
    rows = [renderer.scored(record.turns).ids for record in trained]
    whole = [row for row in rows if len(row) <= renderer.context_tokens][:CENTRE_ROWS]
    if not whole:
        print(
            f"reward: the scores are NOT centred, their mean is arbitrary. {len(heldout)} SFT "
            f"answers are held out: {len(trained)} end with an answer that is trained, none of "
            f"these within model.context_tokens ({renderer.context_tokens})"
        )
    return Ragged.of(whole)


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
