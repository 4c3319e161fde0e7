"""The actors of online RL, and what the driver asks of them: answers, scores, updates, weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
import torch

from rayward.actors.group import (
    ExtraPrompts,
    Group,
    RolloutGroup,
    TrainingGroup,
    critic_group,
    frozen_group,
    policy_group,
)
from rayward.actors.rollout.generation import Generation
from rayward.actors.training.updates import mean_over_steps
from rayward.algorithms.advantage import kl_k1
from rayward.cluster.connect import check_fits
from rayward.configs.plan import (
    asks_reference,
    critic_start,
    has_reference,
    in_turn,
    max_mismatch,
    old_logprobs,
    roles,
)
from rayward.configs.sections.rl import WITH_CRITIC
from rayward.data.ragged import Ragged, merge
from rayward.data.records import Prompt
from rayward.data.rollouts import Rollouts, concatenated
from rayward.pipelines.rl.advantages import gap
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.run.stage import Run
from rayward.pipelines.scoring.reward_folder import check_same_tokens, numbers
from rayward.pipelines.scoring.scorer import Scorer, second_model

PARTS = 4  # in which the answers of an iteration go to be scored
LAYOUT = ("padding", "computed_tokens")
TOLD = 8  # answers of an iteration whose tokens are kept with their KL


class RlActors:
    """The actors of the stage. Engines, reference and reward model serve every algorithm; each has
    its own learners.
    """

    policy: TrainingGroup
    critic: TrainingGroup | None

    def __init__(self, run: Run, training: bool = True, replays: bool = False):
        self.config, self.run, self.replays = run.config, run, replays
        config, start = run.config, run.first
        self.renderer = Renderer.of_run(run)
        check_fits(roles(config, "rl"))
        if training and set(config.rl.algorithms) & set(WITH_CRITIC):
            self.critic_start = self._critic_start()
        self.rollout = RolloutGroup(start, config, config.resources.policy, loads=not training)
        self.reward = Scorer(run, self.renderer)
        self.second = second_model(run, self.renderer) if training else None
        self.serving: dict[str, Group] = {"rollout": self.rollout}
        if training and any(has_reference(config, name) for name in config.rl.algorithms):
            self.serving["reference"] = frozen_group(
                "reference", start, config, config.rollout.temperature
            )
        self.serving |= {
            f"reward {number}" if number else "reward": group
            for number, group in enumerate(self.reward.groups)
        }
        if self.second:
            self.serving["second"] = self.second.group
        self.asked: list[tuple[Rollouts, dict[str, Any]]] = []
        self.old_of_engine = False
        self.second_scores: np.ndarray | None = None
        self.spans: list[dict[str, Any]] = []

    def __enter__(self) -> RlActors:
        return self

    def __exit__(self, *_: object) -> None:
        for group in self.serving.values():
            group.stop()

    def ready(self) -> None:
        """Wait for the actors that serve every algorithm."""
        for group in self.serving.values():
            group.ready()

    @contextmanager
    def learning(self, algorithm: str) -> Iterator[None]:
        """Policy and critic of an algorithm, from the SFT and the reward model; the engines hold
        the policy's weights.

        The first time it waits for the other actors too, which start meanwhile.
        """
        config = self.config
        self.algorithm = algorithm
        colocated = config.rl.mode == "colocate"
        if colocated:
            self.rollout.ready()
            self.rollout.call("sleep")
        slots = self.rollout.slots
        self.policy = policy_group(self.run.first, config, algorithm, slots)
        self.critic = None
        if algorithm in WITH_CRITIC:
            folder, new_head = self.critic_start
            self.critic = critic_group(folder, config, slots, new_head)
        self.colocation = ColocationSwitch(self.rollout, list(self.learners.values()), colocated)
        try:
            starting = [(group, group.begin_start()) for group in self.learners.values()]
            self.ready()
            for group, calls in starting:
                group.finish(calls, config.cluster.start_timeout_s)
            self.about = self.policy.call("describe")
            self.policy.call("connect", self.rollout.actors, self.rollout.backend)
            self.send_weights(0)
            self.take_spans()
            self.spans = []
            yield
        finally:
            for group in self.learners.values():
                group.stop()

    def _critic_start(self) -> tuple[str, bool]:
        """The folder, and whether its head is new. StageError for one that reads other token
        ids.
        """
        start = critic_start(self.config)
        if start in ("reward", "policy"):
            return (
                (self.run.model("reward"), False) if start == "reward" else (self.run.first, True)
            )
        return check_same_tokens(
            start, self.renderer, "where the critic starts", "set rl.critic: policy"
        ), False

    @property
    def learners(self) -> dict[str, TrainingGroup]:
        return {"policy": self.policy} | ({"critic": self.critic} if self.critic else {})

    def generate(
        self, prompts: Ragged, iteration: int, beside: ExtraPrompts | None = None
    ) -> Generation:
        """Start to draw answers to the prompts, and those `beside` them, with the weights that the
        engines hold.
        """
        rollout, count = self.config.rollout, -(-len(prompts) // PARTS)
        return self.rollout.stream(
            prompts,
            self.config.rl.samples_per_prompt,
            (self.config.seed, "rl", iteration),
            self.renderer.stop_token_ids,
            rollout.temperature,
            rollout.max_new_tokens,
            count,
            beside=beside,
        )

    def ask(self, part: Rollouts, prompts: list[Prompt], iteration: int) -> None:
        """Let reward, reference, critic and policy score answers; `scored` waits for all that were
        asked.

        The reference only where the iteration needs it, or it is time to look at the KL; so with
        the second reward model, whose `second_scores` are for the monitor alone.
        """
        batch = ray.put(part)
        calls: dict[str, Any] = {}
        if part.scores is None:
            calls["scores"] = self.reward.begin(part, prompts)
        if asks_reference(self.config, self.algorithm, iteration):
            own = has_reference(self.config, self.algorithm)
            calls["reference"] = (
                self.serving["reference"].begin("logprobs", batch)
                if own
                else self.policy.begin("reference_logprobs", batch)
            )
        if self.critic:
            calls["values"] = self.critic.begin("values", batch)
        if self.second and in_turn(self.config, self.config.rl.monitor.second_every, iteration):
            calls["second"] = self.second.begin(part, prompts)
        if self.replays or old_logprobs(self.config) == "trainer":
            calls["policy"] = self.policy.begin("logprobs", batch)
        self.asked.append((part, calls))

    def scored(self, prompts: list[Prompt]) -> tuple[Rollouts, dict[str, float]]:
        """All that were asked, with their columns; and figures: the policy's mean entropy in nats,
        each source's.

        `old_of_engine` says afterwards whose log-probs are the old ones. Of a replay that shows on
        the answers: the engine's would do only where they are the policy's, as in the run that
        sampled them.
        """
        asked, self.asked = sorted(self.asked, key=lambda pair: pair[0].prompt_index[0]), []
        rollouts = concatenated([part for part, _ in asked])
        policy = [self.policy.finish(calls["policy"]) for _, calls in asked if "policy" in calls]

        def joined(group: Group, name: str) -> np.ndarray:
            return np.concatenate(
                [merge(group.finish(calls[name]), len(part)) for part, calls in asked]
            )

        self.old_of_engine = old_logprobs(self.config) == "rollout"
        if policy:
            entropy = sum(nats for parts in policy for _, nats in parts) / len(
                rollouts.responses.values
            )
            pairs = zip(policy, asked, strict=True)
            old = np.concatenate(
                [merge([own for own, _ in parts], len(part)) for parts, (part, _) in pairs]
            )
            apart = gap(rollouts.with_columns(policy_logprobs=old))["mismatch_mean"]
            self.old_of_engine &= apart <= max_mismatch(self.config)
        if self.old_of_engine:
            old = rollouts.rollout_logprobs
            entropy = -float(old.mean())
        figures: dict[str, float] = {"entropy": float(entropy)}
        columns: dict[str, Any] = {"policy_logprobs": old}
        if rollouts.scores is None:
            begun = self.reward.join([(calls["scores"], len(part)) for part, calls in asked])
            columns["scores"], of_sources = self.reward.finish(begun, rollouts, prompts)
            figures |= of_sources
        if "reference" in asked[0][1]:
            columns["reference_logprobs"] = joined(
                self.serving.get("reference", self.policy), "reference"
            )
        if self.critic:
            columns["values"] = joined(self.critic, "values")
        self.second_scores = None
        if self.second and "second" in asked[0][1]:
            self.second_scores = numbers(
                [said for _, calls in asked for said in self.second.finish(calls["second"])]
            )
        return rollouts.with_columns(**columns), figures

    def engine_gap(self, answers: Rollouts) -> dict[str, float]:
        """How far the policy's log-probs of these answers are from the engine's."""
        parts = self.policy.call("logprobs", ray.put(answers), "monitor")
        return gap(
            answers.with_columns(policy_logprobs=merge([own for own, _ in parts], len(answers)))
        )

    def update(self, rollouts: Rollouts, iteration: int, policy: bool = True) -> dict[str, Any]:
        """Train policy (if asked to) and critic side by side; the mean over the optimizer steps of
        what they report.

        How the policy's rows lay in memory, which changes no result, stands under "time".
        """
        batch = ray.put(rollouts)
        critic = self.critic.begin("update", batch, iteration) if self.critic else None
        metrics: dict[str, Any] = {}
        if policy:
            merged = mean_over_steps(self.policy.call("update", batch, iteration))
            metrics["time"] = {name: merged.pop(name) for name in LAYOUT}
            metrics |= {f"policy/{name}": value for name, value in merged.items()}
        if self.critic and critic:
            merged = mean_over_steps(self.critic.finish(critic))
            metrics |= {
                f"critic/{name}": value for name, value in merged.items() if name not in LAYOUT
            }
        return metrics

    def send_weights(self, version: int) -> dict[str, Any]:
        """Policy to rollout engines: versioned, with a deadline, proved by a digest and by
        log-probs.
        """
        self.colocation.to_transfer()
        sent = self.policy.call("send_weights", version)[0]
        rate = sent["bytes"] / sent.pop("seconds")
        self.colocation.to_engines()
        sent["gap"] = self.rollout.prove(sent.pop("probe"), version)
        return {"transfer": {"version": version, **sent}, "time": {"transfer_bytes_per_s": rate}}

    def take_spans(self, only: str | None = None, ahead: Generation | None = None) -> None:
        """Remember what the actors did and when; `only` those of one role, since a call waits for
        work before it.

        Engines at work on the answers `ahead` are not waited for: so far they have been at it since
        it began.
        """
        groups = {**self.serving, **self.learners}
        busy = ahead.running() if ahead else []
        if ahead and busy:
            del groups["rollout"]
            at = {"start": ahead.begun, "end": time.time(), "open": True}
            self.spans += [
                {"role": "rollout", "rank": rank, "name": "generate", **at} for rank in busy
            ]
        asked = {
            name: group.begin("take_spans")
            for name, group in groups.items()
            if only in (None, name)
        }
        for name, calls in asked.items():
            for rank, spans in enumerate(groups[name].finish(calls)):
                self.spans += [
                    {
                        "role": name.split(" ")[0],
                        "rank": rank,
                        "name": what,
                        "start": start,
                        "end": end,
                    }
                    for what, start, end in spans
                ]

    def transcripts(self, rollouts: Rollouts, prompts: list[Prompt]) -> Iterator[dict[str, Any]]:
        """The answers as text, for people and for the judge of the evaluation; the first with what
        each token got.
        """
        assert rollouts.scores is not None
        for row in range(len(rollouts)):
            prompt = prompts[rollouts.prompt_index[row]]
            told = self._tokens(rollouts, row) if row < TOLD else {}
            yield {
                "prompt_id": prompt.id,
                "prompt": prompt.turns[-1].content,
                "answer": self.renderer.answer(rollouts.responses[row]),
                "score": None if np.isnan(rollouts.scores[row]) else float(rollouts.scores[row]),
                "tokens": int(rollouts.responses.lengths[row]),
                "finished": bool(rollouts.finished[row]),
                **told,
            }

    def _tokens(self, rollouts: Rollouts, row: int) -> dict[str, Any]:
        one = rollouts.take([row])
        columns = (one.policy_logprobs, one.reference_logprobs, one.advantages)
        policy, reference, advantages = (
            None if column is None else torch.from_numpy(column) for column in columns
        )
        if policy is None or reference is None or advantages is None:
            return {}
        pieces = [self.renderer.tokenizer.decode([token]) for token in one.responses.values]
        kl = [round(float(x), 4) for x in kl_k1(policy, reference)]
        return {"pieces": pieces, "kl": kl, "advantages": [round(float(x), 4) for x in advantages]}


class ColocationSwitch:
    """Who has the memory of the GPUs in mode colocate: engines or learners; in other modes each has
    its own.
    """

    def __init__(self, rollout: RolloutGroup, learners: list[TrainingGroup], colocated: bool):
        self.rollout, self.groups, self.on = (
            rollout,
            [group for group in learners if group.role.gpus],
            colocated,
        )

    def to_learners(self) -> None:
        """After generation: the engines give up weights and cache, the learners come back."""
        if self.on:
            self.rollout.call("sleep")
            for group in self.groups:
                group.call("reload")

    def to_transfer(self) -> None:
        """Both hold weights for the time of the transfer, the engines without their cache."""
        if self.on:
            self.rollout.call("wake", "weights")

    def to_engines(self) -> None:
        """After the transfer: the learners go to the host, the engines take memory for their
        cache.
        """
        if self.on:
            for group in self.groups:
                group.call("offload")
            self.rollout.call("wake", "kv_cache")
