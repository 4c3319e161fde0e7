"""The policy's losses by name: which numbers of an algorithm and which columns each one takes.

The mathematics is in rayward.algorithms.policy. A loss is a sum that the optimizer step divides by
its number of tokens, over all micro-batches and ranks; where a paper divides by something else, the
function here multiplies by the tokens and divides by that.

Shapes: N = response tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rayward.actors.training.updates import column
from rayward.algorithms import policy
from rayward.algorithms.policy import Diagnostics
from rayward.configs.sections.algorithms import (
    RECIPES,
    Apa,
    Awr,
    Cispo,
    Clipped,
    DrGrpo,
    Gspo,
    LossName,
)
from rayward.data.rollouts import Rollouts


@dataclass(frozen=True)
class LossInputs:
    """What the loss of a micro-batch may read."""

    logprobs_N: Tensor
    """Of the policy, with its gradient."""
    old_logprobs_N: Tensor
    """Before the update."""
    advantages_N: Tensor
    weights_N: Tensor | None
    """Importance weights of tokens; None is 1."""
    micro_batch: Rollouts
    tokens_per_answer: float
    """Mean length of the answers in the optimizer step: what turns a mean over its tokens into one
    over its answers.
    """
    max_new_tokens: int
    """The longest that an answer may be."""

    @property
    def reference_logprobs_N(self) -> Tensor:
        """Of the reference, which not every run asks."""
        return column(self.micro_batch, "reference_logprobs", self.logprobs_N.device)


PolicyLoss = Callable[[Any, LossInputs], tuple[Tensor, Diagnostics]]
"""(an algorithm's numbers, inputs) -> (sum to be divided by the tokens of the step, sums to
report).
"""


def policy_loss(algorithm: str, settings: Any, inputs: LossInputs) -> tuple[Tensor, Diagnostics]:
    """An algorithm's loss, with the KL loss where its numbers ask for one.

    The KL loss is a mean over tokens whatever the algorithm's own loss is divided by.
    """
    loss, sums = LOSSES[RECIPES[algorithm].loss](settings, inputs)
    if settings.kl_loss:
        penalty, kl_sums = policy.kl_loss(
            inputs.logprobs_N, inputs.reference_logprobs_N, inputs.weights_N
        )
        loss, sums = loss + settings.kl_loss * penalty, sums | kl_sums
    return loss, sums


def _ppo_clip(settings: Clipped, inputs: LossInputs) -> tuple[Tensor, Diagnostics]:
    return policy.ppo_clip(
        inputs.logprobs_N,
        inputs.old_logprobs_N,
        inputs.advantages_N,
        clip=settings.clip,
        clip_high=settings.clip_high,
        dual_clip=settings.dual_clip,
        weights_N=inputs.weights_N,
    )


def _dr_grpo(settings: DrGrpo, inputs: LossInputs) -> tuple[Tensor, Diagnostics]:
    """The mean over answers of the sum over tokens, divided by a constant (arXiv:2503.20783)."""
    loss, sums = _ppo_clip(settings, inputs)
    constant = settings.answer_tokens or inputs.max_new_tokens
    return loss * (inputs.tokens_per_answer / constant), sums


def _gspo(settings: Gspo, inputs: LossInputs) -> tuple[Tensor, Diagnostics]:
    """The mean over answers (arXiv:2507.18071)."""
    loss, sums = policy.gspo(
        inputs.logprobs_N,
        inputs.old_logprobs_N,
        inputs.advantages_N,
        inputs.micro_batch.responses.lengths.tolist(),
        settings.clip,
        settings.clip_high,
        weights_N=inputs.weights_N,
    )
    return loss * inputs.tokens_per_answer, sums


def _cispo(settings: Cispo, inputs: LossInputs) -> tuple[Tensor, Diagnostics]:
    return policy.cispo(
        inputs.logprobs_N,
        inputs.old_logprobs_N,
        inputs.advantages_N,
        settings.clip_high,
        weights_N=inputs.weights_N,
    )


def _apa(settings: Apa, inputs: LossInputs) -> tuple[Tensor, Diagnostics]:
    # The paper's anchor is the reference, Starling's the policy before the update.
    from_reference = settings.anchor == "ref"
    anchor_N = inputs.reference_logprobs_N if from_reference else inputs.old_logprobs_N
    return policy.apa(
        inputs.logprobs_N, anchor_N, inputs.advantages_N, settings.lam, weights_N=inputs.weights_N
    )


def _awr(settings: Awr, inputs: LossInputs) -> tuple[Tensor, Diagnostics]:
    return policy.awr(
        inputs.logprobs_N,
        inputs.advantages_N,
        settings.coef,
        settings.max_weight,
        weights_N=inputs.weights_N,
    )


LOSSES: dict[LossName, PolicyLoss] = {
    "ppo_clip": _ppo_clip,
    "dr_grpo": _dr_grpo,
    "gspo": _gspo,
    "cispo": _cispo,
    "apa": _apa,
    "awr": _awr,
}
"""What the names of RECIPES in configs/sections/algorithms.py mean."""
