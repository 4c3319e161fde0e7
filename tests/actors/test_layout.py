"""Answers that share the tokens of their prompt in RL: log-probs, values and gradients are those of
rows alone.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayward.actors.models.forward import RankContext, map_rollouts
from rayward.actors.models.heads import TokenPolicy
from rayward.actors.models.layout import Layout, shares
from rayward.actors.models.load import load_policy, load_scalar
from rayward.actors.models.prefix import CAUSAL_FROM, group_sizes, response_units
from rayward.data.ragged import Ragged, merge

CPU = torch.device("cpu")
ALONE = RankContext(0, 1, CPU)


def grouped(made_rollouts, sizes, prompt_tokens, seed=0):
    """Made-up rollouts whose rows stand in groups with the same prompt."""
    rollouts, rng = made_rollouts(sum(sizes), seed), np.random.default_rng(seed)
    prompts = [rng.integers(3, 50, length).tolist() for length in prompt_tokens]
    index = np.repeat(np.arange(len(sizes)), sizes)
    return rollouts.with_columns(prompts=Ragged.of([prompts[i] for i in index]), prompt_index=index)


def of_policy(folder, wanted=None):
    module = load_policy(folder, "float32")

    def run(*rows, **inputs):
        return module(*rows, **inputs)[0]

    return Layout(module.lm, run, ALONE, True, wanted), run, module


def of_scalar(folder, wanted=None):
    module = load_scalar(folder, "float32")
    return Layout(module.classifier, module, ALONE, False, wanted), module, module


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("role", ["policy", "critic"])
def test_values_and_gradients_are_those_of_rows_alone(tiny_models, made_rollouts, role, seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, 4).tolist()
    rollouts = grouped(
        made_rollouts, sizes, rng.integers(1, (20, 2 * CAUSAL_FROM)[seed % 2], 4).tolist(), seed
    )
    layout, run, module = (
        of_policy(tiny_models.policy) if role == "policy" else of_scalar(tiny_models.reward)
    )
    assert layout.can_share
    found, gradients = [], []
    weights_N = torch.from_numpy(rollouts.advantages)
    for shared in (False, True):
        values_N = run(**layout.inputs(rollouts, shared))
        gradients.append(
            torch.autograd.grad(
                (values_N * weights_N).sum(), list(module.parameters()), allow_unused=True
            )
        )
        found.append(values_N)
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)
    for one, other in zip(*gradients, strict=True):
        if one is not None:
            torch.testing.assert_close(other, one, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_a_plan_holds_every_row_once_and_prompts_stay_together(tiny_models, made_rollouts, budget):
    rollouts = grouped(made_rollouts, [4, 1, 4, 3], [12, 3, 25, 7])
    layout, run, _ = of_policy(tiny_models.policy, wanted=True)
    plan, shared = layout.plan(rollouts, budget)
    assert shared and sorted(row for batch in plan for row in batch) == list(range(12))
    units, costs = response_units(rollouts, budget)
    assert sorted(row for unit in units for row in unit) == list(range(12))
    for unit, cost in zip(units, costs, strict=True):
        part = rollouts.take(unit)
        assert len(group_sizes(part)) == 1 and (cost <= budget or len(unit) == 1)
        assert cost == part.prompts.lengths[0] + part.responses.lengths.sum()
    with torch.no_grad():
        read = map_rollouts(rollouts, plan, lambda batch: run(**layout.inputs(batch, shared)))
        alone = run(**layout.inputs(rollouts, False)).numpy()
    np.testing.assert_allclose(merge([read], 12), alone, atol=1e-5, rtol=0)


def test_prompts_are_shared_where_it_pays(tiny_models, made_rollouts):
    layout, *_ = of_policy(tiny_models.policy)
    assert layout.plan(grouped(made_rollouts, [4, 4], [20, 20]), 4096)[1]
    assert not layout.plan(grouped(made_rollouts, [1] * 8, [20] * 8), 4096)[1], (
        "no two answers of a prompt"
    )
    assert not of_policy(tiny_models.policy, wanted=False)[0].plan(
        grouped(made_rollouts, [4, 4], [20, 20]), 4096
    )[1]


def test_a_model_that_does_not_keep_answers_apart_keeps_its_own_attention(tiny_models):
    module = load_policy(tiny_models.policy, "float32")
    before = module.lm.config._attn_implementation

    def blind(input_ids_BT, chosen_BT=None, **inputs):
        return leaky(module, input_ids_BT, chosen_BT, inputs)

    with torch.no_grad():
        assert not shares(module.lm, blind, CPU, True, None, "rl.shared_prompts")
        assert module.lm.config._attn_implementation == before
        with pytest.raises(
            ValueError,
            match="rl.shared_prompts: results of answers that share .* set it to null or false",
        ):
            shares(module.lm, blind, CPU, True, True, "rl.shared_prompts")


def leaky(module: TokenPolicy, input_ids_BT, chosen_BT, inputs):
    """A policy whose answers see each other: the masks let everything before through."""
    if "row_masks" in inputs:
        inputs["row_masks"] = [
            torch.ones_like(mask).tril(mask.shape[-1] - mask.shape[-2])
            for mask in inputs["row_masks"]
        ]
    return module(input_ids_BT, chosen_BT, **inputs)[0]
