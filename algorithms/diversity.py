"""Lexical diversity: distinct-n, repetition rate, and MTLD.

Distinct-n is Li et al., arXiv:1510.03055; the repetition rate is seq-rep-n of Welleck et al.,
arXiv:1908.04319; MTLD, the measure that UltraChat reports, is McCarthy and Jarvis (2010). MTLD has
two families of implementations with different numbers; this is that of the LexicalRichness package,
which is called: a factor ends at a type-token ratio <= 0.72, with no minimum segment, and words are
lower case, without digits and dashes, and end at punctuation. Its results are not comparable with
those of implementations that test < 0.72 with a minimum segment of 10 words.

Shapes: none; texts are str, tokens are any hashable.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence

THRESHOLD = 0.72


def distinct_n(token_lists: Iterable[Sequence[Hashable]], n: int) -> float:
    """Different n-grams / all n-grams, over all lists together; 0 if no list has n tokens.

    ValueError: n < 1. Falls as the amount of text grows: compare only sets of the same size.
    """
    seen: set[tuple[Hashable, ...]] = set()
    total = 0
    for tokens in token_lists:
        ngrams = _ngrams(tokens, n)
        seen.update(ngrams)
        total += len(ngrams)
    return len(seen) / total if total else 0.0


def distinct_ratio(
    current: Sequence[Sequence[Hashable]], initial: Sequence[Sequence[Hashable]], n: int
) -> float:
    """Distinct-n of `current` over that of `initial`, of equally much text.

    Both end after as many tokens as the shorter has. 1 if nothing can be compared: `initial` has no
    list of n tokens up to there.
    """
    size = min(sum(map(len, current)), sum(map(len, initial)))
    before = distinct_n(_first_tokens(initial, size), n)
    return distinct_n(_first_tokens(current, size), n) / before if before else 1.0


def repetition_rate(tokens: Sequence[Hashable], n: int) -> float:
    """Share of a text's n-grams that repeat: 0 = none, near 1 = a loop. ValueError: n < 1."""
    ngrams = _ngrams(tokens, n)
    return 1.0 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def mtld(text: str) -> float:
    """Measure of textual lexical diversity, about 10 to 200, the mean of both reading directions.

    0 for no words. The mean number of words in which the type-token ratio falls to THRESHOLD.
    """
    # Here, because it loads pandas and matplotlib: seconds, which only who asks for it should wait.
    from lexicalrichness import LexicalRichness

    measured = LexicalRichness(text)
    return float(measured.mtld(threshold=THRESHOLD)) if measured.words else 0.0


def _first_tokens(
    token_lists: Iterable[Sequence[Hashable]], size: int
) -> Iterator[Sequence[Hashable]]:
    for tokens in token_lists:
        yield tokens[:size]
        size = max(0, size - len(tokens))


def _ngrams(tokens: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    if n < 1:
        raise ValueError(f"n is {n}, but an n-gram has at least 1 token")
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
