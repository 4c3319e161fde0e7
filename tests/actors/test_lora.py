"""Low-rank adapters: what is trained, the model without them, and the weights with them merged in."""

from __future__ import annotations

import pytest
import torch

from actors.lora import adapted_layers, add_adapters, merged, without_adapters
from actors.models import load_policy
from configs.rl import Lora

IDS = torch.arange(3, 19)[None]
CHOSEN = torch.ones_like(IDS, dtype=torch.bool)


def test_merged_weights_are_the_adapted_model(tiny_models) -> None:
    plain, policy = (load_policy(tiny_models.policy, "float32") for _ in range(2))
    add_adapters(policy.lm, Lora(rank=2, alpha=4.0), seed=3)
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    with torch.no_grad():
        before = plain(IDS, CHOSEN)[0]
        assert torch.equal(policy(IDS, CHOSEN)[0], before), "it begins at the model"
        for layer in adapted_layers(policy.lm).values():
            layer.lora_B["default"].weight.normal_(std=0.1)
        adapted = policy(IDS, CHOSEN)[0]
        assert float((adapted - before).abs().max()) > 1e-2
        with without_adapters(policy.lm):
            assert torch.equal(policy(IDS, CHOSEN)[0], before)
        for name, layer in adapted_layers(policy.lm).items():
            plain.lm.get_submodule(name).weight.copy_(merged(layer))
        torch.testing.assert_close(plain(IDS, CHOSEN)[0], adapted, atol=1e-5, rtol=0)
    assert {name for name, p in policy.named_parameters() if p.requires_grad} == trained


def test_seeds_draw_the_adapters(tiny_models) -> None:
    drawn = []
    for seed in (1, 1, 2):
        policy = load_policy(tiny_models.policy, "float32")
        add_adapters(policy.lm, Lora(), seed)
        drawn.append(next(iter(adapted_layers(policy.lm).values())).lora_A["default"].weight.detach())
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_layers_that_are_not_there_are_told(tiny_models) -> None:
    policy = load_policy(tiny_models.policy, "float32")
    with pytest.raises(ValueError, match="rl.lora.targets .*nowhere"):
        add_adapters(policy.lm, Lora(targets=("nowhere",)), 0)
