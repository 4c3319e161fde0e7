"""What `dpo.objective` may be, and each objective's own numbers under the names of its paper."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rayward.configs.sections.base import Positive, Section

ObjectiveName = Literal["dpo", "ipo", "kto", "simpo", "orpo"]
WITHOUT_REFERENCE: tuple[ObjectiveName, ...] = ("simpo", "orpo")
"""Objectives that look at the policy alone: no log-probs of a reference are computed."""


class Ipo(Section):
    """Identity preference optimization (arXiv:2310.12036): the lead of the better answer is drawn
    to 1 / (2 beta), not beyond; beta is the paper's tau.
    """

    length_average: bool = False
    """Take log-probs per token of an answer, as TRL does; the paper takes those of whole ones."""


class Kto(Section):
    """Kahneman-Tversky optimization (arXiv:2402.01306): from answers that are good or bad, each by
    itself.
    """

    desirable_weight: Positive = 1.0
    """Weight of a good answer; that of all of them is advised to be 1 to 4/3 times that of all bad
    ones (paper, eq. 8).
    """
    undesirable_weight: Positive = 1.0
    """Weight of a bad answer."""


class Simpo(Section):
    """Simple preference optimization (arXiv:2405.14734): the mean log-prob of an answer's tokens is
    its reward.
    """

    beta: Positive = 2.0
    """Reward of a nat per token; the paper finds 2 to 2.5 best, and up to 10."""
    gamma: Annotated[float, Field(ge=0)] = 1.0
    """Lead in reward that the better answer should have; the paper finds 0.3 to 1.6 best."""


class Orpo(Section):
    """Odds-ratio preference optimization (arXiv:2403.07691): SFT of the best answer and, weighted,
    its odds against a worse one.
    """

    lam: Positive = 0.1
    """Lambda: weight of the odds-ratio loss beside that of SFT."""
