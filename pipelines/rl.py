"""Stage 5: online RL. Each algorithm of the config (PPO, APA) starts from the SFT model and learns by itself.

One iteration: generate, score, estimate advantages, update policy and critic, bring the new weights to the rollout
engines. The loop below is the whole of it; what a step does stands in the functions under it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import torch

from actors.forward import merge
from actors.group import Group, RolloutGroup, TrainingGroup, critic_group, frozen_group, policy_group
from actors.policy import mean_over_steps
from algorithms.advantage import (
    RunningMoments,
    gae,
    kl_k1,
    kl_k3,
    missing_eos_scores,
    scale_scores,
    shape_rewards,
    whiten,
)
from cluster.connect import check_fits, connect
from configs.plan import INPUTS, arithmetic_lines, roles
from configs.schema import Config
from data.packing import epoch_order
from data.ragged import Ragged
from data.records import Prompt
from data.rollouts import Rollouts
from pipelines.monitor import Monitor, counts, second_group
from pipelines.rows import Renderer, fit_prompts, load_records
from pipelines.scoring import Scorer
from pipelines.stage import Metrics, Run, Stage, begin, table, write_json, write_jsonl

# Mean gap between rollout and trainer log-probs of a token that stops a run, in nats. Right weights give 1e-6 in fp32.
MAX_MISMATCH = {"float32": 1e-4, "bfloat16": 0.05}


def run(run: Run) -> dict[str, Any] | None:
    """Do what is missing of the stage; None if nothing was. Each algorithm is finished on its own (rl/ppo, rl/apa)."""
    config = run.config
    tried = {name: begin(run, f"rl/{name}", INPUTS[f"rl/{name}"]) for name in config.rl.algorithms}
    missing = {name: stage for name, stage in tried.items() if stage}
    if not missing:
        return None
    print("\n".join(arithmetic_lines(config)))
    connect(config.cluster)
    results: dict[str, Any] = {}
    with Team(run) as team:
        for algorithm, stage in missing.items():
            stage.begun = time.perf_counter()
            with team.learning(algorithm):
                metrics = _train(stage, algorithm, team)
            results[algorithm] = stage.finish(metrics)
    return results


def _train(stage: Stage, algorithm: str, team: Team) -> dict[str, Any]:
    config = stage.run.config
    transcripts = stage.folder / "transcripts"
    transcripts.mkdir()
    stream = PromptStream(stage.run, team.renderer)
    monitor = Monitor(stage, algorithm, team)
    history: list[dict[str, Any]] = []
    moments = RunningMoments()
    with Metrics(stage.folder, algorithm, config.rl.iterations, "iter") as metrics:
        for iteration in range(config.rl.iterations):
            clock = Clock()
            prompts, prompt_ids = stream.take(iteration)
            rollouts = clock.time("generate", team.generate, prompt_ids, iteration)
            rollouts, figures = clock.time("score", team.score, rollouts, prompts)
            rollouts, measures = estimate_advantages(rollouts, config, algorithm, moments)
            measures |= figures
            measures |= clock.time("monitor", monitor.look, iteration, rollouts, measures)
            measures |= clock.time("update", team.update, rollouts, iteration)
            if iteration + 1 < config.rl.iterations:  # the last weights have nobody to sample for
                measures |= clock.time("transfer", team.send_weights, iteration + 1)
            history.append({**measures, "time": clock.seconds})
            metrics.log(iteration, history[-1], ("score", "kl", "length"))
            write_jsonl(transcripts / f"{iteration:05d}.jsonl", team.transcripts(rollouts, prompts))
            write_json(stage.folder / "reward_state.json", moments.state_dict())
            monitor.check()
    team.policy.call("save", str((stage.folder / "model").resolve()))
    return _summary(algorithm, history, counts(monitor.alarms))


class PromptStream:
    """Training prompts in a shuffled order that depends on the seed alone; each pass over them has its own."""

    def __init__(self, run: Run, renderer: Renderer):
        prompts = load_records(run.folder / "prepare" / "prompts.jsonl")
        self.prompts, self.ids = fit_prompts(prompts, renderer, run.config.rollout.max_new_tokens, Counter())
        self.seed, self.size = run.config.seed, run.config.rl.prompts_per_iteration

    def take(self, iteration: int) -> tuple[list[Prompt], Ragged]:
        """The prompts of an iteration, and their token ids."""
        rows = []
        for position in range(iteration * self.size, (iteration + 1) * self.size):
            pass_number, place = divmod(position, len(self.ids))
            rows.append(epoch_order(len(self.ids), self.seed, pass_number)[place])
        return [self.prompts[row] for row in rows], self.ids.take(rows)


class Team:
    """The actors of the stage. Engines, reference and reward model serve every algorithm; each has its own learners."""

    policy: TrainingGroup
    critic: TrainingGroup

    def __init__(self, run: Run):
        self.config, self.run = run.config, run
        self.renderer = Renderer.of(run.config.model, run.folder / "prepare" / "tokenizer")
        check_fits(roles(self.config, "rl"))
        self.rollout = RolloutGroup(run.model("sft"), self.config, self.config.resources.policy)
        self.reference = frozen_group("reference", run.model("sft"), self.config, self.config.rollout.temperature)
        self.reward = Scorer(run, self.renderer)
        self.second = second_group(run, self.renderer)
        self.serving: list[Group] = [self.rollout, self.reference, *self.reward.groups]
        if self.second:
            self.serving.append(self.second)

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        for group in self.serving:
            group.stop()

    @contextmanager
    def learning(self, algorithm: str) -> Iterator[None]:
        """Policy and critic of an algorithm, from the SFT and the reward model; the engines hold the policy's weights.

        The first time it waits for the other actors too, which start meanwhile.
        """
        self.policy = policy_group(self.run.model("sft"), self.config, algorithm)
        self.critic = critic_group(self.run.model("reward"), self.config)
        learners = (self.policy, self.critic)
        try:
            starting = [(group, group.begin_start()) for group in learners]
            for group in self.serving:
                group.ready()
            for group, calls in starting:
                group.finish(calls, self.config.cluster.start_timeout_s)
            self.policy.call("connect", self.rollout.actors, self.rollout.backend)
            self.send_weights(0)
            yield
        finally:
            for group in learners:
                group.stop()

    def generate(self, prompts: Ragged, iteration: int) -> Rollouts:
        """Answers to the prompts, sampled by the policy's current weights and by no other."""
        rollouts = self.rollout.generate(
            prompts,
            self.config.rl.samples_per_prompt,
            (self.config.seed, "rl", iteration),
            self.renderer.stop_token_ids,
            self.config.rollout.temperature,
            self.config.rollout.max_new_tokens,
        )
        if rollouts.weight_version != iteration:
            raise RuntimeError(f"iteration {iteration} was sampled with weight version {rollouts.weight_version}")
        return rollouts

    def score(self, rollouts: Rollouts, prompts: list[Prompt]) -> tuple[Rollouts, dict[str, float]]:
        """Reward, reference and policy log-probs and values, all at once; and figures: the policy's mean entropy in
        nats, and of the sources of reward."""
        batch = ray.put(rollouts)
        asked = self.reward.begin(rollouts, prompts)
        reference = self.reference.begin("logprobs", batch)
        values = self.critic.begin("values", batch)
        policy = self.policy.begin("logprobs", batch)
        rows = len(rollouts)
        parts = self.policy.finish(policy)
        entropy = sum(entropy_sum for _, entropy_sum in parts) / len(rollouts.responses.values)
        scores, figures = self.reward.finish(asked, rollouts, prompts)
        return rollouts.with_columns(
            scores=scores,
            policy_logprobs=merge([part for part, _ in parts], rows),
            reference_logprobs=merge(self.reference.finish(reference), rows),
            values=merge(self.critic.finish(values), rows),
        ), {"entropy": float(entropy), **figures}

    def update(self, rollouts: Rollouts, iteration: int) -> dict[str, float]:
        """Train policy and critic side by side; the mean over the optimizer steps of what they report."""
        batch = ray.put(rollouts)
        critic = self.critic.begin("update", batch, iteration)
        metrics: dict[str, float] = {}
        if iteration >= self.config.rl.critic_warmup_iterations:
            merged = mean_over_steps(self.policy.call("update", batch, iteration))
            metrics |= {f"policy/{name}": value for name, value in merged.items()}
        merged = mean_over_steps(self.critic.finish(critic))
        return metrics | {f"critic/{name}": value for name, value in merged.items()}

    def send_weights(self, version: int) -> dict[str, Any]:
        """Policy to rollout engines: versioned, with a deadline, proved by a digest."""
        return {"transfer": {"version": version, **self.policy.call("send_weights", version)[0]}}

    def transcripts(self, rollouts: Rollouts, prompts: list[Prompt]) -> Iterator[dict[str, Any]]:
        """The iteration's answers as text, for people and for the judge of the evaluation."""
        assert rollouts.scores is not None
        for row in range(len(rollouts)):
            prompt = prompts[rollouts.prompt_index[row]]
            yield {
                "prompt_id": prompt.id,
                "prompt": prompt.turns[-1].content,
                "answer": self.renderer.answer(rollouts.responses[row]),
                "score": None if np.isnan(rollouts.scores[row]) else float(rollouts.scores[row]),
                "tokens": int(rollouts.responses.lengths[row]),
                "finished": bool(rollouts.finished[row]),
            }


