"""The last layer at the positions read only: the same log-probs and gradients, and less work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, MixtralConfig

from rayward.actors.models.attention import attend_by_row
from rayward.actors.models.forward import packed_inputs, weighted_inputs
from rayward.actors.models.heads import TokenPolicy
from rayward.actors.models.lean import skip_unread
from rayward.actors.models.load import load_policy
from rayward.data.ragged import Ragged

CPU = torch.device("cpu")
SIZES = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def rows(chosen: float) -> tuple[Ragged, Ragged]:
    """Four rows and weights, of which a share is not 0."""
    rng = np.random.default_rng(5)
    ids = Ragged.of([rng.integers(3, 60, length) for length in (9, 4, 17, 1)])
    drawn = rng.random(len(ids.values))
    return ids, ids.like(
        np.where(rng.random(len(drawn)) < chosen, drawn + 0.5, 0).astype(np.float32)
    )


def loss_and_gradients(policy: TokenPolicy, inputs, chosen: float) -> dict[str, torch.Tensor]:
    arguments, weights_N = inputs(*rows(chosen), CPU)
    loss = (policy(*arguments)[0] * weights_N).sum()
    policy.zero_grad()
    loss.backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in policy.named_parameters()
    }
    return {"loss": loss.detach()} | gradients


@pytest.mark.parametrize("chosen", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("inputs", [weighted_inputs, packed_inputs])
def test_loss_and_gradients_stay(tiny_models, inputs, chosen):
    whole, lean = (load_policy(tiny_models.policy, "float32") for _ in range(2))
    assert skip_unread(lean)
    for by_row in (False, True):
        expected, found = (loss_and_gradients(policy, inputs, chosen) for policy in (whole, lean))
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name], value, atol=1e-5, rtol=1e-5, msg=f"{name}, by row {by_row}"
            )
        attend_by_row(whole.lm)
        attend_by_row(lean.lm)


def test_only_what_is_read_is_computed(tiny_models):
    policy = load_policy(tiny_models.policy, "float32")
    seen: dict[int, int] = {}
    for number, layer in enumerate(policy.lm.model.layers):
        layer.mlp.up_proj.register_forward_pre_hook(
            lambda _, x, number=number: seen.update({number: x[0].numel() // x[0].shape[-1]})
        )
    assert skip_unread(policy)
    inputs, weights_N = packed_inputs(*rows(0.3), CPU)
    policy(*inputs)
    last = len(policy.lm.model.layers) - 1
    assert seen == dict.fromkeys(range(last), inputs[0].shape[1]) | {last: len(weights_N)}
    assert 0 < len(weights_N) < inputs[0].shape[1] / 2


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2),
        MixtralConfig(**SIZES, num_key_value_heads=2, intermediate_size=16, num_local_experts=2),
    ],
)
def test_other_models_are_left_alone(config):
    policy = TokenPolicy(AutoModelForCausalLM.from_config(config)).eval()
    before = policy(torch.arange(3, 9)[None], torch.ones(1, 6, dtype=torch.bool))[0]
    assert not skip_unread(policy)
    assert torch.equal(
        policy(torch.arange(3, 9)[None], torch.ones(1, 6, dtype=torch.bool))[0], before
    )
