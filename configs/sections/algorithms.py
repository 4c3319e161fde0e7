"""The RL algorithms, each whole in this file: what it consists of (RECIPES), its own numbers under
the names of its paper, and their place in a config (AlgorithmSections).

Which loss and which estimator a name means stands in two tables of functions, LOSSES of
actors/losses.py and ESTIMATORS of pipelines/rl/advantages.py; here they are words only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.alias_generators import to_snake

from rayward.configs.sections.base import Count, Positive, Section, StageSection

AlgorithmName = Literal[
    "ppo", "rloo", "grpo", "reinforce", "apa", "awr", "gspo", "cispo", "dr_grpo"
]
LossName = Literal["ppo_clip", "apa", "awr", "gspo", "cispo", "dr_grpo"]
EstimatorName = Literal["gae", "returns_to_go", "rloo", "grpo", "dr_grpo"]


@dataclass(frozen=True)
class Recipe:
    """What an algorithm is put together from.

    Its numbers, which decide whether it learns from the reference (`needs_reference`), are the
    section of its name in rl.
    """

    loss: LossName
    """What the policy descends."""
    estimator: EstimatorName
    """How rewards become advantages."""
    with_critic: bool = False
    """Whether a critic learns beside the policy, whose values the estimator takes."""
    has_ratio: bool = True
    """Whether the loss has a ratio to the old policy, so that old log-probs may be the engine's."""
    whole_answers: bool = False
    """Whether the loss looks at whole answers, so that no rank may have a slice of one only."""


RECIPES: dict[str, Recipe] = {
    "ppo": Recipe("ppo_clip", "gae", with_critic=True),
    "rloo": Recipe("ppo_clip", "rloo"),
    "grpo": Recipe("ppo_clip", "grpo"),
    "reinforce": Recipe("ppo_clip", "returns_to_go"),
    "apa": Recipe("apa", "gae", with_critic=True, has_ratio=False),
    "awr": Recipe("awr", "gae", with_critic=True, has_ratio=False),
    "gspo": Recipe("gspo", "grpo", whole_answers=True),
    "cispo": Recipe("cispo", "grpo"),
    "dr_grpo": Recipe("dr_grpo", "dr_grpo"),
}
"""Every algorithm there is, in the order of the names that people read."""
WITH_CRITIC = tuple(name for name, recipe in RECIPES.items() if recipe.with_critic)
GROUP_ESTIMATORS: tuple[EstimatorName, ...] = ("rloo", "grpo", "dr_grpo")
"""Those that compare the answers to one prompt."""
IN_GROUPS = tuple(name for name, recipe in RECIPES.items() if recipe.estimator in GROUP_ESTIMATORS)
"""The algorithms with such an estimator."""


class Algorithm(Section):
    """What every RL algorithm has."""

    learning_rate: Positive = 1e-6
    """Peak learning rate of the policy."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.05
    """Weight of the KL penalty (k1) in the reward, per token, in units of reward."""
    kl_target: Positive | None = None
    """Mean KL of an answer to the reference, in nats, that kl_coef is steered to; null keeps
    kl_coef as it is.
    """
    kl_horizon: Count = 10000
    """Answers over which kl_coef follows kl_target; fewer follow faster."""
    kl_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL to the reference as a loss (k2), per token."""

    @model_validator(mode="after")
    def _target_has_a_coefficient(self) -> Algorithm:
        # DrGrpo is the section dr_grpo.
        name = to_snake(type(self).__name__)
        if self.kl_target and not self.kl_coef:
            raise ValueError(
                f"rl.{name}.kl_target steers kl_coef, which is 0 and would stay so; start it "
                "above 0"
            )
        if self.kl_horizon != Algorithm.model_fields["kl_horizon"].default and not self.kl_target:
            raise ValueError(
                f"rl.{name}.kl_horizon {self.kl_horizon} has no effect without kl_target"
            )
        return self

    @property
    def needs_reference(self) -> bool:
        """Whether anything that is learned depends on the reference model."""
        return bool(self.kl_coef or self.kl_loss)


class Clipped(Algorithm):
    """PPO's clipped ratio, which the critic-free algorithms use as well."""

    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """How far below 1 the ratio is trusted."""
    clip_high: Positive | None = None
    """How far above 1 the ratio is trusted; null is clip."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound of the loss of a token with a negative advantage, in multiples of the advantage
    (usually 3); null none.
    """


