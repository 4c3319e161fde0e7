"""The chat template that a tokenizer brings: where it asks for answers, what it writes itself, and
what is trained.

It is a Jinja program, so its frames are not known in advance. Each shape of conversation (its
roles) is rendered once with marks in place of what is said, and from that alone follows what is
trained: an answer begins where the rendering of the turns before it, with the generation prompt,
ends, and it ends with the first special token after its mark. What the template writes in between,
such as Qwen3's empty `<think>` block, belongs to the answer. `{% generation %}` is not needed, and
where a template has it, what follows from the marks holds.

What must be so, for every answer of every row (else a RowError names the turn): the marked
rendering of the turns before it with the generation prompt is a prefix of the marked rendering of
the whole; each mark stands there once; a special token ends the answer; and the rendering of the
row is the marked one with its contents put in. A template may trim what is said. It may also know
its own text again: where an answer says itself what the template would write before it
(`<think>...</think>`), the answer alone stands there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from rayward.data.records import Role, RowError, Turn, describe
from rayward.data.templates.published.rendering import (
    MARK,
    MARKS,
    State,
    marked,
    rendered,
    state_of,
    where,
)
from rayward.data.templates.special_tokens import own_special_tokens, specials

PROBE = (
    Turn("user", "Hello there"),
    Turn("assistant", "Hi, you."),
    Turn("user", "And?"),
    Turn("assistant", "Yes."),
)
SHOWN = 60
CHANGES = "the chat template writes other text around what is said"

Text = tuple["str | int", ...]
"""The template's own text and, by number, the turns that speak in it."""


class Stretch(NamedTuple):
    """What stands between two of the template's own special tokens, and the one that follows it (""
    at the end).

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
    """A shape of conversation as the template writes it: its stretches, and its text cut at what is
    said.
    """

    stretches: tuple[Stretch, ...]
    text: Text


def own_end_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The special tokens that end an answer, that of a last answer first; gpt-oss ends earlier ones
    with another.

    ValueError where the tokenizer's template cannot be trained from at all.
    """
    return _end_tokens(tokenizer, state_of(tokenizer))


def own_last_ends(tokenizer: Any) -> list[int]:
    """The id of the token that ends a last answer, none where there is no template that can be
    trained from.
    """
    try:
        return [tokenizer.convert_tokens_to_ids(own_end_tokens(tokenizer)[0])]
    except ValueError:
        return []


def own_opening(tokenizer: Any) -> str:
    """What the template itself writes between the generation prompt and a first answer. Raises as
    `own_end_tokens`.
    """
    state = state_of(tokenizer)
    _end_tokens(tokenizer, state)
    asked, whole = (
        marked(tokenizer, state, roles, len(roles) == 1)
        for roles in (("user",), ("user", "assistant"))
    )
    assert isinstance(asked, str) and isinstance(whole, str), (
        "an end token was found, so these can be rendered"
    )
    return whole[len(asked) : whole.index(MARK.format(1))]


def own_form(tokenizer: Any, turns: Sequence[Turn], prompt: bool) -> tuple[Form, list[str]]:
    """The form of a conversation (of a prompt: up to where its answer starts), and what each turn
    says in it.

    ValueError: no template, or one that cannot be trained from at all. RowError: these turns
    cannot, and which.
    """
    state = state_of(tokenizer)
    _end_tokens(tokenizer, state)
    return _filled(tokenizer, state, turns, prompt)


def until_end(form: Form, turn: int, finished: bool) -> tuple[Stretch, ...]:
    """Its stretches up to and with the token that ends the answer of a turn; up to what it says
    where it was cut.
    """
    stretches = form.stretches
    if finished:
        return stretches[
            : max(at for at, stretch in enumerate(stretches) if stretch.answer == turn) + 1
        ]
    for at, (head, tail, _, answer) in enumerate(stretches):
        if turn in head:
            return (*stretches[:at], Stretch(head[: head.index(turn) + 1], None, "", answer))
        if turn in (tail or ()):
            assert tail is not None
            return (*stretches[:at], Stretch(head, tail[: tail.index(turn) + 1], "", answer))
    raise AssertionError(f"turn {turn} does not speak")


