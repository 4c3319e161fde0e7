"""A byte-level BPE tokenizer trained on one's own text, and the loading of a model's tokenizer.

Byte level: every string survives encoding and decoding, so there is no unknown token. Digits are
split singly, so that numbers of any length are spelled alike. The tokenizer adds no BOS:
`rayward.data.templates.template` does.

Padding is a token of its own everywhere. Where pad and end token are one id, code that masks "all
that is pad" also masks the ends of turns, and the model never learns to stop.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

from rayward.data.model_files.hub_models import read_tokenizer
from rayward.data.templates.plain_text import TEXTS, says_unknown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOS, PAD = "<s>", "<pad>"
NUM_BYTES = 256
AS_IT_IS = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes that take tokenizer.json as it is."""


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str], context_tokens: int
) -> PreTrainedTokenizerBase:
    """A `PreTrainedTokenizerFast` of at most `vocab_size` tokens.

    The same texts in the same order give the same tokenizer. `special_tokens`: those of the chat
    template, its end token first, which becomes EOS. "<pad>" gets id 0, "<s>" (BOS) id 1, and they
    follow. `context_tokens` is its `model_max_length`. ValueError: no special token, or a
    vocabulary too small for the special tokens and 256 bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if not special_tokens or special_tokens[0] in (BOS, PAD):
        raise ValueError(f"special_tokens is {list(special_tokens)}: start with the end token")
    # First, so that they get the lowest ids; fromkeys drops a second mention and keeps the order.
    reserved = list(dict.fromkeys((PAD, BOS, *special_tokens)))
    if vocab_size < NUM_BYTES + len(reserved):
        raise ValueError(
            f"vocab_size is {vocab_size}, but {NUM_BYTES} bytes and {len(reserved)} special "
            f"tokens need at least {NUM_BYTES + len(reserved)}"
        )
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=reserved,
        # All bytes, also those that the texts do not have: no unknown token.
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


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder (or Hugging Face name), with a pad token that is not EOS.

    See `tokenizer_of` and `give_pad`.
    """
    tokenizer = tokenizer_of(folder)[0]
    give_pad(tokenizer, folder)
    return tokenizer


def tokenizer_of(folder: str | Path) -> tuple[PreTrainedTokenizerBase, str]:
    """The tokenizer of a folder as its tokenizer.json has it, and a note on that, or "".

    transformers reads a folder by the class that tokenizer_config.json names, which may build the
    tokenizer anew by rules of its own: the published folders of DeepSeek R1's distilled models name
    Llama's beside Qwen's tokenizer.json. The model was trained on what tokenizer.json says. (A
    space in front of a text is left out of account: Llama 2's file and its class put it there by
    different rules, and both are in use.)
    """
    tokenizer = read_tokenizer(folder)
    difference = read_otherwise(folder, tokenizer)
    if not difference:
        return tokenizer, ""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer, f"{difference}; it is read as tokenizer.json says"


def read_otherwise(folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """How the ids of a folder's tokenizer are not those of its tokenizer.json; "" where they
    are."""
    from tokenizers import Tokenizer

    path, kind = Path(folder) / "tokenizer.json", type(tokenizer).__name__
    if kind in AS_IT_IS or not path.is_file():
        return ""
    as_it_is = Tokenizer.from_file(str(path))
    # The file may ask for both, and neither is a difference in how text is read.
    as_it_is.no_truncation()
    as_it_is.no_padding()

    def by_class(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def by_file(text: str) -> list[int]:
        return as_it_is.encode(text, add_special_tokens=False).ids

    for text in TEXTS:
        # A space in front may be put by one of the two: it is left out of account.
        if text.startswith(" "):
            continue
        class_ids, file_ids = by_class(text), by_file(text)
        if class_ids in (file_ids, by_file(f" {text}")) or by_class(f" {text}") == file_ids:
            continue
        class_tokens, file_tokens = (
            " ".join(tokenizer.convert_ids_to_tokens(ids[:6])) for ids in (class_ids, file_ids)
        )
        return (
            f"by its class, {kind}, {text!r} is {class_tokens} ..., by tokenizer.json "
            f"{file_tokens} ..."
        )
    return ""


def give_pad(
    tokenizer: PreTrainedTokenizerBase, folder: str | Path, ends: Sequence[int] = ()
) -> None:
    """Give it a pad token that is neither EOS nor one of the `ends` of an answer, where it has
    none.

    One of its own is taken: one named like padding, else one reserved for no use, else the unknown
    token where no text has it. The vocabulary never grows, so the model's embeddings fit.
    ValueError if there is none.
    """
    taken = {*ends, tokenizer.eos_token_id}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in taken:
        tokenizer.pad_token = _spare_token(tokenizer, folder, taken)
    assert tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in taken


def _spare_token(tokenizer: PreTrainedTokenizerBase, folder: str | Path, taken: Set[int]) -> str:
    # By id: the choice depends on the vocabulary alone.
    added = [
        str(token)
        for number, token in sorted(tokenizer.added_tokens_decoder.items())
        if number not in taken
    ]
    free = [token for token in added if token != tokenizer.bos_token]
    for pattern in ("pad", "reserved|unused|extra_id"):
        for token in free:
            if re.search(rf"(?i)(?<![a-z])({pattern})(?![a-z])", token):
                return token
    if (
        tokenizer.unk_token_id is not None
        and tokenizer.unk_token_id not in taken
        and not says_unknown(tokenizer)
    ):
        return str(tokenizer.unk_token)
    raise ValueError(
        f"{folder}: the tokenizer has no pad token other than its end token "
        f"{tokenizer.eos_token!r}, and no reserved token, or unknown one that no text has, to "
        f"stand in; add one: rayward extend {folder} --token '<pad>' --out DIR"
    )
