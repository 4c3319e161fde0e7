"""A folder's weights are loaded whole or not at all, and what is loaded can be saved again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.models import load_policy, load_scalar, save_model
from data.model_folder import faults


def changed(kind: str, source: str, folder: Path) -> Path:
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    last = f"model.layers.{config['num_hidden_layers'] - 1}.mlp.up_proj.weight"
    if kind == "one":
        del weights[last]
    elif kind == "head":
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(("lm_head", "score"))}
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
    "one": "lacks 1 weights of a Llama.*, first model.layers.1.mlp.up_proj.weight: they would be random",
    "prefix": "lacks [0-9]+ weights of a Llama.*, and holds [0-9]+ that config.json has no place for, first module.",
    "shape": "holds 1 weights of another shape than its config.json gives them, first model.layers.1.mlp.up_proj",
    "layers": "holds weights that would be left out: 9 that config.json has no place for, first model.layers.1",
    "adapter": "holds an adapter .*, which has to be merged into its model first",
    "quantized": r"holds quantized weights \(gptq\): take the model in bf16",
    "bytes": "cannot be loaded as a model: ",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_would_be_random_or_left_out_is_refused(kind: str, tiny_models, tmp_path: Path) -> None:
    """When it is loaded, and before that by the names alone, for a policy and for a reward model."""
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
    with pytest.raises(ValueError, match="lacks 1 weights of a LlamaForCausalLM, first lm_head.weight"):
        load_policy(str(policy), "float32")
    with pytest.raises(ValueError, match="lacks 1 weights of a LlamaForSequenceClassification, first score.weight"):
        load_scalar(str(reward), "float32")
    assert load_scalar(str(policy), "float32", seed=0).classifier.score.weight.std() > 0


def test_sound_folders_have_no_faults(tiny_models) -> None:
    assert faults(Path(tiny_models.policy), False) == faults(Path(tiny_models.reward), True) == []


def test_a_reward_model_is_no_policy(tiny_models) -> None:
    with pytest.raises(ValueError, match=r"is a reward model \(LlamaForSequenceClassification\), and gives no text"):
        load_policy(tiny_models.reward, "float32")


def test_settings_of_sampling_without_do_sample_do_not_stop_the_save(tiny_models, tmp_path: Path) -> None:
    """As Vicuna's: transformers reads such a file, and refuses to write it when hours of training are done."""
    folder = shutil.copytree(tiny_models.policy, tmp_path / "given")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": 0.9, "top_p": 0.6}))
    lm = load_policy(str(folder), "float32").lm
    save_model(lm, lm.state_dict(), tiny_models.tokenizer, tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert (saved["temperature"], saved["top_p"], saved["do_sample"]) == (0.9, 0.6, True)
    assert torch.equal(lm.lm_head.weight, load_policy(str(tmp_path / "saved"), "float32").lm.lm_head.weight)
    path.write_text(json.dumps({"early_stopping": True}))
    with pytest.raises(ValueError, match="given/generation_config.json: .*early_stopping.* Mend that file"):
        load_policy(str(folder), "float32")