@lru_cache(maxsize=64)
def _end_tokens(tokenizer: Any, state: State) -> tuple[str, ...]:
    try:
        forms = [_filled(tokenizer, state, PROBE[:2], False)[0]]
    except RowError as error:
        told = f"{error.reason}: {error}{_open_end(tokenizer, state)}"
        raise ValueError(f"the tokenizer's chat template cannot be trained from: {told}") from None
    for turns in (PROBE, (Turn("system", "Be brief."), *PROBE)):
        try:
            forms.append(_filled(tokenizer, state, turns, False)[0])
        except RowError:
            continue
    last = forms[0].stretches
    ends = [_ends(last)[-1], *(end for form in forms for end in _ends(form.stretches))]
    return tuple(dict.fromkeys(ends))


def _open_end(tokenizer: Any, state: State) -> str:
    """What to do where the template ends answers with a token that the tokenizer has, but does not
    hold special.
    """
    whole = marked(tokenizer, state, ("user", "assistant"), False)
    after = "" if isinstance(whole, RowError) else MARKS.split(whole)[-1].strip()
    held = sorted(
        (str(token) for token in tokenizer.added_tokens_decoder.values() if not token.special),
        key=len,
    )
    end = next((token for token in reversed(held) if after.startswith(token)), "")
    return (
        f"; {end!r} would end them, were it special: rayward extend MODEL --token {end!r} --out DIR"
        if end
        else ""
    )


def _ends(stretches: Sequence[Stretch]) -> list[str]:
    answers = [stretch.answer for stretch in stretches]
    following = [*answers[1:], None]
    return [
        stretch.special
        for stretch, after in zip(stretches, following, strict=True)
        if stretch.answer is not None and stretch.answer != after
    ]


def _filled(
    tokenizer: Any, state: State, turns: Sequence[Turn], prompt: bool
) -> tuple[Form, list[str]]:
    roles = tuple(turn.role for turn in turns)
    form = _shape(tokenizer, state, roles, prompt, False)
    if isinstance(form, RowError):
        raise RowError(form.field, form.found, form.expected, form.reason)
    whole = rendered(tokenizer, turns, [turn.content for turn in turns], prompt)
    said = _said(form.text, turns, whole)
    if isinstance(said, RowError) and roles[-1] == "assistant":
        bare = _shape(tokenizer, state, roles, prompt, True)
        known = said if isinstance(bare, RowError) else _said(bare.text, turns, whole)
        if not isinstance(bare, RowError) and not isinstance(known, RowError):
            return bare, known
    if isinstance(said, RowError):
        raise said
    return form, said


def _said(text: Text, turns: Sequence[Turn], whole: str) -> list[str] | RowError:
    """What each turn says where `whole` is `text` with contents put in, trimmed at most; else where
    it is not.
    """
    said = [turn.content for turn in turns]
    if whole == "".join(part if isinstance(part, str) else said[part] for part in text):
        return said
    at, last = 0, len(turns) - 1
    for place, part in enumerate(text):
        if isinstance(part, str):
            if not whole.startswith(part, at):
                index = next((turn for turn in text[place:] if isinstance(turn, int)), last)
                found = describe(whole[at : at + SHOWN])
                return RowError(where(turns, index), found, repr(part[:SHOWN]), CHANGES)
        else:
            after = next((own for own in text[place + 1 : place + 2] if isinstance(own, str)), "")
            cuts = [cut for cut in _trimmed(turns[part].content) if whole.startswith(cut, at)]
            trimmed = next(
                (cut for cut in cuts if whole.startswith(after, at + len(cut))),
                cuts[0] if cuts else None,
            )
            if trimmed is None:
                found, expected = describe(whole[at : at + SHOWN]), describe(turns[part].content)
                return RowError(
                    where(turns, part), found, expected, "the chat template rewrites what is said"
                )
            said[part] = trimmed
        at += len(part if isinstance(part, str) else said[part])
    if at < len(whole):
        return RowError(where(turns, last), describe(whole[at : at + SHOWN]), "the end", CHANGES)
    return said


