"""Low-rank adapters: what is trained, the model without them, and the weights with them merged
in.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from rayward.actors.models.load import load_policy
from rayward.actors.models.lora import adapted_layers, add_adapters, merged, without_adapters
from rayward.actors.models.saved import as_saved
from rayward.configs.sections.rl import Lora

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
        drawn.append(
            next(iter(adapted_layers(policy.lm).values())).lora_A["default"].weight.detach()
        )
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_layers_that_are_not_there_are_told(tiny_models) -> None:
    policy = load_policy(tiny_models.policy, "float32")
    with pytest.raises(ValueError, match="rl.lora.targets .*nowhere"):
        add_adapters(policy.lm, Lora(targets=("nowhere",)), 0)


def experts(tmp_path) -> str:
    """A folder of a tiny model with experts, which stand as one tensor in a layer and are saved one
    by one.
    """
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    more = {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": 64, "moe_intermediate_size": 16}
    lm = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **more, num_experts=4, num_experts_per_tok=2))
    lm.save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_model_with_experts_is_sent_as_it_is_saved_with_adapters_in_its_linear_layers(
    tmp_path,
) -> None:
    plain, policy = (load_policy(experts(tmp_path), "float32") for _ in range(2))
    add_adapters(policy.lm, Lora(targets=("q_proj", "v_proj")), seed=3)
    without = [
        (name.replace(".base_layer.", "."), tensor.detach())
        for name, tensor in policy.lm.named_parameters()
        if "lora_" not in name
    ]
    sent, saved = dict(as_saved(policy.lm, without)), load_file(tmp_path / "model.safetensors")
    assert sent.keys() == saved.keys() and any("experts.3." in name for name in sent)
    assert all(torch.equal(sent[name], saved[name]) for name in saved)
    assert dict(as_saved(plain.lm, plain.lm.named_parameters())).keys() == sent.keys()


def test_adapters_of_experts_are_refused(tmp_path) -> None:
    policy = load_policy(experts(tmp_path), "float32")
    with pytest.raises(
        ValueError, match=r"rl.lora.targets 'all-linear' takes in model.layers.0.mlp.experts"
    ):
        add_adapters(policy.lm, Lora(), seed=3)
