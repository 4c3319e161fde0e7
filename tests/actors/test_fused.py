"""Norms and rotary embeddings in one function each: what a model computes and learns stays."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GlmConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm

from rayward.actors.models.cpu.fused import _fused_rotation, _RMSNorm, _Rotary, fuse
from rayward.actors.models.load import load_policy, load_scalar

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
IDS_BT = torch.arange(22).remainder(60).view(2, 11)
# Of every architecture: its RMS norms that are fused, and whether its rotation is.
FUSED = {
    "llama": (LlamaConfig(**SIZES, **HEADS), 5, True),
    "mistral": (MistralConfig(**SIZES, **HEADS), 5, True),
    "qwen3, which also norms heads": (Qwen3Config(**SIZES, **HEADS), 9, True),
    "gemma2, whose norms add 1 to the weight": (Gemma2Config(**SIZES, **HEADS), 0, True),
    "glm, which turns neighbours": (GlmConfig(**SIZES, **HEADS), 5, False),
    "gpt_neox, which turns a part of a head": (
        GPTNeoXConfig(**SIZES, num_attention_heads=2, rotary_pct=0.5),
        0,
        True,
    ),
    "gpt2, which has neither": (
        GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2),
        0,
        False,
    ),
}


def fresh(config, frozen: str = "-"):
    """A model of random weights with norms that are not all 1."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
        parameter.requires_grad_(frozen not in name)
    return model


def logits_and_gradients(model) -> dict[str, torch.Tensor]:
    logits = model(input_ids=IDS_BT, use_cache=False).logits
    logits.log_softmax(-1)[..., 7].sum().backward()
    gradients = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return {"logits": logits.detach()} | gradients


@pytest.mark.parametrize("frozen", ["-", "norm", "embed"])
@pytest.mark.parametrize("name", FUSED)
def test_logits_and_gradients_stay(name, frozen):
    config, norms, rotary = FUSED[name]
    model = fresh(config, frozen)
    fused = copy.deepcopy(model)
    before = logits_and_gradients(model)
    assert fuse(fused) == norms + 2 * rotary, "a rotation in each layer"
    after = logits_and_gradients(fused)
    assert before.keys() == after.keys()
    assert torch.equal(after["logits"], before["logits"])
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_fp64_and_bf16_run_what_the_model_had():
    model = fresh(FUSED["llama"][0])
    kinds = (torch.float64, torch.bfloat16)
    before = [logits_and_gradients(copy.deepcopy(model).to(dtype)) for dtype in kinds]
    fuse(model)
    after = [logits_and_gradients(copy.deepcopy(model).to(dtype)) for dtype in kinds]
    for ours, theirs in zip(after, before, strict=True):
        assert all(torch.equal(ours[what], value) for what, value in theirs.items())


def test_a_second_time_nothing_is_left_to_replace():
    model = fresh(FUSED["llama"][0])
    assert fuse(model) == 7
    assert fuse(model) == 0


def test_other_models_of_the_process_keep_theirs():
    code = sys.modules[LlamaAttention.__module__]
    before, forward = dict(vars(code)), LlamaAttention.forward
    other, model = (fresh(FUSED["llama"][0]) for _ in range(2))
    fuse(model)
    assert dict(vars(code)) == before and LlamaAttention.forward is forward
    assert type(other.model.layers[0].self_attn) is LlamaAttention
    assert type(other.model.norm) is LlamaRMSNorm
    assert isinstance(model.model.layers[0].self_attn, LlamaAttention)


class Rotate(torch.nn.Module):
    """What transformers makes of the function where the package `kernels` is installed."""

    def forward(self, q, k, cos, sin, unsqueeze_dim=1):
        return rotate(q, k, cos, sin, unsqueeze_dim)


def rotate(q, k, cos, sin, unsqueeze_dim=1):
    """As most architectures have it."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    halves = [
        torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), dim=-1) for x in (q, k)
    ]
    return q * cos + halves[0] * sin, k * cos + halves[1] * sin


@pytest.mark.parametrize(
    ("function", "replaced"),
    [
        (rotate, True),
        (
            lambda q, k, cos, sin, unsqueeze_dim=1, more=None: rotate(
                q, k, cos, sin, unsqueeze_dim
            ),
            False,
        ),
        (lambda q, k, cos, sin, position_ids=None: rotate(q, k, cos, sin), False),
        (lambda x, cos, sin, unsqueeze_dim=1: x * cos, False),
        (Rotate(), False),
        (None, False),
    ],
)
def test_a_rotation_that_takes_other_arguments_or_is_an_object_is_left(function, replaced):
    assert (_fused_rotation(function) is not None) == replaced


def test_gradients_are_those_of_the_formulas():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        _RMSNorm.apply, (x.requires_grad_(), weight.requires_grad_(), 1e-6)
    )
    query, key = (
        torch.randn(1, 2, 3, 4, dtype=torch.float64),
        torch.randn(1, 1, 3, 4, dtype=torch.float64),
    )
    # No angles' at all: the halves need not be equal.
    cos, sin = torch.randn(2, 1, 1, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        _Rotary.apply, (query.requires_grad_(), key.requires_grad_(), cos, sin)
    )


def test_policies_and_reward_models_are_loaded_so(tiny_models):
    policy, reward = (
        load_policy(tiny_models.policy, "float32"),
        load_scalar(tiny_models.policy, "float32", 0),
    )
    for model in (policy.lm, reward.classifier):
        assert model.base_model.norm.unfused is LlamaRMSNorm
        attention = model.base_model.layers[0].self_attn
        assert attention.unfused is LlamaAttention
        rotation = type(attention).forward.__globals__["apply_rotary_pos_emb"]
        assert rotation.__name__ == "fused_rotary"