@dataclass
class Clock:
    """Seconds of the phases of an iteration."""

    seconds: dict[str, float] = field(default_factory=dict)

    def time(self, phase: str, work: Any, *arguments: Any) -> Any:
        begun = time.perf_counter()
        try:
            return work(*arguments)
        finally:
            self.seconds[f"{phase}_s"] = round(time.perf_counter() - begun, 4)


def estimate_advantages(
    rollouts: Rollouts, config: Config, algorithm: str, moments: RunningMoments
) -> tuple[Rollouts, dict[str, float]]:
    """Per-token rewards (score at the end, KL penalty along the way), GAE, whitening; and the RL panel's figures.

    `moments`, of all scores so far, take in these.

    Raises RuntimeError where rollout and trainer log-probs are further apart than rl.max_mismatch on the average.
    """
    rl = config.rl
    own = rl.ppo if algorithm == "ppo" else rl.apa
    columns = (rollouts.scores, rollouts.policy_logprobs, rollouts.reference_logprobs, rollouts.values)
    scores_B, policy_N, reference_N, values_N = (torch.from_numpy(column) for column in columns if column is not None)
    lengths = rollouts.responses.lengths.tolist()
    gap_N = (policy_N - torch.from_numpy(rollouts.rollout_logprobs)).abs()
    allowed = rl.max_mismatch or MAX_MISMATCH[config.model.dtype]
    if not float(gap_N.mean()) <= allowed:
        raise RuntimeError(
            f"trainer and rollout log-probs of a token differ by {float(gap_N.mean()):.3g} nats on the average, more "
            f"than {allowed} (rl.max_mismatch): the engine does not run the trainer's model"
        )
    std = moments.update(scores_B)[1]
    scaled = {"none": (1.0, True), "clip_then_std": (std, True), "std_then_clip": (std, False)}[rl.reward_scaling]
    penalized_B = scores_B - rl.length_penalty * torch.tensor(lengths)
    shaped_B = scale_scores(penalized_B, scaled[0], rl.reward_clip, clip_first=scaled[1])
    if rl.missing_eos_reward is not None:
        shaped_B = missing_eos_scores(shaped_B, torch.from_numpy(rollouts.finished), rl.missing_eos_reward)
    kl_N = kl_k1(policy_N, reference_N)
    rewards_N = shape_rewards(shaped_B, kl_N, lengths, own.kl_coef)
    advantages_N, returns_N = gae(rewards_N, values_N, lengths, rl.gamma, rl.gae_lambda)
    used_N = whiten(advantages_N) if own.whiten else advantages_N
    kl_B = torch.tensor([float(part.sum()) for part in kl_N.split(lengths)])
    spread = float(returns_N.var())
    measures = {
        "score": float(scores_B.mean()),
        "score_std": float(scores_B.std()),
        "reward": float(rewards_N.sum() / len(lengths)),
        "kl": float(kl_B.mean()),
        "kl_k3": float(kl_k3(policy_N, reference_N).mean()),
        "mismatch_mean": float(gap_N.mean()),
        "mismatch_max": float(gap_N.max()),
        "length": float(np.mean(lengths)),
        "finished": float(rollouts.finished.mean()),
        "advantage_std": float(advantages_N.std()),
        "explained_variance": 1.0 - float((returns_N - values_N).var()) / spread if spread else 0.0,
    }
    return rollouts.with_columns(advantages=used_N.float().numpy(), returns=returns_N.float().numpy()), measures


def _summary(algorithm: str, history: list[dict[str, Any]], alarms: dict[str, dict[str, int]]) -> dict[str, Any]:
    first, last = history[0], history[-1]
    phases = {
        phase: float(np.median([row["time"][phase] for row in history if phase in row["time"]]))
        for phase in first["time"]
    }
    metrics = {
        "iterations": len(history),
        "score_first": first["score"],
        "score": last["score"],
        "kl": last["kl"],
        "length_first": first["length"],
        "length": last["length"],
        "entropy": last["entropy"],
        "finished": last["finished"],
        "mismatch_max": max(row["mismatch_max"] for row in history),
        "alarms": alarms,
        "seconds_per_iteration": phases,
    }
    shown = [f"{name}: {of['iterations']}, first {of['first']}" for name, of in alarms.items()]
    table(
        algorithm,
        {name: value for name, value in metrics.items() if name != "seconds_per_iteration"}
        | {"alarms": "; ".join(shown) or "none"}
        | {f"median {phase}": value for phase, value in phases.items()},
    )
    return metrics
