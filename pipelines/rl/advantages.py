"""From scores to advantages: the rewards of tokens, each algorithm's baseline, and the figures of
the RL panel.

All of it sees the whole iteration at once, in the driver: moments, whitening and group baselines
would change with the number of ranks or the micro-batch if ranks took them alone.

Shapes: N = response tokens of all rows, B = responses, G = prompts, each with its group of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
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
from rayward.configs.sections.algorithms import (
    GROUP_ESTIMATORS,
    RECIPES,
    Cispo,
    EstimatorName,
    Grpo,
    Gspo,
    Whitened,
)
from rayward.configs.sections.rl import Rl
from rayward.data.rollouts import Rollouts

LARGEST = 1e15
"""Of a reward: sums of squares of larger ones leave the range of fp32, and teach nothing."""


class MismatchError(RuntimeError):
    """An engine that holds the trainer's weights does not run the trainer's model."""


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
        settings = config.rl.settings_of(algorithm)
        controller = None
        if settings.kl_target:
            controller = AdaptiveKL(settings.kl_coef, settings.kl_target, settings.kl_horizon)
        return cls(settings.kl_coef, controller=controller)

    def shaped(self, scores_B: Tensor, lengths: list[int], finished_B: Tensor, rl: Rl) -> Tensor:
        """[B] scores after the length penalty, scaling, clipping and the penalty for responses that
        were cut. The scores enter the running moments.
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
        # Last, so that the penalty keeps its size whatever the scaling.
        if rl.missing_eos_reward is not None:
            shaped_B = missing_eos_scores(shaped_B, finished_B, rl.missing_eos_reward)
        return shaped_B

    def update_kl_coef(self, kl: float, responses: int) -> None:
        """Take in the mean KL of the responses of an iteration that trains the policy, in nats
        each.
        """
        if self.controller:
            self.kl_coef = self.controller.update(kl, responses)

    def state_dict(self) -> dict[str, Any]:
        return {"kl_coef": self.kl_coef, **self.moments.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.kl_coef = state["kl_coef"]
        self.moments.load_state_dict(state)
        if self.controller:
            self.controller.coef = self.kl_coef


def estimate_advantages(
    rollouts: Rollouts, config: Config, algorithm: str, shaper: RewardShaper
) -> tuple[Rollouts, dict[str, float]]:
    """Rewards of tokens (score at the end, KL penalty along the way), advantages, and the RL
    panel's figures.

    Reads the scores and log-probs, and the values where there is a critic. `shaper` takes in the
    scores. The rollouts come back with advantages and, of a critic, returns, fp32.
    """
    rl, settings = config.rl, config.rl.settings_of(algorithm)
    estimator = RECIPES[algorithm].estimator
    in_groups = estimator in GROUP_ESTIMATORS
    assert rollouts.scores is not None
    assert rollouts.policy_logprobs is not None
    scores_B = torch.from_numpy(rollouts.scores)
    policy_N = torch.from_numpy(rollouts.policy_logprobs)
    lengths = rollouts.responses.lengths.tolist()
    shaped_B = shaper.shaped(scores_B, lengths, torch.from_numpy(rollouts.finished), rl)
    _check_size(shaped_B, scores_B)
    kl_N = torch.zeros(len(policy_N))
    kl_figures = {}
    if rollouts.reference_logprobs is not None:
        reference_N = torch.from_numpy(rollouts.reference_logprobs)
        kl_N = kl_k1(policy_N, reference_N)
        # A sum over a response is its KL in nats; the mean over tokens is not.
        kl_figures["kl"] = float(kl_N.sum()) / len(lengths)
        kl_figures["kl_k3"] = float(kl_k3(policy_N, reference_N).mean())
    rewards_N = shape_rewards(shaped_B, kl_N, lengths, shaper.kl_coef)
    measures = {
        "score": float(scores_B.mean()),
        "score_std": float(scores_B.std()),
        "reward": float(rewards_N.sum() / len(lengths)),
        "length": float(np.mean(lengths)),
        "length_max": max(lengths),
        "finished": float(rollouts.finished.mean()),
        "kl_coef": shaper.kl_coef,
        **kl_figures,
    }
    if in_groups:
        equal_G = equal_groups(shaped_B.numpy(), rollouts.prompt_index)
        measures["equal_groups"] = float(equal_G.mean())
    if rl.whiten_rewards:
        rewards_N = whiten(rewards_N, shift_mean=False)
    advantages_N, returns_N = ESTIMATORS[estimator](rewards_N, rollouts, rl, settings)
    if returns_N is not None:
        measures |= _critic_figures(torch.from_numpy(rollouts.values), returns_N)
    # Before they are whitened, when their size still says something.
    measures |= {
        "advantage_mean": float(advantages_N.mean()),
        "advantage_std": float(advantages_N.std()),
        "advantage_min": float(advantages_N.min()),
        "advantage_max": float(advantages_N.max()),
    }
    if isinstance(settings, Whitened) and settings.whiten:
        advantages_N = whiten(advantages_N)
    columns = {"advantages": advantages_N.float().numpy()}
    if returns_N is not None:
        columns["returns"] = returns_N.float().numpy()
    return rollouts.with_columns(**columns), measures


def _check_size(shaped_B: Tensor, scores_B: Tensor) -> None:
    """FloatingPointError for rewards that fp32 cannot square."""
    # Not `>`, which a NaN would pass.
    if not float(shaped_B.abs().max()) < LARGEST:
        raise FloatingPointError(
            f"rewards up to {float(shaped_B.abs().max()):.3g} (scores from "
            f"{float(scores_B.min()):.3g} to {float(scores_B.max()):.3g}) are too large to compare "
            f"in fp32, which would train nothing: set rl.reward_clip, or mend the source of reward"
        )


def _critic_figures(values_N: Tensor, returns_N: Tensor) -> dict[str, float]:
    """Share of the variance of the returns that the values explain (1: all, 0: none, below: worse
    than a constant), and the mean value loss of a token."""
    spread = float(returns_N.var())
    residual = float((returns_N - values_N).var())
    loss_sum, _ = value_loss(values_N, values_N, returns_N, None)
    return {
        "explained_variance": 1.0 - residual / spread if spread else 0.0,
        "value_loss": float(loss_sum) / len(values_N),
    }


Estimator = Callable[[Tensor, Rollouts, Rl, Any], tuple[Tensor, Tensor | None]]
"""(rewards of tokens, responses, what algorithms share, the algorithm's own numbers) -> (advantages
of tokens, returns of tokens where there is a critic).
"""


def _gae(
    rewards_N: Tensor, rollouts: Rollouts, rl: Rl, settings: Any
) -> tuple[Tensor, Tensor | None]:
    assert rollouts.values is not None, "the critic's values come first"
    values_N, lengths = torch.from_numpy(rollouts.values), rollouts.responses.lengths.tolist()
    return gae(rewards_N, values_N, lengths, rl.gamma, rl.gae_lambda)


def _returns_to_go(
    rewards_N: Tensor, rollouts: Rollouts, rl: Rl, settings: Any
) -> tuple[Tensor, Tensor | None]:
    return returns_to_go(rewards_N, rollouts.responses.lengths.tolist(), rl.gamma), None


def _rloo(
    rewards_N: Tensor, rollouts: Rollouts, rl: Rl, settings: Any
) -> tuple[Tensor, Tensor | None]:
    return _over_the_group(rewards_N, rollouts, "rloo"), None


def _grpo(
    rewards_N: Tensor, rollouts: Rollouts, rl: Rl, settings: Grpo | Gspo | Cispo
) -> tuple[Tensor, Tensor | None]:
    kind: Literal["grpo", "dr_grpo"] = "grpo" if settings.divide_by_std else "dr_grpo"
    return _over_the_group(rewards_N, rollouts, kind), None


def _dr_grpo(
    rewards_N: Tensor, rollouts: Rollouts, rl: Rl, settings: Any
) -> tuple[Tensor, Tensor | None]:
    return _over_the_group(rewards_N, rollouts, "dr_grpo"), None


ESTIMATORS: dict[EstimatorName, Estimator] = {
    "gae": _gae,
    "returns_to_go": _returns_to_go,
    "rloo": _rloo,
    "grpo": _grpo,
    "dr_grpo": _dr_grpo,
}
"""What the names of RECIPES in configs/sections/algorithms.py mean."""


def _over_the_group(
    rewards_N: Tensor, rollouts: Rollouts, kind: Literal["rloo", "grpo", "dr_grpo"]
) -> Tensor:
    """[N] advantage of each response over the others to its prompt, the same at all its tokens."""
    lengths = rollouts.responses.lengths.tolist()
    totals_B = torch.stack([response_T.sum() for response_T in rewards_N.split(lengths)])
    # Responses to a prompt stand side by side, so counts in the order of prompts are group sizes.
    groups = np.unique(rollouts.prompt_index, return_counts=True)[1].tolist()
    advantages_B = group_baseline(totals_B, groups, kind)
    return advantages_B.repeat_interleave(torch.tensor(lengths))


def equal_groups(
    rewards_B: NDArray[np.floating], prompt_index: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """[G] of each prompt, in the order of their index, whether its responses all have the same
    reward: compared with each other they teach nothing (see extra_prompts.py).
    """
    firsts = np.unique(prompt_index, return_index=True)[1]
    lowest, highest = (of.reduceat(rewards_B, firsts) for of in (np.minimum, np.maximum))
    return lowest == highest


def trains_policy(rl: Rl, with_critic: bool, iteration: int, measures: Mapping[str, float]) -> bool:
    """Whether an iteration trains the policy, or the critic alone: at the start, or while it is far
    off.
    """
    if not with_critic:
        return True
    # On responses that the critic has not been trained on yet.
    off = rl.critic_warm_gate is not None and measures["value_loss"] > rl.critic_warm_gate
    return iteration >= rl.critic_warmup_iterations and not off


def check_mismatch(gaps: Mapping[str, float], config: Config) -> None:
    """MismatchError where an engine that holds the trainer's weights does not run the trainer's
    model.

    `gaps` as `gap` gives them, of responses that were sampled with these weights.
    """
    allowed = max_mismatch(config)
    # Not `>`: NaN has to fail too.
    if not gaps["mismatch_mean"] <= allowed:
        raise MismatchError(
            f"trainer and rollout log-probs of a token differ by {gaps['mismatch_mean']:.3g} "
            f"nats on the average, more than {allowed} (rl.max_mismatch): the engine does not run "
            "the trainer's model"
        )


def gap(rollouts: Rollouts) -> dict[str, float]:
    """How far the trainer's log-probs of these responses are from the engine's that sampled them
    (`algorithms.policy.mismatch`), in nats a token.
    """
    assert rollouts.policy_logprobs is not None
    return mismatch(
        torch.from_numpy(rollouts.policy_logprobs), torch.from_numpy(rollouts.rollout_logprobs)
    )
