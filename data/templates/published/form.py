"""The form of a shape of conversation, proved by marks: where each answer begins and ends.

A shape is a conversation without what it says: its roles, and as they are its tools and calls. It
is rendered once with a mark in place of what each turn says and thinks; what must be so of that
rendering is in `rayward.data.templates.published.template`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from rayward.data.records import Role, RowError, Turn
from rayward.data.templates.published.calls import call_places, check_names
from rayward.data.templates.published.program import MARK, MARKS, State
from rayward.data.templates.published.rendering import Shape, marked, plain_shape, voices, where
from rayward.data.templates.special_tokens import own_special_tokens, specials

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_CHARACTERS = 60
"""Of a text in an error."""

Text = tuple["str | int", ...]
"""The template's own text, with tools and calls, and by number the `voices` that speak in it."""


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
    tokenizer: PreTrainedTokenizerBase, state: State, shape: Shape, prompt: bool, bare: bool
) -> Form | RowError:
    """The form of a shape, or why there is none: cached, so an error is returned.

    `bare`: without what the template writes before the last answer.
    """
    text = marked(tokenizer, state, shape, prompt)
    if isinstance(text, RowError):
        return text
    find = specials(own_special_tokens(tokenizer)).find
    spans = find(text)
    called = call_places(tokenizer, shape, prompt, text, find)
    if isinstance(called, RowError):
        return called
    if error := _check_once(text, shape.turns):
        return error
    answers = []
    for index in [index for index, turn in enumerate(shape.turns) if turn.role == "assistant"]:
        # What a server renders when it asks for this answer.
        question = marked(tokenizer, state, shape.to(index), True)
        if isinstance(question, RowError):
            return question
        end = None
        if index in called:
            end = _end_of_calls(tokenizer, state, shape.to(index + 1), text, spans[called[index] :])
        answer = _answer(text, question, shape.turns, index, spans, end)
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


def ends_of(stretches: Sequence[Stretch]) -> list[str]:
    """The special token of the last stretch of each answer."""
    answers = [stretch.answer for stretch in stretches]
    following = [*answers[1:], None]
    return [
        stretch.special
        for stretch, after in zip(stretches, following, strict=True)
        if stretch.answer is not None and stretch.answer != after
    ]


def _check_once(text: str, turns: Sequence[Turn]) -> RowError | None:
    """Why a marked rendering has no one place for what a turn says or thinks."""
    for number, voice in enumerate(voices(turns)):
        # A turn that stands there twice (or not at all) has none that its weight could be put at.
        if voice and (count := text.count(voice)) != 1:
            turn = turns[number % len(turns)]
            said = f"the {turn.role} " + ("says" if number < len(turns) else "thinks")
            reason = f"the chat template {'repeats' if count else 'leaves out'} what {said}"
            found = f"it {count} times in the rendering"
            # Templates that drop what was thought before an earlier answer are common.
            expected = "it once" if number < len(turns) else "a template that keeps it"
            return RowError(where(turns, number), found, expected, reason)
    return None


def _end_of_calls(
    tokenizer: PreTrainedTokenizerBase,
    state: State,
    shape: Shape,
    text: str,
    spans: Sequence[tuple[int, int]],
) -> int | None:
    """Where the answer ends with which `shape` ends, and which calls tools; None: nowhere.

    `spans`: the special tokens of `text` after its last call. Templates put several there, of which
    the one that ends other answers ends this one. Where none does (gpt-oss), the last that is
    written before any next turn is.
    """
    next_mark = MARKS.search(text, spans[0][0]) if spans else None
    until = next_mark.start() if next_mark else len(text)
    for first, end in spans:
        if end <= until and text[first:end] in _plain_ends(tokenizer, state):
            return end
    alone = marked(tokenizer, state, shape, False)
    shared = 0 if isinstance(alone, RowError) else _shared(text, alone)
    return max((end for _, end in spans if end <= min(until, shared)), default=None)


def _plain_ends(tokenizer: PreTrainedTokenizerBase, state: State) -> set[str]:
    """The special tokens that end answers without calls."""
    roles: tuple[Role, ...] = ("user", "assistant", "user", "assistant")
    forms = [
        form_of(tokenizer, state, plain_shape(*shape), False, False) for shape in (roles[:2], roles)
    ]
    return {end for form in forms if isinstance(form, Form) for end in ends_of(form.stretches)}


def _answer(
    text: str,
    question: str,
    turns: Sequence[Turn],
    index: int,
    spans: Sequence[tuple[int, int]],
    end: int | None,
) -> _Answer | RowError:
    """The answer of a turn, asked for by the marked rendering `question`; or why it is not trained.

    `spans`: where special tokens stand in `text`. `end`: where the answer ends if it calls tools;
    another ends with the first special token after all that it thinks and says.
    """
    # The prefix property in characters. Without it an answer would be trained in another context
    # than it is sampled in.
    if not text.startswith(question):
        split = _shared(question, text)
        expected = f"{_shown(question[split:])}, with which the chat template asks for this answer"
        reason = "the chat template asks for an answer elsewhere than it writes it"
        return RowError(where(turns, index), _shown(text[split:]), expected, reason)
    own = [number for number in (index, len(turns) + index) if voices(turns)[number]]
    marks = [MARK.format(number) for number in own]
    stop = max((text.index(mark) + len(mark) for mark in marks), default=len(question))
    if not turns[index].tool_calls:
        end = next((end for first, end in spans if first >= stop), None)
    # Between the prompt and the end token this turn speaks alone: else its end would be another's.
    spoken = [] if end is None else sorted(map(int, MARKS.findall(text[len(question) : end])))
    if end is None or spoken != own or end < stop:
        reason = "no special token ends an answer: a model trained so never learns to stop"
        return RowError(
            where(turns, index), _shown(text[stop:]), "a special token that ends the answer", reason
        )
    if error := check_names(text[len(question) : end], turns, index):
        return error
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


def _shared(text: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = zip(text, other, strict=False)
    return next((i for i, (one, two) in enumerate(pairs) if one != two), min(len(text), len(other)))


def _shown(text: str) -> str:
    """The beginning of a marked text, for people."""
    readable = MARKS.sub(lambda match: f"{{turn {match[1]}}}", text)
    return repr(readable[:SHOWN_CHARACTERS]) if readable else "the end"
