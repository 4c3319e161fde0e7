"""Settings of RL: what the algorithms share, and the monitor."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rayward.configs.sections.algorithms import (
    IN_GROUPS,
    RECIPES,
    WITH_CRITIC,
    AlgorithmName,
    AlgorithmSections,
)
from rayward.configs.sections.base import Count, Fraction, Positive, Section
from rayward.configs.sections.training import Updates


class Lora(Section):
    """Low-rank adapters (arXiv:2106.09685) instead of all weights; the reference is the policy
    without them.
    """

    rank: Count = 16
    """Rank of an adapter's two matrices."""
    alpha: Positive = 32.0
    """The adapter's output is multiplied by alpha / rank."""
    targets: str | tuple[str, ...] = "all-linear"
    """Names of the layers that get one, or all-linear: every linear layer but the head."""


class MonitorSection(Section):
    """Signs of reward hacking: what is watched, and from where on it is an alarm; nothing here
    changes the policy.
    """

    second: str | None = None
    """Reward model (folder or hub name) that is only asked, never trained on; null takes evaluate's
    judge, if one.
    """
    second_every: Count = 4
    """Iterations from one in which it scores the answers to the next; the last iteration has one
    too.
    """
    kl: bool = True
    """Measure the KL to the reference also where nothing that is learned needs it."""
    kl_every: Count = 4
    """Iterations from one such measurement to the next; the last iteration has one too."""
    max_kl: Positive | None = 50.0
    """Alarm where the mean KL to the reference is above this, in nats per answer; null never."""
    max_length_ratio: Positive | None = 2.0
    """Alarm where the mean answer length is above this multiple of iteration 0's; null never."""
    min_length_ratio: Positive | None = 0.5
    """Alarm where the mean answer length is below this share of iteration 0's; null never."""
    max_truncated: Fraction | None = 0.5
    """Alarm where more than this share of the answers are cut at rollout.max_new_tokens; null
    never.
    """
    max_repetition: Fraction | None = 0.3
    """Alarm where more than this share of an answer's 4-grams repeat earlier ones, on the average;
    null never.
    """
    min_distinct: Positive | None = 0.3
    """Alarm where the share of different 2-grams is below this multiple of iteration 0's; null
    never.
    """
    max_equal_groups: Fraction | None = 0.9
    """Alarm where the answers of more than this share of the prompts have one reward each; null
    never.
    """
    max_second_drop: Positive | None = 0.5
    """Alarm where the second model's mean score fell by this many standard deviations of iteration
    0; null never.
    """
    max_mismatch_factor: Annotated[float, Field(ge=1)] | None = 1.05
    """Alarm where trainer and engine probabilities of a token differ by more than this factor on
    the average.
    """
    prompts: Annotated[int, Field(ge=0)] = 8
    """Evaluation prompts (or training prompts) that are asked again and again, answers kept to be
    read; 0 for none.
    """
    every: Count = 1
    """Iterations from one look at the fixed prompts to the next; the last iteration has one too."""
    stop_on_alarm: bool = False
    """Stop the stage after `patience` iterations in a row with the same alarm; otherwise alarms
    only warn.
    """
    patience: Count = 3
    """Iterations in a row with the same alarm that stop the stage; only with stop_on_alarm."""

    @model_validator(mode="after")
    def _patience_is_of_stopping(self) -> MonitorSection:
        if (
            self.patience != MonitorSection.model_fields["patience"].default
            and not self.stop_on_alarm
        ):
            raise ValueError(
                f"rl.monitor.patience {self.patience} has no effect without "
                "rl.monitor.stop_on_alarm true"
            )
        return self


