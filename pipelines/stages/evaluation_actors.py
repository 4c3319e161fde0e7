"""The actors of an evaluation, and the answers they give, with log-probs, rewards and scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle

from rayward.actors.frozen_groups import frozen_group, reference_group
from rayward.actors.group import Group
from rayward.actors.rollout_group import RolloutGroup
from rayward.cluster.placement import Placement
from rayward.configs.plan import asks_reward
from rayward.configs.stages import has
from rayward.data.model_files.hub_models import config_of
from rayward.data.ragged import Ragged, merge
from rayward.data.records import Prompt
from rayward.data.rollouts import Rollouts
from rayward.pipelines.rows.prompts import fit_prompts
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.metrics import Metrics
from rayward.pipelines.run.stage import Stage
from rayward.pipelines.scoring.judges import RewardJudge, judge_of
from rayward.pipelines.scoring.scorer import Scorer
from rayward.pipelines.stages.comparison import Answers, largest_mismatch

MISMATCH_ANSWERS = 64
"""Answers of a model whose log-probs by the trainer are held against the engine's."""


class EvaluationActors:
    """Rollout engines, the model under test, the one it is compared with, the judge, the reward."""

    def __init__(
        self, run: Run, reference: str, against: str, renderer: Renderer, placement: Placement
    ):
        config, seats = run.config, placement.seats
        self.config, self.renderer, self.against = config, renderer, against
        self.judge = judge_of(run, renderer, placement)
        self.reward = Scorer(run, renderer, placement) if asks_reward(config) else None
        self.engine_seats, self.connected = seats("rollout"), False
        # The engines read no weights of their own: each model's come by transfer, and are proved.
        self.rollout = self._engines(reference)
        self.engine_shape, temperature = shape(reference), config.evaluate.temperature
        self.reference = reference_group(reference, config, temperature, seats("reference"))
        # Loads each model in turn; it starts as the reference since it has to start as something.
        self.candidate = frozen_group(
            "candidate", reference, config, temperature, seats("candidate")
        )
        self.groups: list[Group] = [
            self.rollout,
            self.reference,
            self.candidate,
            *self.judge.groups,
        ]
        self.groups += self.reward.groups if self.reward else []

    def _engines(self, path: str) -> RolloutGroup:
        config = self.config
        return RolloutGroup(path, config, config.resources.reference, False, self.engine_seats)

    def judged_texts(self, prompts: list[Prompt], answers: list[str]) -> np.ndarray:
        """[B] the judge's scores of whole answers, one to each prompt; NaN for none."""
        if isinstance(self.judge, RewardJudge):
            assert self.reward is not None  # `asks_reward` says so of this judge
            return self.reward.score_texts(prompts, answers)
        rows = [{"answer": answer, "finished": True} for answer in answers]
        return self.judge.of_texts(prompts, rows)

    def answer(self, stage: Stage, models: dict[str, str], prompts: list[Prompt]) -> Answers:
        """One answer of every model to every prompt, with its KL and the engine's log-prob gap.

        The answers of a model are a part of the stage, which a later try has.
        """
        config = self.config
        ids = fit_prompts(prompts, self.renderer, config.rollout.max_new_tokens, Counter())[1]
        # `prepare` left only what fits, with the settings that it had.
        if len(ids) != len(prompts):
            raise StageError(
                f"{len(prompts) - len(ids)} evaluation prompts no longer fit; make prepare again "
                "(--redo)"
            )
        answers: Answers = {}
        with Metrics(stage.folder, "evaluate", len(models), "model") as metrics:
            for version, (name, path) in enumerate(models.items(), start=1):
                answers[name] = stage.part(
                    f"answers-{name}",
                    partial(self._answers_of, name, path, version, prompts, ids),
                )
                metrics.log(
                    version,
                    {
                        "kl": float(np.mean([row["kl"] for row in answers[name]])),
                        "mismatch_max": largest_mismatch(answers[name]),
                    },
                    ("kl",),
                )
        return answers

    def _answers_of(
        self, name: str, path: str, version: int, prompts: list[Prompt], ids: Ragged
    ) -> list[dict[str, Any]]:
        config = self.config
        self.candidate.call("load", path)
        self._fit_engines(path)
        sent = self.candidate.call("send_weights", version)[0]
        # Else an engine that kept the model before would give two models the same answers.
        self.rollout.prove(sent["probe"], version)
        self.rollout.bring_weights = partial(self._bring_weights, sent["probe"], version)
        rollouts = self.rollout.generate(
            ids,
            1,
            # By name, not by number: a model more leaves the answers of the others alone.
            (config.seed, "evaluate", name),
            self.renderer.stop_token_ids,
            config.evaluate.temperature,
            config.rollout.max_new_tokens,
        )
        rewards = self._rewards(rollouts, prompts)
        return self._describe(name, rollouts, prompts, rewards)

    def _bring_weights(
        self, probe: tuple[list[int], list[float]], version: int, engines: Sequence[ActorHandle]
    ) -> None:
        """Let engines that were started anew have what the others hold."""
        self.candidate.call("send_again", list(engines), version)
        self.rollout.prove(probe, version, engines)
        self.connected = False

    def _fit_engines(self, path: str) -> None:
        """Let the engines be of the model's kind: one that is given may have another shape."""
        # Between two models nobody holds what a lost engine would need.
        self.rollout.bring_weights = None
        if self.rollout.take_back():
            self.connected = False
        if (kind := shape(path)) != self.engine_shape:
            # The new engines are in no group of `self.groups`: who started those stops these.
            self.rollout.stop()
            self.rollout = self._engines(path)
            self.rollout.ready()
        elif self.connected:
            return
        self.engine_shape, self.connected = kind, True
        # The way of the weights is between these processes: opened once, and anew for new engines.
        self.candidate.call("connect", self.rollout.actors, self.rollout.backend)

    def _rewards(self, rollouts: Rollouts, prompts: list[Prompt]) -> np.ndarray | None:
        """[B] what RL would learn from these answers, NaN for none; None where it is not asked."""
        if self.reward is None:
            return None
        # Lenient: a source that fails on one answer leaves that out, not the whole evaluation.
        rewards = self.reward.score(rollouts, prompts, lenient=True)
        missing_eos_reward = self.config.rl.missing_eos_reward
        if has(self.config, "rl") and missing_eos_reward is not None:
            rewards = np.where(rollouts.finished, rewards, np.float32(missing_eos_reward))
        return rewards

    def _describe(
        self, name: str, rollouts: Rollouts, prompts: list[Prompt], rewards: np.ndarray | None
    ) -> list[dict[str, Any]]:
        """A row a prompt: the answer with its KL to the reference, mismatch, reward and score.

        The engine's log-probs are taken for the model's, as its weights were proved; those of the
        first answers are compared.
        """
        sampled = rollouts.responses.like(rollouts.rollout_logprobs)
        reference = sampled
        if name != self.against:  # which is the reference itself
            logprobs = merge(self.reference.call("logprobs", ray.put(rollouts)), len(rollouts))
            reference = rollouts.responses.like(logprobs)
        # Few: the trainer's own log-probs cost a forward pass, and say only that both agree.
        few = rollouts.take(range(min(MISMATCH_ANSWERS, len(rollouts))))
        trainer = few.responses.like(merge(self.candidate.call("logprobs", ray.put(few)), len(few)))
        rows = []
        for row, prompt in enumerate(prompts):
            mismatch, reward = None, None
            if row < len(few):
                mismatch = float(np.abs(trainer[row] - sampled[row]).max())
            if rewards is not None and not np.isnan(rewards[row]):
                reward = float(rewards[row])
            rows.append(
                {
                    "prompt_id": prompt.id,
                    "prompt": [turn.content for turn in prompt.turns],
                    "answer": self.renderer.answer(rollouts.responses[row]),
                    "tokens": int(rollouts.responses.lengths[row]),
                    "finished": bool(rollouts.finished[row]),
                    # Of one sample: log p / p_reference of this answer. The mean estimates the KL.
                    "kl": float((sampled[row] - reference[row]).sum()),
                    "mismatch": mismatch,
                    "reward": reward,
                }
            )
        scores = self.judge.of_rollouts(rollouts, prompts, rows)
        return [
            row | {"judge": None if np.isnan(score) else float(score)}
            for row, score in zip(rows, scores, strict=True)
        ]


def shape(folder: str) -> dict[str, Any]:
    """What the engines build a model from: its config without what changes nothing in it."""
    config: dict[str, Any] = config_of(folder).to_dict()
    other = ("_name_or_path", "transformers_version", "dtype", "use_cache")
    # Token ids of the config are not the engine's concern: each request says what ends an answer.
    return {
        name: value
        for name, value in config.items()
        if name not in other and not name.endswith("_token_id")
    }
