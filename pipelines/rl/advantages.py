"""From scores to advantages: the rewards of tokens, each algorithm's baseline, and the figures of
the RL panel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayward.algorithms.advantage import (
    AdaptiveKL,
    RunningMoments,
    gae,
    group_baseline,
    kl_k1,
    kl_k3,
    missing_eos_scores,
    returns_to_go,
    scale_scores,
    shape_rewards,
    whiten,
)
from rayward.algorithms.policy import mismatch, value_loss
from rayward.configs.plan import max_mismatch
from rayward.configs.schema import Config
from rayward.configs.sections.rl import Rl
from rayward.data.rollouts import Rollouts


@dataclass
class RewardShaper:
    """What reward shaping remembers from iteration to iteration."""

    kl_coef: float
    moments: RunningMoments = field(default_factory=RunningMoments)
    """Of all scores so far."""
    controller: AdaptiveKL | None = None
    """Moves kl_coef, where the config gives a target."""

    @classmethod
    def of(cls, config: Config, algorithm: str) -> RewardShaper:
        """The state before the first iteration."""
        own = config.rl.own(algorithm)
        controller = (
            AdaptiveKL(own.kl_coef, own.kl_target, own.kl_horizon) if own.kl_target else None
        )
        return cls(own.kl_coef, controller=controller)

    def shaped(self, scores_B: Tensor, lengths: list[int], finished_B: Tensor, rl: Rl) -> Tensor:
        """Scores after the length penalty, scaling, clipping and the penalty for answers that were
        cut.
        """
        scores_B = scores_B - rl.length_penalty * torch.tensor(lengths)
        # Then the deviation is that of clipped scores, as in trlx.
        clip_first = rl.reward_scaling == "clip_then_std"
        std = self.moments.update(
            scale_scores(scores_B, clip=rl.reward_clip) if clip_first else scores_B
        )[1]
        divisor = std if rl.reward_scaling in ("clip_then_std", "std_then_clip") else 1.0
        shaped_B = scale_scores(scores_B, divisor, rl.reward_clip, clip_first=clip_first)
        if rl.reward_scaling == "whiten":
            shaped_B = whiten(shaped_B)
        if rl.missing_eos_reward is not None:
            shaped_B = missing_eos_scores(shaped_B, finished_B, rl.missing_eos_reward)
        return shaped_B

    def saw(self, kl: float, answers: int) -> None:
        """Take in the mean KL of the answers of an iteration that trains the policy, in nats
        each.
        """
        if self.controller:
            self.kl_coef = self.controller.update(kl, answers)

    def state_dict(self) -> dict[str, Any]:
        return {"kl_coef": self.kl_coef, **self.moments.state_dict()}


def estimate_advantages(
    rollouts: Rollouts, config: Config, algorithm: str, shaper: RewardShaper
) -> tuple[Rollouts, dict[str, float]]:
    """Rewards of tokens (score at the end, KL penalty along the way), advantages, and the RL
    panel's figures.

    Reads the scores and log-probs, and the values where there is a critic. `shaper` takes in the
    scores.
    """
    rl, own = config.rl, config.rl.own(algorithm)
    column = lambda name: None if (x := getattr(rollouts, name)) is None else torch.from_numpy(x)  # noqa: E731
    scores_B, policy_N, reference_N, values_N = map(
        column, ("scores", "policy_logprobs", "reference_logprobs", "values")
    )
    lengths = rollouts.responses.lengths.tolist()
    shaped_B = shaper.shaped(scores_B, lengths, torch.from_numpy(rollouts.finished), rl)
    kl_N = torch.zeros(len(policy_N)) if reference_N is None else kl_k1(policy_N, reference_N)
    rewards_N = shape_rewards(shaped_B, kl_N, lengths, shaper.kl_coef)
    measures = {
        "score": float(scores_B.mean()),
        "score_std": float(scores_B.std()),
        "reward": float(rewards_N.sum() / len(lengths)),
        "length": float(np.mean(lengths)),
        "length_max": max(lengths),
        "finished": float(rollouts.finished.mean()),
        "kl_coef": shaper.kl_coef,
    }
    if reference_N is not None:
        measures |= {
            "kl": float(kl_N.sum()) / len(lengths),
            "kl_k3": float(kl_k3(policy_N, reference_N).mean()),
        }
    if rl.whiten_rewards:
        rewards_N = whiten(rewards_N, shift_mean=False)
    returns_N = None
    if values_N is not None:
        advantages_N, returns_N = gae(rewards_N, values_N, lengths, rl.gamma, rl.gae_lambda)
        spread = float(returns_N.var())
        left = float((returns_N - values_N).var())
        measures["explained_variance"] = 1.0 - left / spread if spread else 0.0
        measures["value_loss"] = float(value_loss(values_N, values_N, returns_N, None)[0]) / len(
            values_N
        )
    elif algorithm == "reinforce":
        advantages_N = returns_to_go(rewards_N, lengths, rl.gamma)
    else:
        kind = "rloo" if algorithm == "rloo" else "grpo" if own.divide_by_std else "dr_grpo"
        totals_B = torch.stack([part.sum() for part in rewards_N.split(lengths)])
        groups = np.unique(rollouts.prompt_index, return_counts=True)[1].tolist()
        advantages_N = group_baseline(totals_B, groups, kind).repeat_interleave(
            torch.tensor(lengths)
        )
    extremes = {"mean": advantages_N.mean(), "std": advantages_N.std(), "min": advantages_N.min()}
    extremes["max"] = advantages_N.max()
    measures |= {f"advantage_{name}": float(value) for name, value in extremes.items()}
    if algorithm not in ("rloo", "grpo") and own.whiten:
        advantages_N = whiten(advantages_N)
    columns = {"advantages": advantages_N.float().numpy()}
    if returns_N is not None:
        columns["returns"] = returns_N.float().numpy()
    return rollouts.with_columns(**columns), measures


def trains_policy(rl: Rl, with_critic: bool, iteration: int, measures: Mapping[str, float]) -> bool:
    """Whether an iteration trains the policy, or the critic alone: at the start, or while it is far
    off.
    """
    if not with_critic:
        return True
    off = rl.critic_warm_gate is not None and measures["value_loss"] > rl.critic_warm_gate
    return iteration >= rl.critic_warmup_iterations and not off


def check_mismatch(found: dict[str, float], config: Config) -> None:
    """RuntimeError where an engine that holds the trainer's weights does not run the trainer's
    model.

    `found` as `gap` gives it, of answers that were sampled with these weights.
    """
    allowed = max_mismatch(config)
    if not found["mismatch_mean"] <= allowed:
        raise RuntimeError(
            f"trainer and rollout log-probs of a token differ by {found['mismatch_mean']:.3g} "
            f"nats on the average, more than {allowed} (rl.max_mismatch): the engine does not run "
            "the trainer's model"
        )


def gap(rollouts: Rollouts) -> dict[str, float]:
    """How far the trainer's log-probs of these answers are from the engine's that sampled them."""
    assert rollouts.policy_logprobs is not None
    return mismatch(
        torch.from_numpy(rollouts.policy_logprobs), torch.from_numpy(rollouts.rollout_logprobs)
    )
