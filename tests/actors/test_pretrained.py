"""A folder's weights are loaded whole or not at all, and what is loaded can be saved again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from rayward.actors.models.load import load_policy, load_scalar, save_model
from rayward.data.model_files.folder import faults


def changed(kind: str, source: str, folder: Path) -> Path:
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    last = f"model.layers.{config['num_hidden_layers'] - 1}.mlp.up_proj.weight"
    if kind == "one":
        del weights[last]
    elif kind == "head":
        weights = {
            name: tensor
            for name, tensor in weights.items()
            if not name.startswith(("lm_head", "score"))
        }
    elif kind == "prefix":
        weights = {f"module.{name}": tensor for name, tensor in weights.items()}
    elif kind == "shape":
        weights[last] = weights[last][:-1].clone()
    elif kind == "layers":
        config["num_hidden_layers"] -= 1
    elif kind == "adapter":
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    elif kind == "quantized":
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    if kind == "bytes":
        (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    else:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


BROKEN = {
    "one": "lacks 1 weights of a Llama.*, first model.layers.1.mlp.up_proj.weight: they would "
    "be random",
    "prefix": "lacks [0-9]+ weights of a Llama.*, and holds [0-9]+ that config.json has no place "
    "for, first module.",
    "shape": "holds 1 weights of another shape than its config.json gives them, first "
    "model.layers.1.mlp.up_proj",
    "layers": "holds weights that would be left out: 9 that config.json has no place for, first "
    "model.layers.1",
    "adapter": "holds an adapter .*, which has to be merged into its model first",
    "quantized": r"holds quantized weights \(gptq\): take the model in bf16",
    "bytes": "cannot be loaded as a model: ",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_would_be_random_or_left_out_is_refused(
    kind: str, tiny_models, tmp_path: Path
) -> None:
    """When it is loaded, and before that by the names alone, for a policy and for a reward
    model.
    """
    policy = changed(kind, tiny_models.policy, tmp_path / "policy")
    reward = changed(kind, tiny_models.reward, tmp_path / "reward")
    with pytest.raises(ValueError, match=f"{policy} {BROKEN[kind]}"):
        load_policy(str(policy), "float32")
    with pytest.raises(ValueError, match=f"{policy} {BROKEN[kind]}"):
        load_scalar(str(policy), "float32", seed=0)
    with pytest.raises(ValueError, match=f"{reward} {BROKEN[kind]}"):
        load_scalar(str(reward), "float32")
    for folder, scores in ((policy, False), (reward, True)):
        told = faults(folder, scores)
        assert len(told) == 1 and re.match(f"{folder} {BROKEN[kind]}", told[0]), told


def test_a_head_that_is_missing_is_drawn_for_a_critic_alone(tiny_models, tmp_path: Path) -> None:
    policy, reward = (
        changed("head", source, tmp_path / name)
        for name, source in (("policy", tiny_models.policy), ("reward", tiny_models.reward))
    )
    with pytest.raises(
        ValueError, match="lacks 1 weights of a LlamaForCausalLM, first lm_head.weight"
    ):
        load_policy(str(policy), "float32")
    with pytest.raises(
        ValueError, match="lacks 1 weights of a LlamaForSequenceClassification, first score.weight"
    ):
        load_scalar(str(reward), "float32")
    assert load_scalar(str(policy), "float32", seed=0).classifier.score.weight.std() > 0


def test_sound_folders_have_no_faults(tiny_models) -> None:
    assert faults(Path(tiny_models.policy), False) == faults(Path(tiny_models.reward), True) == []


def test_a_reward_model_is_no_policy(tiny_models) -> None:
    with pytest.raises(
        ValueError, match=r"is a reward model \(LlamaForSequenceClassification\), and gives no text"
    ):
        load_policy(tiny_models.reward, "float32")


IDS = {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config"}


@pytest.mark.parametrize(
    "given, kept",
    [
        # Vicuna's.
        ({"temperature": 0.9, "top_p": 0.6}, {"temperature": 0.9, "top_p": 0.6, "do_sample": True}),
        ({"do_sample": False, "temperature": 0.6}, {"do_sample": False}),
        ({"temperature": 0.0, "top_k": 1}, {}),
        ({"do_sample": True, "top_k": 5}, {"do_sample": True, "top_k": 5}),
        ({"pad_token_id": -1}, {}),
        ({"early_stopping": True}, {}),
    ],
)
def test_a_generation_config_that_transformers_does_not_write_does_not_stop_the_save(
    given: dict, kept: dict, tiny_models, tmp_path: Path
) -> None:
    """It reads such files, and refuses to write them when hours of training are done; what is
    written generates alike, which a temperature of 0 would not with `do_sample`."""
    folder = shutil.copytree(tiny_models.policy, tmp_path / "given")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": 2} | given))
    lm = load_policy(str(folder), "float32").lm
    save_model(lm, lm.state_dict(), tiny_models.tokenizer, tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert {name: value for name, value in saved.items() if name not in IDS} == kept
    again = load_policy(str(tmp_path / "saved"), "float32").lm
    assert torch.equal(lm.lm_head.weight, again.lm_head.weight)
    again.generate(torch.tensor([[5, 6]]), max_new_tokens=2)


def test_without_a_generation_config_its_settings_are_those_of_the_config(
    tiny_models, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_models.policy, tmp_path / "given")
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": -1}))
    lm = load_policy(str(folder), "float32").lm
    save_model(lm, lm.state_dict(), tiny_models.tokenizer, tmp_path / "saved")
    assert load_policy(str(tmp_path / "saved"), "float32").lm.config.pad_token_id == 0


@pytest.mark.parametrize(
    "kind, shape, buffers",
    [
        (
            "gpt2",
            {"n_embd": 64, "n_layer": 1, "n_head": 2},
            ["h.0.attn.masked_bias", "h.0.attn.bias"],
        ),
        (
            "gptj",
            {"n_embd": 64, "n_layer": 1, "n_head": 2, "rotary_dim": 8},
            ["h.0.attn.masked_bias", "h.0.attn.bias"],
        ),
        (
            "gpt_neo",
            {
                "hidden_size": 64,
                "num_layers": 1,
                "num_heads": 2,
                "attention_types": [[["global"], 1]],
            },
            ["h.0.attn.attention.bias", "h.0.attn.attention.masked_bias"],
        ),
        (
            "codegen",
            {"n_embd": 64, "n_layer": 1, "n_head": 4, "rotary_dim": 8},
            ["h.0.attn.causal_mask"],
        ),
    ],
)
def test_masks_that_lie_beside_old_weights_are_no_fault(
    kind: str, shape: dict, buffers: list[str], tmp_path: Path
) -> None:
    """Earlier transformers wrote their constants too."""
    AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, vocab_size=300, **shape)
    ).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights |= {f"transformer.{name}": torch.ones(1, 1, 4, 4) for name in buffers}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert faults(tmp_path, False, with_tokenizer=False) == []
    load_policy(str(tmp_path), "float32")
    save_file(
        weights | {"transformer.h.0.attn.gate": torch.ones(4)}, tmp_path / "model.safetensors"
    )
    assert "first transformer.h.0.attn.gate" in faults(tmp_path, False, with_tokenizer=False)[0]
