"""Stage 6: every model of the run answers the same held-out prompts, and a judge compares each with the SFT model.

One set of rollout engines serves all models, by weight transfer. The judge is the toy world's gold judge or the second
reward model; it also scores what PPO and APA wrote while they trained, which draws the judge's view of a run beside the
reward model's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.group import Group, RolloutGroup, frozen_group, reward_group, running
from algorithms.winrate import bootstrap_interval, outcomes
from cluster.connect import check_fits, connect
from configs.plan import ALGORITHMS, roles
from configs.plan import models as configured
from data import toyworld
from data.ragged import Ragged, merge
from data.records import Prompt
from data.rollouts import Rollouts
from pipelines.renderer import Renderer, answered
from pipelines.rows import fit_prompts, prepared, some
from pipelines.scoring import Scorer
from pipelines.stage import Metrics, Run, StageError, begin, read_jsonl, table, write_json, write_jsonl

TRANSCRIPTS_PER_ITERATION = 256
COMPARED = 64  # answers of a model whose log-probs by the trainer are held against the engine's

Judge = Callable[[Sequence[Prompt], Sequence[dict[str, Any]]], np.ndarray]


def run(run: Run) -> dict[str, Any] | None:
    """Do the stage; None if it was done before."""
    config = run.config
    models = {name: stage for name, stage in configured(config).items() if run.done(stage)}
    if "sft" not in models or len(models) < 2:
        raise StageError(
            f"{run.folder} holds {', '.join(models) or 'no model'}; evaluate compares others with sft: "
            "run sft and at least one of sample, dpo and rl first"
        )
    stage = begin(run, "evaluate", ("prepare", "reward", *models.values()), follows_inputs=True)
    if stage is None:
        return None
    connect(config.cluster)
    check_fits(roles(config, "evaluate"))
    renderer = Renderer.of_run(run)
    prompts = some(prepared(run, "evaluation_prompts"), config.evaluate.prompts, config.seed)
    folders = {name: str(Path(run.model(models[name])).resolve()) for name in models}
    panel = Panel(run, folders["sft"], renderer)
    with running(*panel.groups):
        answers = panel.answer(stage.folder, folders, prompts)
        curves = {name: _curve(run, name, panel.judge) for name in ALGORITHMS if name in models}
    for name, rows in answers.items():
        write_jsonl(stage.folder / f"answers_{name}.jsonl", rows)
    judged = {name: np.array([row["judge"] for row in rows]) for name, rows in answers.items()}
    write_json(stage.folder / "curves.json", curves)
    metrics = {
        "judge": config.evaluate.judge,
        "prompts": len(prompts),
        "win_rate": {
            name: win_rate(judged[name], judged["sft"], config.evaluate.bootstrap_samples, config.seed)
            for name in models
            if name != "sft"
        },
        "difference": {
            name: differences(answers, judged, name, config.evaluate.bootstrap_samples, config.seed)
            for name in models
            if name != "sft"
        },
        "models": {name: _about(answers[name], judged[name]) for name in models},
    }
    _show(metrics)
    return stage.finish(metrics)


class Panel:
    """The actors of an evaluation: rollout engines, the model under test, the SFT reference and the judge."""

    def __init__(self, run: Run, sft: str, renderer: Renderer):
        config = run.config
        self.config, self.renderer = config, renderer
        self.rollout = RolloutGroup(sft, config, config.resources.reference, loads=False)
        self.reference = frozen_group("reference", sft, config, config.evaluate.temperature)
        self.candidate = frozen_group("candidate", sft, config, config.evaluate.temperature)
        self.groups: list[Group] = [self.rollout, self.reference, self.candidate]
        # What others are asked and paid for is not asked once more.
        local = all(source.kind in ("model", "function") for source in config.scoring.sources)
        self.reward = Scorer(run, renderer) if local else None
        self.groups += self.reward.groups if self.reward else []
        self.scorer = None
        if config.evaluate.judge == "reward_model":
            self.scorer = reward_group(str((run.folder / "reward" / "judge").resolve()), config)
            self.groups.append(self.scorer)

    def answer(self, folder: Path, models: dict[str, str], prompts: list[Prompt]) -> dict[str, list[dict[str, Any]]]:
        """One answer of every model to every prompt, with its KL to the SFT model and the engine's log-prob gap."""
        config = self.config
        ids = fit_prompts(prompts, self.renderer, config.rollout.max_new_tokens, Counter())[1]
        if len(ids) != len(prompts):
            raise StageError(f"{len(prompts) - len(ids)} evaluation prompts no longer fit; make prepare again (--redo)")
        self.candidate.call("connect", self.rollout.actors, self.rollout.backend)
        answers: dict[str, list[dict[str, Any]]] = {}
        with Metrics(folder, "evaluate", len(models), "model") as metrics:
            for version, (name, path) in enumerate(models.items(), start=1):
                self.candidate.call("load", path)
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
                rewards = self.reward.score(rollouts, prompts, lenient=True) if self.reward else None
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

    def _describe(
        self, name: str, rollouts: Rollouts, prompts: list[Prompt], rewards: np.ndarray | None
    ) -> list[dict[str, Any]]:
        """The engine's log-probs are the model's, as its weights were proved; the first answers' are compared."""
        sampled = rollouts.responses.like(rollouts.rollout_logprobs)
        reference = sampled
        if name != "sft":  # which is the reference itself
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
                "mismatch": float(np.abs(own[row] - sampled[row]).max()) if row < len(few) else None,
                "reward": None if rewards is None or np.isnan(rewards[row]) else float(rewards[row]),
            }
            for row, prompt in enumerate(prompts)
        ]
        # A judge that is a model reads the very tokens, which the text of an answer need not give again.
        scores = self.scorer.score(rollouts.sequences()) if self.scorer else self.judge(prompts, rows)
        return [row | {"judge": float(score)} for row, score in zip(rows, scores, strict=True)]

    def judge(self, prompts: Sequence[Prompt], rows: Sequence[dict[str, Any]]) -> np.ndarray:
        """One number for each row's answer, higher is better; an empty or cut answer is judged as it stands."""
        pairs = list(zip(prompts, rows, strict=True))
        if self.scorer is None:
            return np.array([toyworld.judge(prompt.turns, row["answer"]) for prompt, row in pairs])
        ids = [answered(self.renderer, prompt, row["answer"], row["finished"]) for prompt, row in pairs]
        return self.scorer.score(Ragged.of(ids))


