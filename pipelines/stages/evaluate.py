"""Stage 6: every model answers the same held-out prompts, and a judge compares each with one,
usually the SFT model.

The models are those that the run has made, and those that it is given. One set of rollout engines
serves all of them, by weight transfer. The judge also scores what RL wrote while it trained, which
draws the judge's view of a run beside the reward's own.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import ray

from rayward.actors.group import Group, RolloutGroup, frozen_group, running
from rayward.algorithms.winrate import bootstrap_interval, outcomes
from rayward.cluster.connect import check_fits, connect
from rayward.configs.plan import asks_reward, roles
from rayward.configs.stages import (
    ALGORITHMS,
    START,
    baseline,
    compared,
    has,
    own_reward,
    trains_judge,
)
from rayward.configs.stages import models as configured
from rayward.data.model_files.hub_models import config_of
from rayward.data.ragged import merge
from rayward.data.records import Prompt
from rayward.data.rollouts import Rollouts
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.rows.rows import fit_prompts, prepared, some
from rayward.pipelines.run.stage import (
    Metrics,
    Run,
    StageError,
    begin,
    read_jsonl,
    table,
    write_json,
    write_jsonl,
)
from rayward.pipelines.scoring.judges import Judge, judge_of
from rayward.pipelines.scoring.reward_folder import check_same_tokens
from rayward.pipelines.scoring.scorer import Scorer

TRANSCRIPTS_PER_ITERATION = 256
COMPARED = 64  # answers of a model whose log-probs by the trainer are held against the engine's


def evaluate(run: Run) -> dict[str, Any] | None:
    """Do the stage; None if it was done before."""
    config = run.config
    made = {name: part for name, part in configured(config).items() if run.done(part)}
    given = {START, *config.evaluate.models}
    names = [name for name in compared(config) if name in made or name in given]
    against = baseline(config)
    if against not in names or len(names) < 2:
        raise StageError(
            f"{run.folder} holds {', '.join(made) or 'no model'}; evaluate compares "
            f"{', '.join(name for name in compared(config) if name != against)} with {against}: "
            f"run {against} and at least one of the others first"
        )
    asked = trains_judge(config) or (own_reward(config) and asks_reward(config))
    judges = ["reward"] if has(config, "reward") and (asked or run.done("reward")) else []
    stage = begin(
        run,
        "evaluate",
        ("prepare", *judges, *(made[name] for name in made if name in names)),
        follows_inputs=True,
    )
    if stage is None:
        return None
    connect(config.cluster)
    check_fits(roles(config, "evaluate"))
    renderer = Renderer.of_run(run)
    prompts = some(prepared(run, "evaluation_prompts"), config.evaluate.prompts, config.seed)
    folders = {name: run.named(name) for name in names}
    for name in config.evaluate.models:
        check_same_tokens(
            folders[name], renderer, f"evaluate.models.{name}", "evaluate it in a run of its own"
        )
    panel = EvaluationActors(run, folders[against], against, renderer)
    try:
        with running(*panel.groups):
            answers = panel.answer(stage.folder, folders, prompts)
            curves = {name: _curve(run, name, panel.judge) for name in ALGORITHMS if name in made}
    finally:
        if panel.rollout not in panel.groups:
            panel.rollout.stop()
    for name, rows in answers.items():
        write_jsonl(stage.folder / f"answers_{name}.jsonl", rows)
    answers = judged_by_all(answers)
    judged = {name: np.array([row["judge"] for row in rows]) for name, rows in answers.items()}
    write_json(stage.folder / "curves.json", curves)
    metrics = {
        "judge": config.evaluate.judge,
        "prompts": len(answers[against]),
        "win_rate": {
            name: win_rate(
                judged[name], judged[against], config.evaluate.bootstrap_samples, config.seed
            )
            for name in names
            if name != against
        },
        "difference": {
            name: differences(
                answers, judged, name, against, config.evaluate.bootstrap_samples, config.seed
            )
            for name in names
            if name != against
        },
        "models": {name: _about(answers[name], judged[name]) for name in names},
    }
    if against != "sft":
        metrics["against"] = against
    if silent := len(prompts) - len(answers[against]):
        metrics["not_judged"] = silent
        print(
            f"evaluate: {silent} of {len(prompts)} prompts are left out: an answer to them has no "
            "score by the judge"
        )
    _show(metrics, against)
    return stage.finish(metrics)


class EvaluationActors:
    """The actors of an evaluation: rollout engines, the model under test, the one it is compared
    with, the judge.
    """

    def __init__(self, run: Run, reference: str, against: str, renderer: Renderer):
        config = run.config
        self.config, self.renderer, self.against = config, renderer, against
        self.judge = judge_of(run, renderer)
        self.reward = Scorer(run, renderer) if asks_reward(config) else None
        self.rollout = RolloutGroup(reference, config, config.resources.reference, loads=False)
        self.held = shape(reference)
        self.reference = frozen_group("reference", reference, config, config.evaluate.temperature)
        self.candidate = frozen_group("candidate", reference, config, config.evaluate.temperature)
        self.groups: list[Group] = [
            self.rollout,
            self.reference,
            self.candidate,
            *self.judge.groups,
        ]
        self.groups += self.reward.groups if self.reward else []

    def answer(
        self, folder: Path, models: dict[str, str], prompts: list[Prompt]
    ) -> dict[str, list[dict[str, Any]]]:
        """One answer of every model to every prompt, with its KL to the reference and the engine's
        log-prob gap.
        """
        config = self.config
        ids = fit_prompts(prompts, self.renderer, config.rollout.max_new_tokens, Counter())[1]
        if len(ids) != len(prompts):
            raise StageError(
                f"{len(prompts) - len(ids)} evaluation prompts no longer fit; make prepare again "
                "(--redo)"
            )
        answers: dict[str, list[dict[str, Any]]] = {}
        with Metrics(folder, "evaluate", len(models), "model") as metrics:
            for version, (name, path) in enumerate(models.items(), start=1):
                self.candidate.call("load", path)
                self._fit(path, first=version == 1)
                sent = self.candidate.call("send_weights", version)[0]
                self.rollout.prove(sent["probe"], version)
                rollouts = self.rollout.generate(
                    ids,
                    1,
                    (config.seed, "evaluate", name),
                    self.renderer.stop_token_ids,
                    config.evaluate.temperature,
                    config.rollout.max_new_tokens,
                )
                rewards = (
                    self.reward.score(rollouts, prompts, lenient=True) if self.reward else None
                )
                if (
                    rewards is not None
                    and has(config, "rl")
                    and config.rl.missing_eos_reward is not None
                ):
                    rewards = np.where(
                        rollouts.finished, rewards, np.float32(config.rl.missing_eos_reward)
                    )
                answers[name] = self._describe(name, rollouts, prompts, rewards)
                metrics.log(
                    version,
                    {
                        "kl": float(np.mean([row["kl"] for row in answers[name]])),
                        "mismatch_max": _mismatch(answers[name]),
                    },
                    ("kl",),
                )
        return answers

    def _fit(self, path: str, first: bool) -> None:
        """Let the engines be of the model's kind: one that is given may have another shape than the
        reference.
        """
        if (kind := shape(path)) != self.held:
            self.rollout.stop()
            self.rollout = RolloutGroup(
                path, self.config, self.config.resources.reference, loads=False
            )
            self.rollout.ready()
        elif not first:
            return
        self.held = kind
        self.candidate.call("connect", self.rollout.actors, self.rollout.backend)

    def _describe(
        self, name: str, rollouts: Rollouts, prompts: list[Prompt], rewards: np.ndarray | None
    ) -> list[dict[str, Any]]:
        """The engine's log-probs are the model's, as its weights were proved; the first answers'
        are compared.
        """
        sampled = rollouts.responses.like(rollouts.rollout_logprobs)
        reference = sampled
        if name != self.against:  # which is the reference itself
            found = merge(self.reference.call("logprobs", ray.put(rollouts)), len(rollouts))
            reference = rollouts.responses.like(found)
        few = rollouts.take(range(min(COMPARED, len(rollouts))))
        own = few.responses.like(merge(self.candidate.call("logprobs", ray.put(few)), len(few)))
        rows = [
            {
                "prompt_id": prompt.id,
                "prompt": [turn.content for turn in prompt.turns],
                "answer": self.renderer.answer(rollouts.responses[row]),
                "tokens": int(rollouts.responses.lengths[row]),
                "finished": bool(rollouts.finished[row]),
                "kl": float((sampled[row] - reference[row]).sum()),
                "mismatch": float(np.abs(own[row] - sampled[row]).max())
                if row < len(few)
                else None,
                "reward": None
                if rewards is None or np.isnan(rewards[row])
                else float(rewards[row]),
            }
            for row, prompt in enumerate(prompts)
        ]
        scores = self.judge.of_rollouts(rollouts, prompts, rows)
        return [
            row | {"judge": None if np.isnan(score) else float(score)}
            for row, score in zip(rows, scores, strict=True)
        ]


def judged_by_all(answers: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of the prompts to which every model's answer has a judge's score. StageError where
    there are none.
    """
    scored = [
        all(row["judge"] is not None for row in rows)
        for rows in zip(*answers.values(), strict=True)
    ]
    if not any(scored):
        raise StageError("evaluate: the judge has no score for the answers to any prompt")
    return {
        name: [row for row, kept in zip(rows, scored, strict=True) if kept]
        for name, rows in answers.items()
    }


