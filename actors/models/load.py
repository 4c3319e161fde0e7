"""Hugging Face folders to models and back: loaded, proved, made from scratch, saved."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rayward.actors.models.cpu.fused import fuse
from rayward.actors.models.heads import TokenPolicy, TokenScalar
from rayward.actors.models.pretrained import make_generation_config_writable, pretrained
from rayward.actors.models.proof import prove_policy, prove_scalar, prove_tied
from rayward.configs.sections.model import Scratch
from rayward.data.model_files.hub_models import config_of, has_score_head
from rayward.data.templates.published.template import own_last_ends
from rayward.data.templates.saved_tokenizer import save_tokenizer


def load_policy(folder: str, dtype: str, temperature: float = 1.0) -> TokenPolicy:
    """Causal language model of a Hugging Face folder, dropout off.

    Raises ValueError for a folder that is not whole (see `pretrained`), for a model of which
    `TokenPolicy` would not give the log-probs of its own forward, and for one with a head of its
    own beside a config that ties it.
    """
    config = _config_without_dropout(folder)
    if has_score_head(config):
        raise ValueError(
            f"{folder} is a reward model ({', '.join(config.architectures)}), and gives no text"
        )
    lm = pretrained(AutoModelForCausalLM, folder, config, dtype)
    prove_tied(lm, folder)
    # Before the proof, which then also covers what is fused.
    fuse(lm)
    _train_pad_embedding(lm)
    policy = TokenPolicy(lm, temperature)
    prove_policy(policy, folder)
    return policy


def load_scalar(folder: str, dtype: str, seed: int | None = None) -> TokenScalar:
    """Scalar model of a folder; a score head that it lacks is drawn from N(0, 1/(H+1)) with `seed`.

    Raises ValueError for a folder with a head of more than one label, with no head and no seed,
    that is not whole (see `pretrained`), or of which `TokenScalar` would not give the logits of the
    model's own forward.
    """
    config = _config_without_dropout(folder)
    has_head = has_score_head(config)
    if has_head and config.num_labels != 1:
        raise ValueError(
            f"{folder}: the score head has {config.num_labels} labels, a reward model has 1"
        )
    if not has_head and seed is None:
        raise ValueError(f"{folder}: no score head in this folder; it holds {config.architectures}")
    # Base models' configs say 2, the default.
    config.num_labels = 1
    fresh = [] if has_head else ["score."]
    classifier = pretrained(AutoModelForSequenceClassification, folder, config, dtype, fresh)
    if not isinstance(getattr(classifier, "score", None), nn.Linear):
        raise ValueError(
            f"{folder}: {type(classifier).__name__} has no linear layer `score` as its score head"
        )
    if not has_head:
        # States whose entries have variance 1 then get scores of variance about 1. Drawn in fp32
        # on the CPU by a generator of its own: all ranks have one head, and no other stream moves.
        weight = classifier.score.weight
        generator = torch.Generator().manual_seed(int(seed or 0))
        drawn = torch.randn(weight.shape, generator=generator) / (weight.shape[1] + 1) ** 0.5
        weight.data.copy_(drawn)
    fuse(classifier)
    _train_pad_embedding(classifier)
    scalar = TokenScalar(classifier)
    prove_scalar(scalar, folder)
    return scalar


def _train_pad_embedding(model: PreTrainedModel) -> None:
    """Let the pad token's embedding learn: in many base models it is the end token of every row."""
    # `padding_idx` would drop its gradient. Padding itself brings none here, since nothing that is
    # read depends on it.
    model.get_input_embeddings().padding_idx = None


def build_from_scratch(
    shape: Scratch, tokenizer: PreTrainedTokenizerBase, context_tokens: int, seed: int
) -> PreTrainedModel:
    """A Llama with random weights for the tokenizer's vocabulary."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        # The usual 0.02 suits widths of thousands; narrow models learn much faster from
        # unit-variance outputs.
        initializer_range=shape.hidden_size**-0.5,
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=context_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def save_model(
    model: PreTrainedModel,
    state: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
) -> None:
    """A plain Hugging Face folder: safetensors, config, generation config, tokenizer, template.

    `state`: the whole weights under the model's names; those in `model` may be shards of ZeRO-3.
    """
    # The ends first: they are part of the generation config that is then made writable.
    _set_special_tokens(model, tokenizer)
    make_generation_config_writable(model)
    model.save_pretrained(folder, state_dict=state)
    save_tokenizer(tokenizer, folder)


def _set_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the configs name the tokenizer's pad token, and all tokens that end what is generated.

    Ends are the tokenizer's end token and that of its chat template, which may be another
    (Phi-3's).
    """
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    text = model.config.get_text_config()
    # transformers reads a row's score at its last token that is not the pad id of the config. Base
    # models name none there, which it refuses for a batch, or their end token, at which a
    # conversation's score stands.
    if pad is not None and pad < text.vocab_size:  # one without an embedding would not load again
        model.config.pad_token_id = text.pad_token_id = pad
    if model.can_generate() and (generation := model.generation_config) is not None:
        generation.pad_token_id = model.config.pad_token_id
        old = generation.eos_token_id
        # Those that came with the model stay, each once, the tokenizer's first.
        ends = [end, *own_last_ends(tokenizer), *(old if isinstance(old, list) else [old])]
        known = [token for token in dict.fromkeys(ends) if token is not None]
        generation.eos_token_id = known[0] if len(known) == 1 else known


@torch.no_grad()
def probe(module: TokenPolicy | TokenScalar, vocab_size: int) -> Tensor:
    """Outputs of a fixed row, fp32 on the CPU: equal before saving and after loading, or the folder
    is wrong. A collective under ZeRO-3.
    """
    row = torch.arange(1, 17).remainder(vocab_size)[None, :].to(next(module.parameters()).device)
    chosen = torch.ones_like(row, dtype=torch.bool)
    # By position: the hook of actors/models/lean.py reads `chosen` there.
    out = module(row, chosen)
    return (out[0] if isinstance(out, tuple) else out).float().cpu()


def _config_without_dropout(folder: str) -> PretrainedConfig:
    """The folder's config with every dropout rate 0.

    With dropout old and new log-probs would come from two networks. Models read the rates when they
    are built, so they are set before.
    """
    config = config_of(folder)
    # A model of text and pictures has two configs; others are their own text config.
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        for name, value in part.to_dict().items():
            is_rate = "dropout" in name or "layerdrop" in name or name.endswith("_pdrop")
            if is_rate and isinstance(value, float):
                setattr(part, name, 0.0)
    # Attention that caps its logits (Gemma-2) is the one that is written out: torch's fused one
    # leaves the cap out without a word.
    if getattr(config.get_text_config(), "attn_logit_softcapping", None):
        config._attn_implementation = "eager"
    return config
