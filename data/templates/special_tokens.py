"""Which tokens a tokenizer holds special, and where they stand in a text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SpecialTokens:
    """Where special tokens stand in a text, read as tokenizers do.

    From the left, and of those that begin at one place the longest.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self.lengths: dict[str, list[int]] = {}
        self.tokens = frozenset(tokens)
        for token in self.tokens:
            self.lengths.setdefault(token[0], []).append(len(token))
        self.lengths = {
            first: sorted(set(lengths), reverse=True) for first, lengths in self.lengths.items()
        }
        # One search for the first characters is faster than one for each of thousands of tokens.
        # Without tokens a pattern that never matches, for [] is none.
        pattern = "[" + re.escape("".join(self.lengths)) + "]" if self.lengths else "(?!)"
        self.first = re.compile(pattern)

    def find(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of each."""
        spans: list[tuple[int, int]] = []
        end = 0
        for match in self.first.finditer(text):
            start = match.start()
            if start < end:
                continue
            for length in self.lengths[text[start]]:
                token = text[start : start + length]
                if token in self.tokens:
                    end = start + len(token)
                    spans.append((start, end))
                    break
        return spans


def own_special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """All tokens that the tokenizer holds special."""
    # Its size and names are part of the key: a tokenizer that is given a token is the same object.
    return _special_tokens(tokenizer, len(tokenizer), tuple(tokenizer.special_tokens_map.items()))


@lru_cache(maxsize=64)
def _special_tokens(
    tokenizer: PreTrainedTokenizerBase, size: int, named: tuple[tuple[str, str], ...]
) -> tuple[str, ...]:
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(sorted({*added, *tokenizer.all_special_tokens}))


@lru_cache(maxsize=64)
def specials(tokens: tuple[str, ...]) -> SpecialTokens:
    """The finder of these tokens."""
    return SpecialTokens(tokens)