def shape(folder: str) -> dict[str, Any]:
    """What the engines build a model from: its config without what changes nothing in it."""
    found: dict[str, Any] = config_of(folder).to_dict()
    other = ("_name_or_path", "transformers_version", "dtype", "use_cache")
    return {
        name: value
        for name, value in found.items()
        if name not in other and not name.endswith("_token_id")
    }


def win_rate(
    candidate: np.ndarray, baseline: np.ndarray, resamples: int, seed: int
) -> dict[str, float]:
    """Share of prompts on which the candidate's answer is judged better, ties half, with its 95 %
    interval.
    """
    won = outcomes(candidate, baseline)
    low, high = bootstrap_interval(won, resamples, seed)
    return {"mean": float(np.mean(won)), "low": float(low), "high": float(high), "n": len(won)}


def differences(
    answers: dict[str, list[dict[str, Any]]],
    judged: dict[str, np.ndarray],
    name: str,
    against: str,
    resamples: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Mean of what a model's answer scores more than the other's to the same prompt, with its 95 %
    interval: by the judge, and by the reward that RL and sampling learn from, over the prompts for
    which it has a number."""
    found = {"judge": judged[name] - judged[against]}
    pairs = zip(answers[name], answers[against], strict=True)
    rewards = [(ours["reward"], theirs["reward"]) for ours, theirs in pairs]
    if known := [
        ours - theirs for ours, theirs in rewards if ours is not None and theirs is not None
    ]:
        found["reward"] = np.array(known)
    shown = {}
    for of, values in found.items():
        low, high = bootstrap_interval(values, resamples, seed)
        shown[of] = {"mean": float(values.mean()), "low": low, "high": high, "n": len(values)}
    return shown


def _curve(run: Run, algorithm: str, judge: Judge) -> list[dict[str, float]]:
    """Mean score by the reward model and by the judge of each training iteration's first
    answers.
    """
    known = {prompt.id: prompt for prompt in prepared(run, "prompts")}
    points = []
    for file in sorted((run.folder / "rl" / algorithm / "transcripts").glob("*.jsonl")):
        rows = list(read_jsonl(file))[:TRANSCRIPTS_PER_ITERATION]
        judged = judge.of_texts([known[row["prompt_id"]] for row in rows], rows)
        points.append(
            {
                "iteration": int(file.stem),
                "reward": float(
                    np.nanmean([np.nan if row["score"] is None else row["score"] for row in rows])
                ),
                "judge": float(np.nanmean(judged)),
            }
        )
    return points


def _about(rows: list[dict[str, Any]], judged: np.ndarray) -> dict[str, float]:
    return {
        "judge_mean": float(judged.mean()),
        "kl": float(np.mean([row["kl"] for row in rows])),
        "tokens": float(np.mean([row["tokens"] for row in rows])),
        "finished": float(np.mean([row["finished"] for row in rows])),
        "mismatch_max": _mismatch(rows),
    }


def _mismatch(rows: list[dict[str, Any]]) -> float:
    """Largest gap between engine and trainer log-probs."""
    return max(row["mismatch"] for row in rows if row["mismatch"] is not None)


def _show(metrics: dict[str, Any], against: str) -> None:
    other = "SFT" if against == "sft" else against
    rows = []
    for name, about in metrics["models"].items():
        rate = metrics["win_rate"].get(name)
        shown = f"{rate['mean']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]" if rate else "-"
        rows.append(
            (
                name,
                shown,
                about["judge_mean"],
                about["kl"],
                about["tokens"],
                f"{about['finished']:.1%}",
            )
        )
    table(
        f"win rate against {other}, judge: {metrics['judge']}, {metrics['prompts']} held-out "
        "prompts",
        rows,
        ("model", "win rate [95 %]", "judge", f"KL to {other}", "tokens", "finished"),
    )

    def interval(of: dict[str, float] | None) -> str:
        return f"{of['mean']:+.3f} [{of['low']:+.3f}, {of['high']:+.3f}]" if of else "-"

    pairs = metrics["difference"].items()
    table(
        f"what an answer scores more than that of {other} to the same prompt, mean [95 %]",
        [(name, interval(of.get("reward")), interval(of["judge"])) for name, of in pairs],
        ("model", "by the reward that is learned from", f"by the judge ({metrics['judge']})"),
    )
