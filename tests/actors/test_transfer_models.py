"""Weights of every kind of decoder reach an engine that has none: each kind of weight is changed,
sent, and seen.

One process holds one engine after the other, since importing vLLM takes longer than starting a tiny
model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import ray
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from rayward.actors.models.forward import RankContext
from rayward.actors.models.proof import transfer_probe
from rayward.actors.rollout.weights import EngineClient, WeightReader, WeightSender
from rayward.actors.rollout.worker import RolloutEngine
from rayward.actors.scoring.reference import FrozenModel

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 320, "max_position_embeddings": 128,
    "initializer_range": 0.1, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("llama", {"tie_word_embeddings": True}),
    "tied and biased": ("qwen2", {"tie_word_embeddings": True}),
    "norms of queries and keys": ("qwen3", {"tie_word_embeddings": False}),
    "no head of its own, capped, sliding": (
        "gemma2",
        {"sliding_window": 8, "attn_logit_softcapping": 0.5},
    ),
    "experts": ("qwen3_moe", {**EXPERTS, "norm_topk_prob": True}),
}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "untied": ("llama", {"tie_word_embeddings": False}),
    "sliding": ("mistral", {"sliding_window": 8}),
    "one tensor for queries, keys, values": ("phi3", {}),
    "gemma": ("gemma", {}),
    "gemma3": ("gemma3_text", {"sliding_window": 8}),
    "cohere": ("cohere", {"logit_scale": 0.5}),
    "granite": ("granite", {"logits_scaling": 2.0}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmoe": ("olmoe", EXPERTS),
    "minicpm3": (
        "minicpm3",
        {
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16,
            "v_head_dim": 32,
            "dim_model_base": 16,
            "head_dim": 32,
            "num_key_value_heads": 2,
        },
    ),
    "gpt2": ("gpt2", {"n_embd": 64, "n_head": 2, "n_layer": 2, "n_positions": 128}),
    "gpt_neox": ("gpt_neox", {}),
    "opt": ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "phi": ("phi", {"num_key_value_heads": 2, "intermediate_size": 256}),
    "stablelm": ("stablelm", {}),
    "seed_oss": ("seed_oss", {}),
    "glm4": ("glm4", {}),
    "a router with buffers": (
        "glm4_moe",
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
        },
    ),
}


class Direct(EngineClient):
    """Engines in this very process."""

    def call(self, method, arguments):
        return [
            getattr(engine, method)(*own)
            for engine, own in zip(self.engines, arguments, strict=True)
        ]


class Walk:
    """A policy and the engine that gets its weights, which starts with random ones."""

    def walk(self, folder, config):
        """Mean gaps of the log-probs of a row: at first, after a transfer, and as each kind of
        weight changes.
        """
        torch.set_num_threads(1)
        policy = FrozenModel(folder, config, 1.0, 0)
        engine = RolloutEngine(folder, config, "object_store", False, 0)
        policy.sender = WeightSender(
            WeightReader(policy),
            Direct([engine], timeout_s=60),
            "object_store",
            RankContext(0, 1, torch.device("cpu")),
        )
        gaps, version = {}, 0

        def gap():
            ids, expected = transfer_probe(policy.module, config.model.context_tokens)
            return float(np.abs(np.subtract(engine.probe(ids), expected)).mean())

        def sent():
            nonlocal version
            version += 1
            policy.send_weights(version)
            return gap()

        gaps["random weights"], gaps["first transfer"] = (gap(), sent())
        for kind, tensors in kinds(policy.weights()).items():
            kept = [tensor.clone() for tensor in tensors]
            for tensor in tensors:
                noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3))
                tensor.add_(noise * tensor.std().nan_to_num(0.0).clamp(min=0.1))
            gaps[f"{kind}, not sent"], gaps[kind] = (gap(), sent())
            for tensor, old in zip(tensors, kept, strict=True):
                tensor.copy_(old)
        return gaps


def kinds(weights):
    """Weights by their names without numbers."""
    found = {}
    for name, tensor in weights:
        found.setdefault(
            ".".join(part for part in name.split(".") if not part.isdigit()), []
        ).append(tensor)
    return found


@pytest.fixture(scope="module")
def walkers(local_ray):
    """A process for all models without experts; vLLM sets up a process for experts once, with its
    first model.
    """
    made = {}

    def of(name):
        key = name if "moe" in name or name == "mixtral" else "dense"
        if key not in made:
            remote = ray.remote(num_cpus=0.1, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})
            made[key] = remote(Walk).remote()
        return made[key]

    yield of
    for actor in made.values():
        ray.kill(actor)


@pytest.mark.parametrize(
    "case", [*MODELS, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE)]
)
def test_every_kind_of_weight_of_every_kind_of_model_arrives(walkers, tiny_config, tmp_path, case):
    name, values = (MODELS | MORE)[case]
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**(SIZES | values)))
    with torch.no_grad():
        for weight in lm.parameters():
            if weight.ndim == 1:
                weight.add_(0.2 * torch.randn(weight.shape))
    lm.save_pretrained(tmp_path)
    config = tiny_config(model={"context_tokens": 64})
    gaps = ray.get(walkers(name).walk.remote(str(tmp_path), config), timeout=300)
    assert gaps.pop("random weights") > 0.1
    unseen = {kind: value for kind, value in gaps.items() if kind.endswith("not sent")}
    assert min(unseen.values()) > 1e-4, unseen
    assert max(value for kind, value in gaps.items() if kind not in unseen) < 2e-5, gaps
