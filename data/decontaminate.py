"""Rows that share long n-grams with evaluation sets, so that a score there would say little.

A word is what stands between white space, in lower case and without punctuation, and a row is found
by 13 of them in a row: as GPT-3 filtered its training data (Brown et al. 2020, appendix C). It cut
out what it found with 200 characters around it; here the whole row is meant. Chinese and Japanese
characters are words of their own, since nothing stands between them. System texts are of neither
side: many rows share one.

A text of an evaluation set with fewer words is looked for whole, down to SHORTEST; even shorter
ones say too little, and are counted. The same question as a whole is another rule, which
pipelines/rows/splitting.py has.

What is held is the n-grams of the evaluation sets. A row costs a look-up a word.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rayward.data.records import Conversation, Labelled, Preference, Prompt, Ranking, Record

NGRAM = 13
SHORTEST = 8
"""Words: the least n that GPT-3's paper compared its evaluation sets with."""
SHOWN_WORDS = 8
PUNCTUATION = re.compile(r"[^\w\s]|_")
# The same for ASCII, ten times as fast.
ASCII_PUNCTUATION = {code: None for code in range(128) if PUNCTUATION.match(chr(code))}
UNSPACED = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff])")


Words = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shared:
    """Words that a row shares with an evaluation row, which stands at `place` (FILE:LINE)."""

    words: Words
    place: str

    @property
    def shown(self) -> str:
        """The first of the words."""
        return " ".join(self.words[:SHOWN_WORDS]) + " ..." * (len(self.words) > SHOWN_WORDS)


@dataclass(slots=True)
class EvaluationTexts:
    """N-grams of the texts of evaluation sets, and where each stands.

    `too_short`: texts that are not looked for.
    """

    n: int = NGRAM
    places: list[str] = field(default_factory=list)
    texts: int = 0
    too_short: int = 0
    _grams: dict[Words, int] = field(default_factory=dict)
    """The number of the place of each n words in a row."""
    _starts: dict[Words, list[tuple[Words, int]]] = field(default_factory=dict)
    """Of shorter texts, by their first words: all words, and the number of their place."""

    def __post_init__(self) -> None:
        if self.n < 2:
            raise ValueError(f"n-grams of {self.n} words are in every text; at least 2")

    @property
    def shortest(self) -> int:
        """Words that a text has at least, to be looked for."""
        return min(self.n, SHORTEST)

    def __len__(self) -> int:
        """Different texts that are looked for, n-grams and shorter ones."""
        return len(self._grams) + sum(map(len, self._starts.values()))

    def add(self, record: Record, place: str) -> None:
        """A row of an evaluation set."""
        number = len(self.places)
        self.places.append(place)
        for text in texts_of(record):
            self.texts += 1
            # One object a word, however often it comes: n-grams are then n addresses.
            words = tuple(map(sys.intern, words_of(text)))
            if len(words) < self.shortest:
                self.too_short += 1
            elif len(words) < self.n:
                self._starts.setdefault(words[: self.shortest], []).append((words, number))
            else:
                for gram in ngrams(words, self.n):
                    self._grams.setdefault(gram, number)  # the first row of several is named

    def shared_with(self, record: Record) -> Shared | None:
        """What a row shares with an evaluation row; None if it shares nothing."""
        for text in texts_of(record):
            words = words_of(text)
            # First in C, without a loop here: almost every text shares nothing.
            if not self._grams.keys().isdisjoint(ngrams(words, self.n)):
                gram = next(gram for gram in ngrams(words, self.n) if gram in self._grams)
                return Shared(gram, self.places[self._grams[gram]])
            if self._starts and not self._starts.keys().isdisjoint(ngrams(words, self.shortest)):
                for index, start in enumerate(ngrams(words, self.shortest)):
                    for whole, number in self._starts.get(start, ()):
                        if tuple(words[index : index + len(whole)]) == whole:
                            return Shared(whole, self.places[number])
        return None


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case and without punctuation."""
    if text.isascii():
        return text.lower().translate(ASCII_PUNCTUATION).split()
    return UNSPACED.sub(r" \1 ", PUNCTUATION.sub("", text.lower())).split()


def ngrams(words: Sequence[str], n: int) -> Iterator[Words]:
    """All n words in a row; none where there are fewer."""
    return zip(*(words[start:] for start in range(n)), strict=False)


def texts_of(record: Record) -> Iterable[str]:
    """What is said in a record, but for its system text."""
    yield from (turn.content for turn in record.turns if turn.role != "system")
    if isinstance(record, Prompt):
        yield from record.follow_ups
        if record.reference is not None:
            yield record.reference
    elif isinstance(record, Preference):
        yield from (record.chosen, record.rejected)
    elif isinstance(record, Ranking):
        yield from record.answers
    elif isinstance(record, Labelled):
        yield record.answer
    else:
        assert isinstance(record, Conversation)  # whose answers are among its turns