def win_rate(candidate: np.ndarray, baseline: np.ndarray, resamples: int, seed: int) -> dict[str, float]:
    """Share of prompts on which the candidate's answer is judged better, ties half, with its 95 % interval."""
    won = outcomes(candidate, baseline)
    low, high = bootstrap_interval(won, resamples, seed)
    return {"mean": float(np.mean(won)), "low": float(low), "high": float(high), "n": len(won)}


def differences(
    answers: dict[str, list[dict[str, Any]]], judged: dict[str, np.ndarray], name: str, resamples: int, seed: int
) -> dict[str, dict[str, float]]:
    """Mean of what a model's answer scores more than SFT's to the same prompt, with its 95 % interval: by the judge,
    and by the reward that RL and sampling learn from, over the prompts for which it has a number."""
    found = {"judge": judged[name] - judged["sft"]}
    pairs = zip(answers[name], answers["sft"], strict=True)
    rewards = [(ours["reward"], theirs["reward"]) for ours, theirs in pairs]
    if known := [ours - theirs for ours, theirs in rewards if ours is not None and theirs is not None]:
        found["reward"] = np.array(known)
    shown = {}
    for of, values in found.items():
        low, high = bootstrap_interval(values, resamples, seed)
        shown[of] = {"mean": float(values.mean()), "low": low, "high": high, "n": len(values)}
    return shown


def _curve(run: Run, algorithm: str, judge: Judge) -> list[dict[str, float]]:
    """Mean score by the reward model and by the judge of each training iteration's first answers."""
    known = {prompt.id: prompt for prompt in prepared(run, "prompts")}
    points = []
    for file in sorted((run.folder / "rl" / algorithm / "transcripts").glob("*.jsonl")):
        rows = list(read_jsonl(file))[:TRANSCRIPTS_PER_ITERATION]
        judged = judge([known[row["prompt_id"]] for row in rows], rows)
        points.append(
            {
                "iteration": int(file.stem),
                "reward": float(np.mean([row["score"] for row in rows])),
                "judge": float(np.mean(judged)),
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


def _show(metrics: dict[str, Any]) -> None:
    rows = []
    for name, about in metrics["models"].items():
        rate = metrics["win_rate"].get(name)
        shown = f"{rate['mean']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]" if rate else "-"
        rows.append((name, shown, about["judge_mean"], about["kl"], about["tokens"], f"{about['finished']:.1%}"))
    table(
        f"win rate against SFT, judge: {metrics['judge']}, {metrics['prompts']} held-out prompts",
        rows,
        ("model", "win rate [95 %]", "judge", "KL to SFT", "tokens", "finished"),
    )

    def interval(of: dict[str, float] | None) -> str:
        return f"{of['mean']:+.3f} [{of['low']:+.3f}, {of['high']:+.3f}]" if of else "-"

    pairs = metrics["difference"].items()
    table(
        "what an answer scores more than SFT's to the same prompt, mean [95 %]",
        [(name, interval(of.get("reward")), interval(of["judge"])) for name, of in pairs],
        ("model", "by the reward that is learned from", f"by the judge ({metrics['judge']})"),
    )
