"""A byte-level BPE tokenizer trained on one's own text, and the loading of tokenizers that come with models.

Byte level: every string survives encoding and decoding, so there is no unknown token. Digits are split
singly, so that numbers of any length are spelled alike. The tokenizer adds no BOS: `data.templates` does.

Padding is a token of its own everywhere. Where pad and end token are one id, code that masks "all that is
pad" also masks the ends of turns, and the model never learns to stop.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data.hub_models import read_tokenizer
from data.plain_text import encode_plain

BOS, PAD = "<s>", "<pad>"
STRANGE = "日本 😀 \u0378\x01 ÿ"  # of which a vocabulary that does not know every text knows something not
NUM_BYTES = 256


def train_tokenizer(texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str], context_tokens: int) -> Any:
    """A `PreTrainedTokenizerFast` of at most `vocab_size` tokens: same texts in same order, same tokenizer.

    `special_tokens`: those of the chat template, its end token first, which becomes EOS. "<pad>" gets id 0,
    "<s>" (BOS) id 1, and they follow. `context_tokens` is its `model_max_length`.
    ValueError: no special token, or a vocabulary too small for the special tokens and 256 bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if not special_tokens or special_tokens[0] in (BOS, PAD):
        raise ValueError(f"special_tokens is {list(special_tokens)}: start with the end token")
    reserved = list(dict.fromkeys((PAD, BOS, *special_tokens)))
    if vocab_size < NUM_BYTES + len(reserved):
        raise ValueError(
            f"vocab_size is {vocab_size}, but {NUM_BYTES} bytes and {len(reserved)} special tokens need "
            f"at least {NUM_BYTES + len(reserved)}"
        )
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=reserved,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=special_tokens[0],
        pad_token=PAD,
        model_max_length=context_tokens,
        clean_up_tokenization_spaces=False,
    )
    assert fast.pad_token_id != fast.eos_token_id
    return fast


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a model folder (or Hugging Face name), with a pad token that is not EOS.

    If it has none, one of its own tokens is taken: one named like padding, else one reserved for no use, else the
    unknown token where no text has it. The vocabulary never grows, so the model's embeddings fit. ValueError if there
    is none.
    """
    tokenizer = read_tokenizer(folder)
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.pad_token = _spare_token(tokenizer, folder)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    return tokenizer


def _spare_token(tokenizer: Any, folder: str | Path) -> str:
    added = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    free = [token for token in added if token not in (tokenizer.eos_token, tokenizer.bos_token)]
    for pattern in ("pad", "reserved|unused|extra_id"):
        for token in free:
            if re.search(rf"(?i)(?<![a-z])({pattern})(?![a-z])", token):
                return token
    unknown = tokenizer.unk_token_id
    if unknown not in (None, tokenizer.eos_token_id) and unknown not in encode_plain(tokenizer, [STRANGE])[0]:
        return str(tokenizer.unk_token)
    raise ValueError(
        f"{folder}: the tokenizer has no pad token other than its end token {tokenizer.eos_token!r}, and no reserved "
        "token, or unknown one that no text has, to stand in; add one: "
        f"rayward extend {folder} --token '<pad>' --out DIR"
    )
