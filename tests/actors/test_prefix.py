"""Answers that share the tokens of their prompt: same scores and gradients as separate rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayward.actors.models.attention import attend_by_row
from rayward.actors.models.forward import sequence_inputs, weighted_inputs
from rayward.actors.models.load import load_policy, load_scalar
from rayward.actors.models.prefix import (
    CAUSAL_FROM,
    pays,
    prefix_lengths,
    shared_answers,
    shared_inputs,
    shared_lengths,
)
from rayward.data.ragged import Ragged

CPU = torch.device("cpu")


def groups(rng: np.random.Generator, sizes: list[int], prompts: list[int]) -> Ragged:
    rows = []
    for size, length in zip(sizes, prompts, strict=True):
        prompt = rng.integers(3, 50, length).tolist()
        rows += [prompt + rng.integers(3, 50, rng.integers(1, 12)).tolist() for _ in range(size)]
    return Ragged.of(rows)


@pytest.mark.parametrize("seed", range(6))
def test_scores_and_gradients_are_those_of_separate_rows(tiny_models, seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 8, 4).tolist()
    ids = groups(rng, sizes, rng.integers(0, 30 if seed % 2 else 2 * CAUSAL_FROM, 4).tolist())
    model = load_scalar(tiny_models.reward, "float32")
    assert attend_by_row(model.classifier)
    apart = model(*sequence_inputs(ids, CPU))
    together = model(**shared_inputs(ids, sizes, CPU))
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)
    weight = torch.from_numpy(rng.standard_normal(len(ids)).astype(np.float32))
    gradients = [
        torch.autograd.grad((scores * weight).sum(), list(model.parameters()), allow_unused=True)
        for scores in (apart, together)
    ]
    for one, other in zip(*gradients, strict=True):
        if one is not None:
            torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_logprobs_of_answers_and_gradients_are_those_of_separate_rows(tiny_models, seed):
    """Also where answers begin with the same tokens, and of a row whose first token is marked,
    which has none.
    """
    rng = np.random.default_rng(seed)
    sizes = [2, 3, 1, 2]
    ids = groups(rng, sizes, [9, 2 * CAUSAL_FROM, 4, 0])
    begins = np.repeat([7 if seed else 9, 2 * CAUSAL_FROM - 5, 4, 0], sizes)
    marked = [
        np.arange(length) >= begin
        for length, begin in zip(ids.lengths.tolist(), begins.tolist(), strict=True)
    ]
    answers = Ragged.of(marked, np.uint8)
    model = load_policy(tiny_models.policy, "float32")
    assert attend_by_row(model.lm)
    apart, _ = model(*weighted_inputs(ids, answers, CPU)[0])
    together, _ = model(**shared_answers(ids, sizes, answers, CPU))
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)
    weight = torch.from_numpy(rng.standard_normal(len(apart)).astype(np.float32))
    gradients = [
        torch.autograd.grad((found * weight).sum(), list(model.parameters()))
        for found in (apart, together)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-3)


def test_what_is_shared():
    ids = Ragged.of([[5, 6, 7, 8], [5, 6, 9], [1, 2], [1, 2, 3], [4], [4]])
    assert prefix_lengths(ids, [2, 2, 2]).tolist() == [2, 1, 0], (
        "an answer keeps a token of its own"
    )
    assert shared_lengths(ids, [2, 2, 2]).tolist() == [5, 4, 2]
    assert shared_inputs(ids, [2, 2, 2], CPU)["input_ids_BT"].tolist() == [
        [5, 6, 7, 8, 9, 1, 2, 2, 3, 4, 4]
    ]


def test_it_pays_for_long_prompts_and_wide_models():
    rng = np.random.default_rng(0)
    long, short = groups(rng, [7] * 4, [400] * 4), groups(rng, [7] * 4, [0] * 4)
    assert pays(long, np.array([7] * 4), 4096) and not pays(short, np.array([7] * 4), 4096)
    answers = Ragged.of([rng.integers(3, 9, 210).tolist() for _ in range(7)])
    assert not pays(answers, np.array([7]), 64)
