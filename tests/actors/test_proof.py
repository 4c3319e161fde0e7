"""Log-probs and scores against the own forward of every decoder that transformers and vLLM both
know.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from vllm.model_executor.models.registry import _TEXT_GENERATION_MODELS

from rayward.actors.models.heads import TokenPolicy, TokenScalar
from rayward.actors.models.load import load_policy, load_scalar
from rayward.actors.models.proof import logit_maps, prove_policy, prove_scalar
from rayward.algorithms.logprobs import LogitMap

# By all names that configs give to the same thing. Large initial weights, so that what scales or
# caps logits shows.
SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 64),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"), 96),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_attention_heads", "n_head", "n_heads"), 2
    ),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 320),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    **dict.fromkeys(
        ("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim"), 16
    ),
    **dict.fromkeys(("n_group", "topk_group", "num_key_value_heads"), 1),
    **dict.fromkeys(
        ("moe_intermediate_size", "expert_ffn_hidden_size", "head_dim", "v_head_dim"), 32
    ),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "zero_expert_num", "bos_token_id"), 2),
    **{"sliding_window": 8, "initializer_range": 0.3, "pad_token_id": 0, "eos_token_id": 1},
}
TWO_HEADS = {"num_key_value_heads": 2}
OTHER = {
    "axk1": {"head_dim": 16},
    "deepseek_v3": {"head_dim": 16},
    "deepseek_v32": {**TWO_HEADS, "head_dim": 16},
    "falcon": {"head_dim": None},
    "gemma3n_text": {
        "num_hidden_layers": 5,
        "layer_types": ["sliding_attention"] * 4 + ["full_attention"],
        "hidden_size_per_layer_input": 16,
        "num_kv_shared_layers": 0,
        "laurel_rank": 8,
    },
    "gemma4_text": {"hidden_size_per_layer_input": 16, "num_kv_shared_layers": 0},
    "glm4_moe_lite": TWO_HEADS,
    "glm_moe_dsa": TWO_HEADS,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"num_layers": 2, "head_dim": 16},
    "mamba2": {"head_dim": 64, "num_heads": 2, "n_groups": 1},
}
SCALED = {
    "logits_scaling": 3.0,
    "final_logit_softcapping": 2.0,
    "logit_scale": 0.3,
    "lm_head_multiplier": 0.5,
    "dim_model_base": 16,
    "logits_mup_width_multiplier": 4.0,
}
EXPECTED = {
    **dict.fromkeys(("cohere", "cohere2", "cohere2_moe"), LogitMap(0.3)),
    **dict.fromkeys(
        ("granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoehybrid"),
        LogitMap(1 / 3),
    ),
    "granitemoeshared": LogitMap(1 / 3),
    **dict.fromkeys(
        ("gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "vaultgemma"),
        LogitMap(softcap=2.0),
    ),
    "nanochat": LogitMap(softcap=2.0),
    "falcon_h1": LogitMap(0.5),
    "hyperclovax": LogitMap(3.0),
    "inkling_text": LogitMap(1 / 4),
    "minicpm3": LogitMap(1 / 4),
}
SLOW = {"falcon_h1", "granitemoehybrid", "kimi_linear"}  # their operations without their kernels
NOT_TINY = {
    "dbrx": "its attention's config cannot be made by itself",
    "zamba2": "its layers share weights by number",
    **dict.fromkeys(
        ("llama4", "qwen3_5", "qwen3_5_moe", "qwen4_exp"), "with pictures; its *_text stands for it"
    ),
}
# Which vLLM runs through its way for transformers' own models.
BY_TRANSFORMERS = ["nanochat", "vaultgemma"]


def both_know() -> list[str]:
    classes = {
        name: of if isinstance(of, str) else of[0]
        for name, of in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
    }
    return [name for name, of in classes.items() if of in _TEXT_GENERATION_MODELS] + BY_TRANSFORMERS


def tiny(name: str) -> TokenPolicy:
    known = CONFIG_MAPPING[name]().to_dict()
    values = (
        SIZES
        | OTHER.get(name, {})
        | {field: value for field, value in SCALED.items() if field in known}
    )
    torch.manual_seed(0)
    config = CONFIG_MAPPING[name](
        **{field: value for field, value in values.items() if value is not None}
    )
    return TokenPolicy(AutoModelForCausalLM.from_config(config).eval())


def tiny_scalar(name: str, folder: Path, dtype: str) -> TokenScalar:
    config = tiny(name).lm.config
    config.num_labels = 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return load_scalar(str(folder), dtype)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in both_know()],
)
def test_logprobs_are_those_of_the_models_own_forward(name):
    if name in NOT_TINY:
        pytest.skip(NOT_TINY[name])
    policy = tiny(name)
    prove_policy(policy, name)
    assert policy.logit_map == EXPECTED.get(name, LogitMap())
    ids_1T = torch.arange(20, 50)[None]
    chosen_1T = torch.ones_like(ids_1T, dtype=torch.bool)
    with torch.no_grad():
        ours_T = policy(ids_1T, chosen_1T)[0]
        all_TV = policy.lm(input_ids=ids_1T, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    theirs_T = all_TV.gather(1, ids_1T[0, 1:, None])[:, 0]
    torch.testing.assert_close(ours_T, theirs_T, atol=1e-4, rtol=1e-5)


def test_a_model_that_does_what_no_field_says_is_refused_with_both_numbers():
    class Odd(type(tiny("llama").lm)):
        def forward(self, **inputs):
            outputs = super().forward(**inputs)
            outputs.logits = outputs.logits * 1.5
            return outputs

    policy = tiny("llama")
    policy.lm.__class__ = Odd
    with pytest.raises(
        ValueError,
        match=r"folder: the log-prob of a token is -[\d.]+ by the model's own forward and "
        r"-[\d.]+ by its body and head, so Odd does something",
    ):
        prove_policy(policy, "folder")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_whose_tokens_see_those_after_them_is_refused(dtype):
    torch.manual_seed(0)
    config = CONFIG_MAPPING["xlnet"](
        vocab_size=320, d_model=64, n_layer=2, n_head=2, d_inner=96, initializer_range=0.3
    )
    policy = TokenPolicy(AutoModelForCausalLM.from_config(config).eval().to(dtype))
    with pytest.raises(
        ValueError, match="folder: XLNetLMHeadModel lets tokens see those after them"
    ):
        prove_policy(policy, "folder")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_reward_model_whose_tokens_see_those_after_them_is_refused(dtype, tmp_path):
    scalar = tiny_scalar("llama", tmp_path, dtype)
    whole = torch.zeros(1, 1, 15, 15, dtype=scalar.classifier.dtype)  # added to what is attended to
    body = scalar.classifier.model.forward
    scalar.classifier.model.forward = lambda *rows, **given: body(
        *rows, **given | {"attention_mask": whole}
    )
    with pytest.raises(ValueError, match="folder: .* lets tokens see those after them"):
        prove_scalar(scalar, "folder")


def test_a_cap_that_is_far_off_is_applied_all_the_same():
    policy = tiny("gemma2")
    policy.lm.config.final_logit_softcapping = 1e4
    prove_policy(policy, "folder")
    assert policy.logit_map == LogitMap(softcap=1e4)


def test_fields_of_a_config():
    assert logit_maps(LlamaConfig()) == [LogitMap()]
    assert logit_maps(LlamaConfig(logit_scale=0.5, logits_scaling=4.0)) == [
        LogitMap(scale) for scale in (0.125, 2.0, 0.5, 0.25, 4.0, 1.0)
    ]
    capped = LlamaConfig(final_logit_softcapping=30.0, logit_scale=None)
    assert logit_maps(capped) == [LogitMap(softcap=30.0), LogitMap()]


@pytest.mark.parametrize(
    "name", ["gemma2", "llama", "mistral", "opt", "phi3", "qwen2", "qwen3_moe"]
)
def test_scores_are_those_of_the_models_own_forward(name, tmp_path):
    scalar = tiny_scalar(name, tmp_path, "float32")
    scalar.classifier.config.score_offset = 0.5
    prove_scalar(scalar, "folder")
    scalar.classifier.score.register_forward_hook(lambda module, inputs, out: out + 1)
    with pytest.raises(
        ValueError,
        match=r"folder: the score of a row is \[.*\] by the model's own forward and \[.*\]",
    ):
        prove_scalar(scalar, "folder")


def test_scores_of_bf16_models_are_as_fine_as_fp32(tmp_path):
    """bf16 has 256 steps between 1 and 2: thousands of scores would share some hundred values."""
    scalar = tiny_scalar("llama", tmp_path, "bfloat16")
    ids_BT = torch.randint(2, 320, (4000, 5), generator=torch.Generator().manual_seed(0))
    last_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    last_BT[:, -1] = True
    with torch.no_grad():
        assert len(scalar(ids_BT, last_BT).unique()) > 3900


def test_bf16_models_are_proved_too(tmp_path):
    tiny("gemma2").lm.save_pretrained(tmp_path)
    assert load_policy(str(tmp_path), "bfloat16").logit_map == LogitMap(softcap=2.0)
