"""Stage evaluate: models answer the same held-out prompts, and a judge compares each with one.

The models are those that the run has made, and those that it is given. One set of rollout engines
serves all of them, by weight transfer. First the judge is held against labelled pairs. It also
scores what RL wrote while it trained, which draws the judge's view of a run beside the reward's
own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from rayward.actors.group import running
from rayward.cluster.connect import connect
from rayward.cluster.placement import Placement
from rayward.configs.plan import asks_reward, roles
from rayward.configs.schema import Config
from rayward.configs.stages import (
    ALGORITHMS,
    baseline,
    compared,
    has,
    own_reward,
    trains_judge,
)
from rayward.pipelines.rows.records import prepared, subset
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.run.compared import models_there
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.files import read_jsonl, write_json, write_jsonl
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.stage import begin
from rayward.pipelines.scoring.judges import Judge
from rayward.pipelines.scoring.reward_folder import check_same_tokens
from rayward.pipelines.stages.comparison import (
    Answers,
    by_reward,
    differences,
    judged_by_all,
    model_figures,
    show,
    win_rate,
)
from rayward.pipelines.stages.evaluation_actors import EvaluationActors
from rayward.pipelines.stages.judge_trust import judge_figures, warn

TRANSCRIPTS_PER_ITERATION = 256


def evaluate(run: Run) -> dict[str, Any] | None:
    """Do the stage; None if it was done before."""
    config = run.config
    there = models_there(run)
    names, made = list(there), {name: part for name, part in there.items() if part}
    against = baseline(config)
    if against not in names or len(names) < 2:
        raise StageError(
            f"{run.folder} holds {', '.join(made) or 'no model'}; evaluate compares "
            f"{', '.join(name for name in compared(config) if name != against)} with {against}: "
            f"run {against} and at least one of the others first"
        )
    # The run's own reward model is needed where it judges or is asked. Else it is an input where it
    # is there, as the check before the run counts it (pipelines/parts.py).
    needs_reward = trains_judge(config) or (own_reward(config) and asks_reward(config))
    reads_reward = has(config, "reward") and (needs_reward or run.done("reward"))
    inputs = ["prepare", "reward"] if reads_reward else ["prepare"]
    inputs += [made[name] for name in made if name in names]
    # Follows its inputs: whoever has trained one more model wants it compared, without --redo.
    stage = begin(run, "evaluate", tuple(inputs), follows_inputs=True)
    if stage is None:
        return None
    connect(config.cluster)
    renderer = Renderer.of_run(run)
    prompts = subset(prepared(run, "evaluation_prompts"), config.evaluate.prompts, config.seed)
    folders = {name: run.named(name) for name in names}
    # Prompts go to all models as the same ids, and log-probs of the same answers are compared.
    for name in config.evaluate.models:
        check_same_tokens(
            folders[name], renderer, f"evaluate.models.{name}", "evaluate it in a run of its own"
        )
    with Placement(roles(config, "evaluate"), config.cluster, config) as placement:
        panel = EvaluationActors(run, folders[against], against, renderer, placement)
        try:
            with running(*panel.groups):
                # First of all: what its win rates are worth.
                trust = stage.part("judge", partial(judge_figures, run, panel.judged_texts))
                warn(trust)
                answers = panel.answer(stage, folders, prompts)
                curves = {
                    name: _curve(run, name, panel.judge) for name in ALGORITHMS if name in made
                }
        finally:
            # Engines that took the place of the first ones: `running` knows only those.
            if panel.rollout not in panel.groups:
                panel.rollout.stop()
    # All answers, before those are left out that some judge could not score.
    for name, rows in answers.items():
        write_jsonl(stage.folder / f"answers_{name}.jsonl", rows)
    answers = judged_by_all(answers)
    write_json(stage.folder / "curves.json", curves)
    metrics = _compare(config, answers, names, against)
    metrics["judge_agreement"] = trust
    if silent := len(prompts) - len(answers[against]):
        metrics["not_judged"] = silent
        print(
            f"evaluate: {silent} of {len(prompts)} prompts are left out: an answer to them has no "
            "score by the judge"
        )
    show(metrics, against)
    return stage.finish(metrics)


def _compare(config: Config, answers: Answers, names: list[str], against: str) -> dict[str, Any]:
    """The stage's metrics: each model beside the baseline, and by itself."""
    judged = {name: np.array([row["judge"] for row in rows]) for name, rows in answers.items()}
    others = [name for name in names if name != against]
    # The same seed for every model: all intervals are of the same resamples of the prompts.
    resamples, seed = config.evaluate.bootstrap_samples, config.seed
    metrics: dict[str, Any] = {
        "judge": config.evaluate.judge,
        "prompts": len(answers[against]),
        "win_rate": {
            name: win_rate(judged[name], judged[against], resamples, seed) for name in others
        },
        "difference": {
            name: differences(answers, judged, name, against, resamples, seed) for name in others
        },
        "models": {name: model_figures(answers[name], judged[name]) for name in names},
    }
    rewards = {name: by_reward(answers, judged, name, against, resamples, seed) for name in others}
    if any(rewards.values()):
        metrics["by_reward"] = {name: of for name, of in rewards.items() if of}
    if against != "sft":
        metrics["against"] = against
    return metrics


def _curve(run: Run, algorithm: str, judge: Judge) -> list[dict[str, float]]:
    """Mean score by the reward and by the judge of each training iteration's first answers."""
    by_id = {prompt.id: prompt for prompt in prepared(run, "prompts")}
    points = []
    for file in sorted((run.folder / "rl" / algorithm / "transcripts").glob("*.jsonl")):
        rows = list(read_jsonl(file))[:TRANSCRIPTS_PER_ITERATION]
        judged = judge.of_texts([by_id[row["prompt_id"]] for row in rows], rows)
        # NaN: an answer that a source or the judge had no number for. It counts in no mean.
        rewards = [np.nan if row["score"] is None else row["score"] for row in rows]
        points.append(
            {
                "iteration": int(file.stem),
                "reward": float(np.nanmean(rewards)),
                "judge": float(np.nanmean(judged)),
            }
        )
    return points
