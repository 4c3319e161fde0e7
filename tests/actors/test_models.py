"""Policy and scalar models against transformers' own forward on single unpadded rows."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
)

from rayward.actors.models.attention import attend_by_row
from rayward.actors.models.forward import response_inputs, sequence_inputs
from rayward.actors.models.heads import TokenPolicy, last_tokens, response_tokens
from rayward.actors.models.load import load_policy, load_scalar, save_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_policy_logprobs_are_those_of_transformers(tiny_models, made_rollouts, plain, temperature):
    rollouts = made_rollouts(9)
    lm = AutoModelForCausalLM.from_pretrained(tiny_models.policy, dtype=torch.float32)
    with torch.no_grad():
        logprobs_N, nothing = load_policy(tiny_models.policy, "float32", temperature)(
            *response_inputs(rollouts, CPU)
        )
    expected = plain(lm, rollouts.prompts, rollouts.responses, temperature)
    assert nothing is None
    np.testing.assert_allclose(logprobs_N.numpy(), expected, atol=1e-5, rtol=0)


def test_entropy_is_that_of_the_tempered_distribution(tiny_models):
    policy = load_policy(tiny_models.policy, "float32", temperature=0.7)
    ids_BT = torch.arange(3, 15)[None]
    chosen_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    chosen_BT[0, 5:] = True
    with torch.no_grad():
        _, entropy_N = policy(ids_BT, chosen_BT, with_entropy=True)
        expected = torch.distributions.Categorical(
            logits=policy.lm(ids_BT).logits[0, 4:-1] / 0.7
        ).entropy()
    torch.testing.assert_close(entropy_N, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("padding", [1, 40])
def test_right_padding_changes_nothing(tiny_models, made_rollouts, padding):
    ids_BT, chosen_BT = response_inputs(made_rollouts(5), CPU)

    def wider(x, fill):
        return torch.nn.functional.pad(x, (0, padding), value=fill)

    policy, scalar = (
        load_policy(tiny_models.policy, "float32"),
        load_scalar(tiny_models.reward, "float32"),
    )
    with torch.no_grad():
        for pad in (0, 7):  # the pad id, and a token like any other
            padded = wider(ids_BT, pad), wider(chosen_BT, False)
            torch.testing.assert_close(
                policy(*padded)[0], policy(ids_BT, chosen_BT)[0], atol=1e-5, rtol=0
            )
            torch.testing.assert_close(
                scalar(*padded), scalar(ids_BT, chosen_BT), atol=1e-5, rtol=0
            )


def test_nothing_chosen_gives_an_empty_result_that_can_be_differentiated(
    tiny_models, made_rollouts
):
    policy = load_policy(tiny_models.policy, "float32")
    logprobs_N, _ = policy(*response_inputs(made_rollouts(2).take([]), CPU))
    assert logprobs_N.shape == (0,)
    logprobs_N.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in policy.parameters())


def test_scalar_is_transformers_score_of_each_row(tiny_models, made_rollouts):
    sequences = made_rollouts(9).sequences()
    plain = AutoModelForSequenceClassification.from_pretrained(
        tiny_models.reward, dtype=torch.float32
    ).eval()
    assert (
        plain.config.pad_token_id == tiny_models.tokenizer.pad_token_id
        and plain.config.num_labels == 1
    )
    with torch.no_grad():
        scores_N = load_scalar(tiny_models.reward, "float32")(*sequence_inputs(sequences, CPU))
        rows = [
            plain(torch.from_numpy(sequences[row].astype(np.int64))[None]).logits
            for row in range(len(sequences))
        ]
        ids_BT, mask_BT = (
            torch.from_numpy(sequences.padded().astype(np.int64)),
            torch.from_numpy(np.arange(sequences.lengths.max()) < sequences.lengths[:, None]),
        )
        batch = plain(ids_BT, attention_mask=mask_BT.long()).logits[:, 0]
    assert scores_N.dtype == torch.float32
    assert scores_N.std() > 0.1
    torch.testing.assert_close(scores_N, torch.cat(rows)[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(scores_N, batch, atol=1e-5, rtol=0)


def test_masks_of_tokens():
    assert last_tokens(np.array([3, 1])).tolist() == [[False, False, True], [True, False, False]]
    prompts, responses = np.array([2, 1]), np.array([1, 3])
    assert response_tokens(prompts, responses).astype(int).tolist() == [[0, 0, 1, 0], [0, 1, 1, 1]]
    assert response_tokens(prompts, responses, shift=1).astype(int).tolist() == [
        [0, 1, 0, 0],
        [1, 1, 1, 0],
    ]
    assert response_tokens(prompts, np.array([0, 2])).astype(int).tolist() == [[0, 0, 0], [0, 1, 1]]


def test_score_head_is_drawn_from_the_seed_where_there_is_none(tiny_models):
    def weight(seed):
        return load_scalar(tiny_models.policy, "float32", seed).classifier.score.weight

    assert torch.equal(weight(5), weight(5))
    assert not torch.equal(weight(5), weight(6))
    hidden_size = weight(5).shape[1]
    drawn = torch.cat([weight(seed)[0] for seed in range(12)])
    assert float(drawn.std()) == pytest.approx((hidden_size + 1) ** -0.5, rel=0.1)
    trained = load_scalar(tiny_models.reward, "float32").classifier.score.weight
    assert torch.equal(
        load_scalar(tiny_models.reward, "float32", seed=9).classifier.score.weight, trained
    )


def test_folders_that_are_no_reward_model_are_refused(tiny_models, tmp_path):
    with pytest.raises(
        ValueError, match="no score head in this folder; it holds .*LlamaForCausalLM"
    ):
        load_scalar(tiny_models.policy, "float32")
    two = AutoModelForSequenceClassification.from_pretrained(
        tiny_models.reward, num_labels=2, ignore_mismatched_sizes=True
    )
    save_model(two, two.state_dict(), tiny_models.tokenizer, tmp_path / "two")
    with pytest.raises(ValueError, match="the score head has 2 labels, a reward model has 1"):
        load_scalar(str(tmp_path / "two"), "float32")


def test_a_tied_model_with_a_head_of_its_own_is_refused(tiny_models, tmp_path):
    """transformers would use the head, an engine the embedding."""
    folder = shutil.copytree(tiny_models.policy, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(
        ValueError, match="weights hold a head of its own that differs from the embedding"
    ):
        load_policy(str(folder), "float32")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: x for name, x in weights.items() if name != "lm_head.weight"},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    lm = load_policy(str(folder), "float32").lm
    assert lm.get_output_embeddings().weight is lm.get_input_embeddings().weight


def test_capped_attention_is_not_left_to_a_kernel_that_has_no_cap(tmp_path):
    """transformers' default, torch's fused attention, drops `softcap`: Gemma-2 would be another
    model.
    """
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    config = Gemma2Config(
        **sizes, num_key_value_heads=1, head_dim=32, vocab_size=320, attn_logit_softcapping=0.5
    )
    lm = Gemma2ForCausalLM(config).eval()
    with torch.no_grad():
        for weight in lm.parameters():
            weight.normal_(std=0.3)
    lm.save_pretrained(tmp_path)
    row, chosen = torch.arange(3, 40)[None], torch.ones(1, 37, dtype=torch.bool)

    def read(of):
        with torch.no_grad():
            return of.logits[0, :-1].log_softmax(-1).gather(1, row[0, 1:, None])[:, 0]

    lm.set_attn_implementation("eager")
    capped = read(lm(row))
    lm.set_attn_implementation("sdpa")
    assert float((read(lm(row)) - capped).abs().max()) > 0.1, "the kernel still has none"
    policy = load_policy(str(tmp_path), "float32")
    with torch.no_grad():
        torch.testing.assert_close(policy(row, chosen)[0], capped, atol=1e-4, rtol=0)
    assert not attend_by_row(policy.lm), "nor has the attention that takes rows one by one"


def test_loaded_models_have_no_dropout_in_training(tiny_models, made_rollouts, tmp_path):
    lm = AutoModelForCausalLM.from_pretrained(tiny_models.policy, attention_dropout=0.5)
    save_model(lm, lm.state_dict(), tiny_models.tokenizer, tmp_path / "dropout")
    inputs = response_inputs(made_rollouts(3), CPU)
    policy = load_policy(str(tmp_path / "dropout"), "float32").train()
    with torch.no_grad():
        assert torch.equal(policy(*inputs)[0], policy(*inputs)[0])
        torch.testing.assert_close(
            policy(*inputs)[0], TokenPolicy(lm.eval())(*inputs)[0], atol=1e-6, rtol=0
        )


def test_a_model_is_served_until_the_end_of_its_template_s_answers(tiny_models, tmp_path):
    """Phi-3's tokenizer ends texts with one token, its chat template answers with another."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_models.policy)
    tokenizer.eos_token = "<s>"
    lm = AutoModelForCausalLM.from_pretrained(tiny_models.policy)
    lm.generation_config.eos_token_id = None
    save_model(lm, lm.state_dict(), tokenizer, tmp_path)
    ends = AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id
    assert ends == tokenizer.convert_tokens_to_ids(["<s>", "<|end_of_turn|>"])


def test_external_parameters_are_the_head(tiny_models):
    policy = load_policy(tiny_models.policy, "float32")
    assert [p is policy.lm.lm_head.weight for p in policy.external_parameters()] == [True]
    scalar = load_scalar(tiny_models.reward, "float32")
    assert [p is scalar.classifier.score.weight for p in scalar.external_parameters()] == [True]