class Rl(AlgorithmSections):
    """Online RL: what the algorithms share, and each one's own numbers."""

    algorithms: Annotated[tuple[AlgorithmName, ...], Field(min_length=1)] = ("ppo", "apa")
    """Algorithms to run, each from the SFT model (or model.path); ppo, apa and awr have a critic.
    """
    mode: Literal["sync", "one_step_off", "colocate"] = "sync"
    """Generate, then train; or generate the next answers while training; or take turns on the same
    GPUs.
    """
    iterations: Count = 100
    """Rounds of generating, scoring and updating."""
    prompts_per_iteration: Count = 64
    """Prompts answered per iteration."""
    samples_per_prompt: Count = 4
    """Answers drawn per prompt."""
    extra_prompts: Annotated[int, Field(ge=0)] = 0
    """Further prompts that an iteration may draw in place of those whose answers all have one
    reward (DAPO); 0 none.
    """
    samples_per_step: Count = 128
    """Answers of one optimizer step; divides prompts_per_iteration x samples_per_prompt."""
    epochs: Count = 2
    """Passes over an iteration's answers."""
    gamma: Fraction = 1.0
    """Discount per token."""
    gae_lambda: Fraction = 0.95
    """GAE lambda: 1 is the plain return, lower trusts the critic more."""
    reward_clip: Positive | None = 10.0
    """Scores beyond plus or minus this are cut, in units of reward; null never cuts."""
    reward_scaling: Literal["none", "clip_then_std", "std_then_clip", "whiten"] = "none"
    """Divide scores by the deviation of all so far, after cutting them (Starling) or before (APA),
    or whiten them.
    """
    whiten_rewards: bool = False
    """Scale the rewards of tokens, with the KL penalty in them, to variance 1 and leave their mean
    (AlpacaFarm).
    """
    length_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Taken from the score for each token of the answer, in units of reward."""
    missing_eos_reward: float | None = None
    """Score given to an answer that was cut at max_new_tokens, whatever the scaling; null keeps its
    score.
    """
    value_clip: Positive | None = 0.2
    """Half width of the critic's trust interval around its old values; null does not clip."""
    critic: str | None = None
    """Start of the critic: a reward model's folder, reward (the run's own), policy (a new head on
    it); null picks.
    """
    critic_learning_rate: Positive = 5e-6
    """Peak learning rate of the critic."""
    critic_warmup_iterations: Annotated[int, Field(ge=0)] = 0
    """First iterations that train the critic only."""
    critic_warm_gate: Positive | None = None
    """Iterations train the critic only while its loss on the new answers is above this (Starling:
    1); null never.
    """
    old_logprobs: Literal["auto", "trainer", "rollout"] = "auto"
    """Old log-probs: the trainer's or the engine's; auto: the engine's with equal weights and no
    importance_cap set.
    """
    importance_cap: Annotated[float, Field(ge=1)] = 2.0
    """Cap of the importance weight between trainer and rollout probabilities of a token; with
    old_logprobs trainer.
    """
    max_mismatch: Positive | None = None
    """Mean gap between trainer and rollout log-probs that stops a run, in nats; null is 1e-4, in
    bfloat16 0.05.
    """
    shared_prompts: bool | None = None
    """Compute a prompt's tokens once for its answers; null: where that takes fewer operations and
    the model can.
    """
    sequence_parallel: Count = 1
    """Ranks of policy and critic that share each row's tokens, and in attention the heads
    (Ulysses).
    """
    lora: Lora | None = None
    """Train low-rank adapters of the policy; null trains all its weights."""
    save_rollouts: bool = True
    """Keep each iteration's answers with all that was measured of them as parquet; rayward rl
    --replay reads them.
    """
    monitor: MonitorSection = MonitorSection()
    """Signs of reward hacking."""
    optimizer: Updates = Updates(schedule="constant", warmup_fraction=0.0)
    """How policy and critic are updated; their learning rates are given above."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Rl:
        if (
            self.old_logprobs == "rollout"
            and self.importance_cap != Rl.model_fields["importance_cap"].default
        ):
            raise ValueError(
                f"rl.importance_cap {self.importance_cap:g} has no effect with rl.old_logprobs "
                "rollout, where the ratio itself is to the engine's log-probs; use old_logprobs "
                "trainer"
            )
        if self.sequence_parallel > 1 and self.shared_prompts is False:
            raise ValueError(
                "rl.shared_prompts false has no effect with rl.sequence_parallel "
                f"{self.sequence_parallel}, which lays rows back to back with shared prompts; set "
                "it to null"
            )
        without = [name for name in self.algorithms if not RECIPES[name].has_ratio]
        if self.old_logprobs == "rollout" and without:
            raise ValueError(
                "rl.old_logprobs rollout is for losses with a ratio to the old policy, which "
                f"{without[0]} has not: nothing would correct for the engine's log-probs; use "
                "trainer, or auto, which takes the engine's only where they are the trainer's up "
                "to rounding"
            )
        for name in ("critic", "critic_warmup_iterations", "critic_warm_gate"):
            if getattr(self, name) and not set(self.algorithms) & set(WITH_CRITIC):
                raise ValueError(
                    f"rl.{name} has no effect on {', '.join(self.algorithms)}, which have no critic"
                )
        if self.extra_prompts and set(self.algorithms) - set(IN_GROUPS):
            other = next(name for name in self.algorithms if name not in IN_GROUPS)
            raise ValueError(
                f"rl.extra_prompts {self.extra_prompts} replaces prompts whose answers, compared "
                f"with each other, teach nothing, and {other} does not compare them; set it to 0, "
                f"or take only of {', '.join(IN_GROUPS)}"
            )
        alone = [name for name in self.algorithms if name in IN_GROUPS]
        if alone and self.samples_per_prompt < 2:
            raise ValueError(
                f"rl.algorithms {alone[0]} compares the answers of a prompt, and "
                f"rl.samples_per_prompt is {self.samples_per_prompt}; give it at least 2"
            )
        return self

    def settings_of(self, algorithm: str) -> Any:
        """An algorithm's own numbers."""
        return getattr(self, algorithm)
