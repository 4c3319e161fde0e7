"""How a tokenizer reads text in which nothing is special, and which ids its special tokens have."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A vocabulary that lacks some text lacks some of this.
STRANGE = "日本 😀 \u0378\x01 ÿ"
TEXTS = (
    "Hello there",
    "hello,you",
    " x",
    "x ",
    "  two  spaces ",
    "\nline\n\nlines\n",
    "\ttab\t",
    "12345 3.14 7",
    "It's so",
    "def f(x):\n    return x  # [1]",
    "Grüße, Ångström",
    "日本語、한국어",
    "😀 🏳️",
    "Hi <b>you</b> & me",
    "A — “b” …",
)
"""Texts by which two tokenizers are held against each other."""
Habit = Literal["always", "missing", "never"]


def encode_plain(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text by itself; a special token that is written out in it is text."""
    if len(texts) > 1 and _is_plain_backend(tokenizer):
        # The call sets the backend up: nothing is cut, filled or special. The backend by itself
        # then gives the others without the offsets of their tokens, which take a quarter of the
        # time.
        first = _called(tokenizer, texts[:1])
        others = tokenizer.backend_tokenizer.encode_batch_fast(
            list(texts[1:]), add_special_tokens=False
        )
        return [*first, *(encoding.ids for encoding in others)]
    return _called(tokenizer, texts) if texts else []


def _called(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    arguments = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    return tokenizer(list(texts), return_attention_mask=False, **arguments)["input_ids"]


@lru_cache(maxsize=64)
def _is_plain_backend(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer is a `tokenizers.Tokenizer` with nothing of its own before it."""
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    kind = type(tokenizer)
    return (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and kind.__call__ is PreTrainedTokenizerBase.__call__
        and kind._encode_plus is PreTrainedTokenizerFast._encode_plus
    )


@lru_cache(maxsize=64)
def habit(tokenizer: PreTrainedTokenizerBase) -> Habit:
    """Whether the tokenizer puts a space before a text.

    "always": "a b" is "a" and then "b", although " b" is not "b". "missing": it adds one only where
    there is none (" b" is "b"), so it needs no help, and would lose a space of the content by it.
    Else "never".
    """
    first, second, spaced, joined = encode_plain(
        tokenizer, ["Hello", "world", " world", "Hello world"]
    )
    if spaced == second:
        return "missing"
    return "always" if joined == first + second else "never"


@lru_cache(maxsize=64)
def says_unknown(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether some text becomes the unknown token; where bytes have tokens, none does."""
    unknown = tokenizer.unk_token_id
    return unknown is not None and unknown in encode_plain(tokenizer, [STRANGE])[0]


@lru_cache(maxsize=64)
def special_ids(
    tokenizer: PreTrainedTokenizerBase, tokens: tuple[str, ...], template: str
) -> dict[str, int]:
    """The id of each token. ValueError names the first that `template` needs and is not there."""
    ids = {}
    for token in tokens:
        token_id = tokenizer.convert_tokens_to_ids(token)
        # And back: a token that is not there may get the unknown token's id.
        if token_id is None or tokenizer.convert_ids_to_tokens(token_id) != token:
            raise ValueError(
                f"chat template {template} needs the token {token!r}, which is not among the "
                f"{len(tokenizer)} of this tokenizer: rayward extend MODEL --template {template} "
                "--out DIR adds it and its embedding"
            )
        ids[token] = token_id
    return ids