class Whitened(Algorithm):
    """Advantages may be whitened; those over the group of a prompt are scaled, or not, by that."""

    whiten: bool = True
    """Scale advantages to mean 0 and variance 1 over the iteration's tokens."""


class Ppo(Clipped, Whitened):
    """Proximal policy optimization with a per-token KL penalty in the reward."""


class Rloo(Clipped):
    """REINFORCE leave-one-out: the mean reward of a prompt's other answers is the baseline
    (arXiv:2402.14740).
    """


class Grpo(Clipped):
    """Group-relative policy optimization (arXiv:2402.03300): the mean reward of a prompt's answers
    is the baseline.
    """

    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL penalty (k1) in the reward, per token, in units of reward."""
    kl_loss: Annotated[float, Field(ge=0)] = 0.04
    """Weight of the KL to the reference as a loss (k2), per token."""
    divide_by_std: bool = True
    """Divide by the deviation of the group's rewards; false does not, as in arXiv:2503.20783."""


class Reinforce(Clipped, Whitened):
    """REINFORCE++ (arXiv:2501.03262): the reward to come, whitened over the iteration's tokens,
    without a critic.
    """


class Apa(Whitened):
    """Advantage-induced policy alignment: squared error to log pi_ref + advantage / lambda
    (arXiv:2306.02231).
    """

    lam: Positive = 0.1
    """Lambda: how close to the anchor the policy stays; larger is closer."""
    anchor: Literal["ref", "old"] = "ref"
    """Anchor of the squared error: the SFT model (paper) or the policy that made the rollouts
    (Starling's code).
    """
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of a KL penalty in the reward, in units of reward; the paper has none."""

    @property
    def needs_reference(self) -> bool:
        return self.anchor == "ref" or super().needs_reference


class Awr(Whitened):
    """Advantage-weighted regression (arXiv:1910.00177): log-likelihood weighted by exp(coef x
    advantage).
    """

    coef: Positive = 1.0
    """One over the temperature of the weights; larger prefers good answers more."""
    max_weight: Positive = 20.0
    """Bound of a token's weight."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of a KL penalty in the reward, in units of reward."""


class Gspo(Algorithm):
    """Group sequence policy optimization (arXiv:2507.18071): the ratio is that of a whole answer,
    the geometric mean of its tokens', and answers are clipped, not tokens.
    """

    clip: Annotated[float, Field(gt=0, lt=1)] = 3e-4
    """How far below 1 the ratio of an answer is trusted."""
    clip_high: Positive = 4e-4
    """How far above 1 the ratio of an answer is trusted."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of a KL penalty in the reward, in units of reward; the paper leaves it out."""
    divide_by_std: bool = True
    """Divide by the deviation of the group's rewards; false does not, as in arXiv:2503.20783."""


class Cispo(Algorithm):
    """Clipped importance-sampling policy optimization (MiniMax-M1, arXiv:2506.13585): the ratio is
    a clipped weight without a gradient, so that every token keeps one.
    """

    clip_high: Positive = 4.0
    """How far above 1 the weight of a token may be; the paper names no number, and below it has no
    bound.
    """
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of a KL penalty in the reward, in units of reward; the paper has none."""
    divide_by_std: bool = True
    """Divide by the deviation of the group's rewards; false does not, as in arXiv:2503.20783."""


class DrGrpo(Clipped):
    """GRPO done right (arXiv:2503.20783): divided neither by the group's deviation nor by the
    length of answers, but by a constant.
    """

    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of a KL penalty in the reward, in units of reward; the paper has none."""
    answer_tokens: Count | None = None
    """Tokens by which the sum over an answer's tokens is divided, whatever its length; null is
    rollout.max_new_tokens.
    """


class AlgorithmSections(StageSection):
    """What rl inherits: the numbers of each algorithm under its name."""

    ppo: Ppo = Ppo()
    """PPO's own numbers."""
    rloo: Rloo = Rloo()
    """RLOO's own numbers."""
    grpo: Grpo = Grpo()
    """GRPO's own numbers."""
    reinforce: Reinforce = Reinforce()
    """REINFORCE++'s own numbers."""
    apa: Apa = Apa()
    """APA's own numbers."""
    awr: Awr = Awr()
    """AWR's own numbers."""
    gspo: Gspo = Gspo()
    """GSPO's own numbers."""
    cispo: Cispo = Cispo()
    """CISPO's own numbers."""
    dr_grpo: DrGrpo = DrGrpo()
    """Dr. GRPO's own numbers."""
