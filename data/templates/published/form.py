"""The form of a shape of conversation, proved by marks: where each answer begins and ends.

A shape is the roles of a conversation. It is rendered once with a mark in place of what each turn
says; what must be so of that rendering is in `rayward.data.templates.published.template`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from rayward.data.records import Role, RowError, Turn
from rayward.data.templates.published.rendering import MARK, MARKS, State, marked, where
from rayward.data.templates.special_tokens import own_special_tokens, specials

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_CHARACTERS = 60
"""Of a text in an error."""

Text = tuple["str | int", ...]
"""The template's own text and, by number, the turns that speak in it."""


class Stretch(NamedTuple):
    """What stands between two special tokens of the template, and the one after it ("" at the end).

    Where an answer begins in it, `head` ends there and `tail` follows, which may be empty. `answer`
    is the turn that what stands there belongs to: the tail, or the head where none begins, and the
    special token.
    """

    head: Text
    tail: Text | None
    special: str
    answer: int | None


@dataclass(frozen=True)
class Form:
    """A shape as the template writes it: its stretches, and its text cut at what is said."""

    stretches: tuple[Stretch, ...]
    text: Text


class _Answer(NamedTuple):
    """Where the answer of a turn begins and ends in a marked rendering."""

    begin: int
    end: int
    turn: int


@lru_cache(maxsize=1024)
def form_of(
    tokenizer: PreTrainedTokenizerBase,
    state: State,
    roles: tuple[Role, ...],
    prompt: bool,
    bare: bool,
) -> Form | RowError:
    """The form of these roles, or why there is none: cached, so an error is returned.

    `bare`: without what the template writes before the last answer.
    """
    text = marked(tokenizer, state, roles, prompt)
    if isinstance(text, RowError):
        return text
    turns = [Turn(role, "") for role in roles]
    # A turn that stands there twice (or not at all) has no one place that its weight could be put.
    for index, role in enumerate(roles):
        count = text.count(MARK.format(index))
        if count != 1:
            reason = (
                f"the chat template {'repeats' if count else 'leaves out'} what the {role} says"
            )
            return RowError(
                where(turns, index), f"it {count} times in the rendering", "it once", reason
            )
    spans = specials(own_special_tokens(tokenizer)).find(text)
    answers = []
    for index in [index for index, role in enumerate(roles) if role == "assistant"]:
        # What a server renders when it asks for this answer.
        question = marked(tokenizer, state, roles[:index], True)
        if isinstance(question, RowError):
            return question
        answer = _answer(text, question, turns, index, spans)
        if isinstance(answer, RowError):
            return answer
        answers.append(answer)
    if bare:
        # Cut out what stands between the prompt and the mark of the last answer, and move what
        # follows. Special tokens in what is cut go with it.
        begin, end, turn = answers.pop()
        mark = text.index(MARK.format(turn))
        cut = mark - begin
        text = text[:begin] + text[mark:]
        before = [span for span in spans if span[1] <= begin]
        after = [span for span in spans if span[0] >= mark]
        spans = before + [(first - cut, last - cut) for first, last in after]
        answers.append(_Answer(begin, end - cut, turn))
    return Form(tuple(_stretches(text, spans, answers)), _parts(text))


def _answer(
    text: str, question: str, turns: Sequence[Turn], index: int, spans: Sequence[tuple[int, int]]
) -> _Answer | RowError:
    """The answer of a turn, asked for by the marked rendering `question`; or why it is not trained.

    `spans`: where special tokens stand in `text`.
    """
    # The prefix property in characters. Without it an answer would be trained in another context
    # than it is sampled in.
    if not text.startswith(question):
        pairs = zip(question, text, strict=False)
        split = next((i for i, (one, two) in enumerate(pairs) if one != two), len(text))
        expected = f"{_shown(question[split:])}, with which the chat template asks for this answer"
        reason = "the chat template asks for an answer elsewhere than it writes it"
        return RowError(where(turns, index), _shown(text[split:]), expected, reason)
    mark = MARK.format(index)
    stop = text.index(mark) + len(mark)
    end = next((end for first, end in spans if first >= stop), None)
    # Between the prompt and the end token this turn speaks alone: else its end would be another's.
    if end is None or MARKS.findall(text[len(question) : end]) != [str(index)]:
        reason = "no special token ends an answer: a model trained so never learns to stop"
        return RowError(
            where(turns, index), _shown(text[stop:]), "a special token that ends the answer", reason
        )
    return _Answer(len(question), end, index)


def _stretches(
    text: str, spans: Sequence[tuple[int, int]], answers: Sequence[_Answer]
) -> Iterator[Stretch]:
    """A marked rendering cut at the special tokens (`spans`), and where answers begin."""
    start, turn = 0, None  # turn: whose answer we are in
    # The empty span at the end yields what stands after the last special token.
    for first, end in (*spans, (len(text), len(text))):
        begins = next((answer for answer in answers if start <= answer.begin <= first), None)
        turn = begins.turn if begins else turn
        tail = _parts(text[begins.begin : first]) if begins else None
        if start < end:
            head = _parts(text[start : begins.begin if begins else first])
            yield Stretch(head, tail, text[first:end], turn)
        turn = None if any(answer.end == end for answer in answers) else turn
        start = end


def _parts(text: str) -> Text:
    """A marked text as the template's own and numbers of turns."""
    cut = MARKS.split(text)  # text, number, text, number, ... text
    return tuple(int(part) if place % 2 else part for place, part in enumerate(cut) if part)


def _shown(text: str) -> str:
    """The beginning of a marked text, for people."""
    readable = MARKS.sub(lambda match: f"{{turn {match[1]}}}", text)
    return repr(readable[:SHOWN_CHARACTERS]) if readable else "the end"
