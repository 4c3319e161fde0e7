"""Which tokens a tokenizer holds special, and where they stand in a text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any


class SpecialTokens:
    """Where special tokens stand in a text: the first, and of those that begin there the longest,
    as tokenizers do.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self.lengths: dict[str, list[int]] = {}
        self.tokens = frozenset(tokens)
        for token in self.tokens:
            self.lengths.setdefault(token[0], []).append(len(token))
        self.lengths = {
            first: sorted(set(lengths), reverse=True) for first, lengths in self.lengths.items()
        }
        self.first = (
            re.compile("[" + re.escape("".join(self.lengths)) + "]")
            if self.lengths
            else re.compile("(?!)")
        )

    def find(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of each."""
        found: list[tuple[int, int]] = []
        end = 0
        for match in self.first.finditer(text):
            start = match.start()
            if start < end:
                continue
            for length in self.lengths[text[start]]:
                if (token := text[start : start + length]) in self.tokens:
                    end = start + len(token)
                    found.append((start, end))
                    break
        return found


def own_special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """All tokens that the tokenizer holds special."""
    return _special_tokens(tokenizer, len(tokenizer), tuple(tokenizer.special_tokens_map.items()))


@lru_cache(maxsize=64)
def _special_tokens(
    tokenizer: Any, size: int, named: tuple[tuple[str, str], ...]
) -> tuple[str, ...]:
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(sorted({*added, *tokenizer.all_special_tokens}))


@lru_cache(maxsize=64)
def specials(tokens: tuple[str, ...]) -> SpecialTokens:
    """The finder of these tokens."""
    return SpecialTokens(tokens)