def _trimmed(text: str) -> tuple[str, ...]:
    return (
        text,
        text.strip(),
        text.lstrip("\n"),
        text.rstrip("\n"),
        text.strip("\n"),
        text.lstrip(),
        text.rstrip(),
    )


class _Answer(NamedTuple):
    """Where the answer of a turn begins and ends in a marked rendering."""

    begin: int
    end: int
    turn: int


@lru_cache(maxsize=1024)
def _shape(
    tokenizer: Any, state: State, roles: tuple[Role, ...], prompt: bool, bare: bool
) -> Form | RowError:
    """The form of these roles, or why there is none. `bare`: without what the template writes
    before the last answer.

    Cached, so an error is returned.
    """
    text = marked(tokenizer, state, roles, prompt)
    if isinstance(text, RowError):
        return text
    turns = [Turn(role, "") for role in roles]
    for index, role in enumerate(roles):
        if (count := text.count(MARK.format(index))) != 1:
            reason = (
                f"the chat template {'repeats' if count else 'leaves out'} what the {role} says"
            )
            return RowError(
                where(turns, index), f"it {count} times in the rendering", "it once", reason
            )
    found = specials(own_special_tokens(tokenizer)).find(text)
    answers = []
    for index in [index for index, role in enumerate(roles) if role == "assistant"]:
        asked = marked(tokenizer, state, roles[:index], True)
        answer = asked if isinstance(asked, RowError) else _answer(text, asked, turns, index, found)
        if isinstance(answer, RowError):
            return answer
        answers.append(answer)
    if bare:
        begin, end, turn = answers.pop()
        mark = text.index(MARK.format(turn))
        text, cut = text[:begin] + text[mark:], mark - begin
        before, after = (
            [span for span in found if span[1] <= begin],
            [span for span in found if span[0] >= mark],
        )
        found = before + [(first - cut, last - cut) for first, last in after]
        answers.append(_Answer(begin, end - cut, turn))
    return Form(tuple(_stretches(text, found, answers)), _parts(text))


def _answer(
    text: str, asked: str, turns: Sequence[Turn], index: int, found: Sequence[tuple[int, int]]
) -> _Answer | RowError:
    """The answer of a turn that is asked for after the marked rendering `asked`, or why it cannot
    be trained.
    """
    if not text.startswith(asked):
        at = next(
            (i for i, (one, two) in enumerate(zip(asked, text, strict=False)) if one != two),
            len(text),
        )
        told = f"{_shown(asked[at:])}, with which the chat template asks for this answer"
        reason = "the chat template asks for an answer elsewhere than it writes it"
        return RowError(where(turns, index), _shown(text[at:]), told, reason)
    stop = text.index(mark := MARK.format(index)) + len(mark)
    end = next((end for first, end in found if first >= stop), None)
    if end is None or MARKS.findall(text[len(asked) : end]) != [str(index)]:
        reason = "no special token ends an answer: a model trained so never learns to stop"
        return RowError(
            where(turns, index), _shown(text[stop:]), "a special token that ends the answer", reason
        )
    return _Answer(len(asked), end, index)


def _stretches(
    text: str, found: Sequence[tuple[int, int]], answers: Sequence[_Answer]
) -> Iterator[Stretch]:
    """A marked rendering cut at the special tokens that were `found`, and where answers begin."""
    at, turn = 0, None  # the turn whose answer we are in
    for first, end in (*found, (len(text), len(text))):
        begins = next((answer for answer in answers if at <= answer.begin <= first), None)
        turn = begins.turn if begins else turn
        tail = _parts(text[begins.begin : first]) if begins else None
        if at < end:
            yield Stretch(
                _parts(text[at : begins.begin if begins else first]), tail, text[first:end], turn
            )
        turn = None if any(answer.end == end for answer in answers) else turn
        at = end


def _parts(text: str) -> Text:
    """A marked text as the template's own and numbers of turns."""
    cut = MARKS.split(text)  # text, number, text, number, ... text
    return tuple(int(part) if place % 2 else part for place, part in enumerate(cut) if part)


def _shown(text: str) -> str:
    """The beginning of a marked text, for people."""
    said = MARKS.sub(lambda match: f"{{turn {match[1]}}}", text)
    return repr(said[:SHOWN]) if said else "the end"
