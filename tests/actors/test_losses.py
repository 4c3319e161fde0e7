"""The policy's losses by name: what each is divided by, which columns it reads, and that cutting a
step into micro-batches changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from rayward.actors.losses import LOSSES, LossInputs, policy_loss
from rayward.algorithms.policy import ppo_clip
from rayward.configs.schema import Config
from rayward.configs.sections.algorithms import RECIPES, LossName
from rayward.data.ragged import Ragged
from rayward.data.rollouts import Rollouts

LENGTHS = [2, 3, 1, 4]
TOKENS = sum(LENGTHS)
RNG = np.random.default_rng(0)
OLD = RNG.normal(-2, 0.5, TOKENS)
# Log-ratios of up to some 0.2: tokens and answers on both sides of all bounds.
NEW = OLD + RNG.normal(0, 0.1, TOKENS)
ADVANTAGES = np.repeat([1.0, -1.0, 0.5, -0.5], LENGTHS)
STEP = Rollouts(
    prompts=Ragged.of([[1]] * 4),
    responses=Ragged.of([[5] * length for length in LENGTHS]),
    prompt_index=np.array([0, 0, 1, 1]),
    finished=np.ones(4, bool),
    rollout_logprobs=OLD,
    weight_version=0,
    policy_logprobs=OLD,
    advantages=ADVANTAGES,
)
MAX_NEW_TOKENS = 24  # of the tiny config


def step_loss(
    config: Config, algorithm: str, step: Rollouts, micro_batches: list[list[int]]
) -> tuple[float, dict[str, float], list[float]]:
    """(loss, sums, gradient by token) of a step, divided by its tokens as the engine does."""
    new_N = torch.from_numpy(NEW).requires_grad_()
    of_rows = new_N.split(LENGTHS)
    total, totals = torch.zeros(()), dict[str, float]()
    for rows in micro_batches:
        batch = step.take(rows)
        column: Callable[[Any], Tensor] = torch.from_numpy
        inputs = LossInputs(
            torch.cat([of_rows[row] for row in rows] or [new_N[:0]]),
            column(batch.policy_logprobs),
            column(batch.advantages),
            None,
            batch,
            tokens_per_answer=TOKENS / len(step),
            max_new_tokens=config.rollout.max_new_tokens,
        )
        loss, sums = policy_loss(algorithm, config.rl.settings_of(algorithm), inputs)
        total = total + loss / TOKENS
        for name, value in sums.items():
            before = totals.get(name, 0.0)
            largest = max(before, float(value))
            totals[name] = largest if name.endswith("_max") else before + float(value)
    total.backward()
    assert new_N.grad is not None
    return float(total.detach()), totals, new_N.grad.tolist()


def clipped(ratio: float, advantage: float, low: float, high: float) -> float:
    return max(-advantage * ratio, -advantage * min(max(ratio, 1 - low), 1 + high))


def answers() -> list[tuple[list[float], float]]:
    """(log-ratios, advantage) of each answer."""
    ends = np.cumsum(LENGTHS)
    return [
        ((NEW - OLD)[end - length : end].tolist(), float(ADVANTAGES[end - 1]))
        for end, length in zip(ends, LENGTHS, strict=True)
    ]


def test_every_recipe_names_a_loss() -> None:
    assert set(LOSSES) == set(get_args(LossName)) == {recipe.loss for recipe in RECIPES.values()}


def test_gspo_is_the_mean_over_answers(tiny_config) -> None:
    """Equation 5 of arXiv:2507.18071 with all answers of the step at once."""
    terms = [
        clipped(math.exp(sum(logs) / len(logs)), advantage, 3e-4, 4e-4)
        for logs, advantage in answers()
    ]
    loss, sums, _ = step_loss(tiny_config(), "gspo", STEP, [[0, 1, 2, 3]])
    assert loss == pytest.approx(sum(terms) / 4, rel=1e-6)
    assert 0 < sums["clipfrac_sum"] < TOKENS


def test_dr_grpo_is_the_mean_over_answers_of_the_sum_over_a_constant(tiny_config) -> None:
    terms = [
        clipped(math.exp(log), advantage, 0.2, 0.2) for logs, advantage in answers() for log in logs
    ]
    loss, _, _ = step_loss(tiny_config(), "dr_grpo", STEP, [[0, 1, 2, 3]])
    assert loss == pytest.approx(sum(terms) / 4 / MAX_NEW_TOKENS, rel=1e-6)
    config = tiny_config(rl={"dr_grpo": {"answer_tokens": 6}})
    assert step_loss(config, "dr_grpo", STEP, [[0, 1, 2, 3]])[0] == pytest.approx(
        sum(terms) / 4 / 6, rel=1e-6
    )


def test_cispo_is_the_mean_over_tokens(tiny_config) -> None:
    config = tiny_config(rl={"cispo": {"clip_high": 0.05}})
    ratios = [math.exp(log) for logs, _ in answers() for log in logs]
    terms = [
        -min(ratio, 1.05) * advantage * logprob
        for ratio, advantage, logprob in zip(ratios, ADVANTAGES, NEW, strict=True)
    ]
    loss, sums, _ = step_loss(config, "cispo", STEP, [[0, 1, 2, 3]])
    assert loss == pytest.approx(sum(terms) / TOKENS, rel=1e-6)
    assert sums["clipfrac_sum"] == sum(ratio > 1.05 for ratio in ratios) > 0


@pytest.mark.parametrize("algorithm", RECIPES)
def test_micro_batches_change_nothing(tiny_config, algorithm: str) -> None:
    step = STEP.with_columns(reference_logprobs=OLD - 0.1)
    config = tiny_config(rl={algorithm: {"kl_loss": 0.3}})
    loss, sums, gradient = step_loss(config, algorithm, step, [[0, 1, 2, 3]])
    cut_loss, cut_sums, cut_gradient = step_loss(config, algorithm, step, [[3], [], [2, 0], [1]])
    assert cut_loss == pytest.approx(loss, rel=1e-6) and any(gradient)
    assert cut_gradient == pytest.approx(gradient, rel=1e-6, abs=1e-9)
    assert cut_sums == pytest.approx(sums, rel=1e-5)


@pytest.mark.parametrize("algorithm", RECIPES)
def test_the_kl_loss_is_a_mean_over_tokens(tiny_config, algorithm: str) -> None:
    step = STEP.with_columns(reference_logprobs=OLD - 0.1)
    without, with_kl = (
        step_loss(tiny_config(rl={algorithm: own}), algorithm, step, [[0, 1, 2, 3]])
        for own in ({"kl_coef": 0.1, "kl_loss": 0.0}, {"kl_loss": 0.5})
    )
    k2 = float(((NEW - OLD + 0.1) ** 2 / 2).mean())
    assert with_kl[0] - without[0] == pytest.approx(0.5 * k2, rel=1e-4)
    assert with_kl[1]["kl_loss_sum"] / TOKENS == pytest.approx(k2, rel=1e-6)


@pytest.mark.parametrize("algorithm", [name for name in RECIPES if name not in ("apa", "grpo")])
def test_without_a_kl_loss_nobody_reads_the_reference(tiny_config, algorithm: str) -> None:
    assert STEP.reference_logprobs is None
    assert math.isfinite(step_loss(tiny_config(), algorithm, STEP, [[0, 1, 2, 3]])[0])


@pytest.mark.parametrize("algorithm", ["ppo", "rloo", "reinforce"])
def test_the_clipped_ratio_is_a_mean_over_tokens(tiny_config, algorithm: str) -> None:
    expected, _ = ppo_clip(
        torch.from_numpy(NEW), torch.from_numpy(OLD), torch.from_numpy(ADVANTAGES)
    )
    found = step_loss(tiny_config(), algorithm, STEP, [[0, 1, 2, 3]])[0]
    assert found == pytest.approx(float(expected) / TOKENS, rel=1e-6)
