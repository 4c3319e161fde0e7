"""A reward model's folder gives our scores through transformers alone: in batches, padded on either
side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from rayward.actors.models.forward import sequence_inputs
from rayward.actors.models.load import load_policy, load_scalar, save_model
from rayward.data.ragged import Ragged
from rayward.data.templates.tokenizer import load_tokenizer, train_tokenizer

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
ARCHITECTURES = (
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi3",
    "starcoder2",
    "glm",
)
ANSWERS = (
    "Yes.",
    "It is cold and it is hot, both at once, on most days of the year.",
    "Why not?",
    "No",
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """With its end token as pad token, as published ones; loaded as we load it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["It is cold. It is hot. Yes or no, why not?"]
    made = train_tokenizer(words, 300, ("</s>", "<|endoftext|>"), 128)
    # As in Qwen's, which transformers puts there where it is missing.
    made.unk_token = "<|endoftext|>"
    made.pad_token = made.eos_token
    made.save_pretrained(folder)
    return load_tokenizer(folder)


def folder_of(architecture: str, pad: str, tokenizer: Any, path: Path) -> Path:
    """What the reward stage leaves of a base model whose config has this pad id: its end token's,
    or none.
    """
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        architecture,
        **SMALL,
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.eos_token_id if pad == "end" else None,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(path / "base")
    classifier = load_scalar(str(path / "base"), "float32", seed=1).classifier
    classifier.config.score_offset = 0.25
    save_model(classifier, classifier.state_dict(), tokenizer, path / "model")
    return path / "model"


@pytest.mark.parametrize("pad", ["end", "none"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_the_library_reads_our_scores_in_batches(
    architecture: str, pad: str, tokenizer: Any, tmp_path: Path
) -> None:
    folder = str(folder_of(architecture, pad, tokenizer, tmp_path))
    rows = [tokenizer.encode(text) + [tokenizer.eos_token_id] for text in ANSWERS]
    rows.append(rows[0][:-1])  # an answer that was cut
    ours = load_scalar(folder, "float32").eval()(
        *sequence_inputs(Ragged.of(rows), torch.device("cpu"))
    )
    assert float(ours.std()) > 0.05
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    offset = model.config.score_offset
    for side in ("left", "right"):
        theirs = AutoTokenizer.from_pretrained(folder, padding_side=side)
        batch = theirs.pad({"input_ids": rows}, return_tensors="pt")
        assert batch["input_ids"].shape == (5, max(map(len, rows)))
        torch.testing.assert_close(model(**batch).logits[:, 0] - offset, ours, atol=1e-5, rtol=0)
    for row, score in zip(rows, ours, strict=True):
        alone = model(input_ids=torch.tensor([row])).logits[0, 0] - offset
        torch.testing.assert_close(alone, score, atol=1e-5, rtol=0)


def test_a_language_model_names_the_same_pad_token_and_ends_where_answers_do(
    tokenizer: Any, tmp_path: Path
) -> None:
    config = AutoConfig.for_model(
        "llama", **SMALL, vocab_size=len(tokenizer), eos_token_id=7, pad_token_id=7
    )
    lm = AutoModelForCausalLM.from_config(config)
    save_model(lm, lm.state_dict(), tokenizer, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (
        again.config.pad_token_id == again.generation_config.pad_token_id == tokenizer.pad_token_id
    )
    assert again.generation_config.eos_token_id == [tokenizer.eos_token_id, 7]
    assert load_policy(str(tmp_path), "float32").lm.config.pad_token_id == tokenizer.pad_token_id


def test_a_pad_token_without_an_embedding_is_not_named(tokenizer: Any, tmp_path: Path) -> None:
    """transformers would not load such a model again."""
    config = AutoConfig.for_model(
        "llama", **SMALL, vocab_size=tokenizer.pad_token_id, eos_token_id=1
    )
    if tokenizer.pad_token_id == 0:
        tokenizer = train_tokenizer(["x"], 300, ("</s>",), 128)
        tokenizer.add_special_tokens({"pad_token": "<extra>"})
        config.vocab_size = tokenizer.pad_token_id
    lm = AutoModelForCausalLM.from_config(config)
    save_model(lm, lm.state_dict(), tokenizer, tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.pad_token_id is None


@torch.enable_grad()
@pytest.mark.parametrize(
    "load", [load_policy, lambda folder, dtype: load_scalar(folder, dtype, seed=0)]
)
def test_the_token_that_a_base_model_pads_with_learns_like_any_other(
    load: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """It may be the end token, which stands in every row."""
    config = AutoConfig.for_model(
        "llama", **SMALL, vocab_size=len(tokenizer), pad_token_id=7, eos_token_id=7
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    module = load(str(tmp_path), "float32")
    ids = torch.tensor([[5, 7, 9, 5]])
    out = module(ids, torch.tensor([[False, False, False, True]]))
    (out[0] if isinstance(out, tuple) else out).sum().backward()
    inner = module.lm if hasattr(module, "lm") else module.classifier
    assert inner.get_input_embeddings().weight.grad[7].abs().sum() > 0
