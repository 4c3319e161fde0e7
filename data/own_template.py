"""The chat template that a tokenizer brings: where it asks for answers, what it writes itself, and what is trained.

It is a Jinja program, so its frames are not known in advance. Each shape of conversation (its roles) is rendered once
with marks in place of what is said, and from that alone follows what is trained: an answer begins where the rendering
of the turns before it, with the generation prompt, ends, and it ends with the first special token after its mark. What
the template writes in between, such as Qwen3's empty `<think>` block, belongs to the answer. `{% generation %}` is not
needed, and where a template has it, what follows from the marks holds.

What must be so, for every answer of every row (else a RowError names the turn): the marked rendering of the turns
before it with the generation prompt is a prefix of the marked rendering of the whole; each mark stands there once; a
special token ends the answer; and the rendering of the row is the marked one with its contents put in. A template may
trim what is said. It may also know its own text again: where an answer says itself what the template would write before
it (`<think>...</think>`), the answer alone stands there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from data.records import Role, RowError, Turn, describe

MARK = "\ue000{}\ue001"  # of the private use area; a said mark cannot be mistaken, since both renderings must agree
MARKS = re.compile("\ue000([0-9]+)\ue001")
PROBE = (Turn("user", "Hello there"), Turn("assistant", "Hi, you."), Turn("user", "And?"), Turn("assistant", "Yes."))
SHOWN = 60
CHANGES = "the chat template writes other text around what is said"
DATE = "template_date"
"""Of tokenizer_config.json: the day that a template which writes the day's date has in every row of a run."""

Text = tuple["str | int", ...]
"""The template's own text and, by number, the turns that speak in it."""


class Stretch(NamedTuple):
    """What stands between two of the template's own special tokens, and the one that follows it ("" at the end).

    Where an answer begins in it, `head` ends there and `tail` follows, which may be empty. `answer` is the turn that
    what stands there belongs to: the tail, or the head where none begins, and the special token.
    """

    head: Text
    tail: Text | None
    special: str
    answer: int | None


@dataclass(frozen=True)
class Form:
    """A shape of conversation as the template writes it: its stretches, and its text cut at what is said."""

    stretches: tuple[Stretch, ...]
    text: Text


class Specials:
    """Where special tokens stand in a text: the first, and of those that begin there the longest, as tokenizers do."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self.lengths: dict[str, list[int]] = {}
        self.tokens = frozenset(tokens)
        for token in self.tokens:
            self.lengths.setdefault(token[0], []).append(len(token))
        self.lengths = {first: sorted(set(lengths), reverse=True) for first, lengths in self.lengths.items()}
        self.first = re.compile("[" + re.escape("".join(self.lengths)) + "]") if self.lengths else re.compile("(?!)")

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
def _special_tokens(tokenizer: Any, size: int, named: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(sorted({*added, *tokenizer.all_special_tokens}))


@lru_cache(maxsize=64)
def specials(tokens: tuple[str, ...]) -> Specials:
    """The finder of these tokens."""
    return Specials(tokens)


def own_end_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The special tokens that end an answer, that of a last answer first; gpt-oss ends earlier ones with another.

    ValueError where the tokenizer's template cannot be trained from at all.
    """
    return _end_tokens(tokenizer, _state(tokenizer))


def own_form(tokenizer: Any, turns: Sequence[Turn], prompt: bool) -> tuple[Form, list[str]]:
    """The form of a conversation (of a prompt: up to where its answer starts), and what each turn says in it.

    ValueError: no template, or one that cannot be trained from at all. RowError: these turns cannot, and which.
    """
    state = _state(tokenizer)
    _end_tokens(tokenizer, state)
    return _filled(tokenizer, state, turns, prompt)


def until_end(form: Form, turn: int, finished: bool) -> tuple[Stretch, ...]:
    """Its stretches up to and with the token that ends the answer of a turn; up to what it says where it was cut."""
    stretches = form.stretches
    if finished:
        return stretches[: max(at for at, stretch in enumerate(stretches) if stretch.answer == turn) + 1]
    for at, (head, tail, _, answer) in enumerate(stretches):
        if turn in head:
            return (*stretches[:at], Stretch(head[: head.index(turn) + 1], None, "", answer))
        if turn in (tail or ()):
            assert tail is not None
            return (*stretches[:at], Stretch(head, tail[: tail.index(turn) + 1], "", answer))
    raise AssertionError(f"turn {turn} does not speak")


def own_text(tokenizer: Any, turns: Sequence[Turn], prompt: bool = False) -> str:
    """The conversation as the template renders it. Raises what the template raises."""
    return _render(tokenizer, turns, [turn.content for turn in turns], prompt)


class _State(NamedTuple):
    """What the rendering of a shape depends on; a tokenizer can be given another template or end token."""

    template: str
    named: tuple[tuple[str, Any], ...]
    day: str


def _state(tokenizer: Any) -> _State:
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template of its own; choose a template by name")
    return _State(tokenizer.get_chat_template(), tuple(tokenizer.special_tokens_map.items()), _day(tokenizer))


def _day(tokenizer: Any) -> str:
    return str(tokenizer.init_kwargs.get(DATE) or TODAY)


TODAY = date.today().isoformat()  # of the process: a shape is rendered once, and the clock must not part it from a row


def _render(tokenizer: Any, turns: Sequence[Turn], said: Sequence[str], prompt: bool) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": turn.role, "content": text} for turn, text in zip(turns, said, strict=True)]
    rendered, _ = render_jinja_template(
        conversations=[messages],
        chat_template=tokenizer.get_chat_template(),
        add_generation_prompt=prompt,
        strftime_now=datetime.fromisoformat(_day(tokenizer)).strftime,
        **tokenizer.special_tokens_map,
    )
    return rendered[0]


def _rendered(tokenizer: Any, turns: Sequence[Turn], said: Sequence[str], prompt: bool) -> str:
    """RowError where the template raises: of the first turn after all that it renders."""
    try:
        return _render(tokenizer, turns, said, prompt)
    except Exception as error:  # a template is a foreign program: it raises what it likes
        last = 0
        for end in range(1, len(turns)):
            try:
                _render(tokenizer, turns[:end], said[:end], False)
                last = end
            except Exception:
                continue
        raise RowError(
            _where(turns, last), f"{type(error).__name__}: {error}"[:200], "a turn that the chat template renders",
            "the chat template raises",
        ) from None  # fmt: skip


def _where(turns: Sequence[Turn], index: int) -> str:
    return f"turns[{index}] ({turns[index].role})"


@lru_cache(maxsize=64)
def _end_tokens(tokenizer: Any, state: _State) -> tuple[str, ...]:
    try:
        forms = [_filled(tokenizer, state, PROBE[:2], False)[0]]
    except RowError as error:
        told = f"{error.reason}: {error}"
        raise ValueError(f"the tokenizer's chat template cannot be trained from: {told}") from None
    for turns in (PROBE, (Turn("system", "Be brief."), *PROBE)):
        try:
            forms.append(_filled(tokenizer, state, turns, False)[0])
        except RowError:
            continue
    last = forms[0].stretches
    ends = [_ends(last)[-1], *(end for form in forms for end in _ends(form.stretches))]
    return tuple(dict.fromkeys(ends))


def _ends(stretches: Sequence[Stretch]) -> list[str]:
    answers = [stretch.answer for stretch in stretches]
    following = [*answers[1:], None]
    return [
        stretch.special
        for stretch, after in zip(stretches, following, strict=True)
        if stretch.answer is not None and stretch.answer != after
    ]


def _filled(tokenizer: Any, state: _State, turns: Sequence[Turn], prompt: bool) -> tuple[Form, list[str]]:
    roles = tuple(turn.role for turn in turns)
    form = _shape(tokenizer, state, roles, prompt, False)
    if isinstance(form, RowError):
        raise RowError(form.field, form.found, form.expected, form.reason)
    whole = _rendered(tokenizer, turns, [turn.content for turn in turns], prompt)
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
    """What each turn says where `whole` is `text` with contents put in, trimmed at most; else where it is not."""
    said = [turn.content for turn in turns]
    if whole == "".join(part if isinstance(part, str) else said[part] for part in text):
        return said
    at, last = 0, len(turns) - 1
    for place, part in enumerate(text):
        if isinstance(part, str):
            if not whole.startswith(part, at):
                index = next((turn for turn in text[place:] if isinstance(turn, int)), last)
                found = describe(whole[at : at + SHOWN])
                return RowError(_where(turns, index), found, repr(part[:SHOWN]), CHANGES)
        else:
            after = next((own for own in text[place + 1 : place + 2] if isinstance(own, str)), "")
            cuts = [cut for cut in _trimmed(turns[part].content) if whole.startswith(cut, at)]
            trimmed = next((cut for cut in cuts if whole.startswith(after, at + len(cut))), cuts[0] if cuts else None)
            if trimmed is None:
                found, expected = describe(whole[at : at + SHOWN]), describe(turns[part].content)
                return RowError(_where(turns, part), found, expected, "the chat template rewrites what is said")
            said[part] = trimmed
        at += len(part if isinstance(part, str) else said[part])
    if at < len(whole):
        return RowError(_where(turns, last), describe(whole[at : at + SHOWN]), "the end", CHANGES)
    return said


def _trimmed(text: str) -> tuple[str, ...]:
    return (text, text.strip(), text.lstrip("\n"), text.rstrip("\n"), text.strip("\n"), text.lstrip(), text.rstrip())


@lru_cache(maxsize=1024)
def _marked(tokenizer: Any, state: _State, roles: tuple[Role, ...], prompt: bool) -> str | RowError:
    turns = [Turn(role, MARK.format(index)) for index, role in enumerate(roles)]
    try:
        return _rendered(tokenizer, turns, [turn.content for turn in turns], prompt)
    except RowError as error:
        return error


@lru_cache(maxsize=1024)
def _shape(tokenizer: Any, state: _State, roles: tuple[Role, ...], prompt: bool, bare: bool) -> Form | RowError:
    """The form of these roles, or why there is none. `bare`: without what the template writes before the last answer.

    Cached, so an error is returned.
    """
    marked = _marked(tokenizer, state, roles, prompt)
    if isinstance(marked, RowError):
        return marked
    turns = [Turn(role, "") for role in roles]
    marks = {int(match[1]): match.span() for match in MARKS.finditer(marked)}
    for index in range(len(roles)):
        if (count := marked.count(MARK.format(index))) != 1:
            reason = f"the chat template {'repeats' if count else 'leaves out'} what the {roles[index]} says"
            return RowError(_where(turns, index), f"it {count} times in the rendering", "it once", reason)
    answers: list[tuple[int, int, int]] = []  # (where it begins, where it ends, its turn)
    found = specials(own_special_tokens(tokenizer)).find(marked)
    for index in [index for index, role in enumerate(roles) if role == "assistant"]:
        asked = _marked(tokenizer, state, roles[:index], True)
        if isinstance(asked, RowError):
            return asked
        begin, (start, stop) = len(asked), marks[index]
        if not marked.startswith(asked):
            at = next((i for i, (one, two) in enumerate(zip(asked, marked, strict=False)) if one != two), len(marked))
            told = f"{_shown(asked[at:])}, with which the chat template asks for this answer"
            reason = "the chat template asks for an answer elsewhere than it writes it"
            return RowError(_where(turns, index), _shown(marked[at:]), told, reason)
        end = next((end for first, end in found if first >= stop), len(marked) + 1)
        if end > len(marked) or any(begin <= other < end and other != start for other, _ in marks.values()):
            reason = "no special token ends an answer: a model trained so never learns to stop"
            return RowError(_where(turns, index), _shown(marked[stop:]), "a special token that ends the answer", reason)
        answers.append((begin, end, index))
    if bare:
        begin, end, index = answers.pop()
        cut = marks[index][0] - begin
        marked = marked[:begin] + marked[begin + cut :]
        found = [span for span in found if span[1] <= begin] + [
            (first - cut, last - cut) for first, last in found if first >= begin + cut
        ]
        answers.append((begin, end - cut, index))
    return Form(tuple(_stretches(marked, found, answers)), _parts(marked))


def _stretches(
    marked: str, found: Sequence[tuple[int, int]], answers: Sequence[tuple[int, int, int]]
) -> Iterator[Stretch]:
    """`marked` cut at the special tokens that were `found`, and where answers begin."""
    at, answer, ends = 0, None, dict.fromkeys(end for _, end, _ in answers)
    for first, end in (*found, (len(marked), len(marked))):
        begin = next(((begin, turn) for begin, _, turn in answers if at <= begin <= first), None)
        if begin:
            answer = begin[1]
        tail = _parts(marked[begin[0] : first]) if begin else None
        if at < end:
            yield Stretch(_parts(marked[at : begin[0] if begin else first]), tail, marked[first:end], answer)
        answer = None if end in ends else answer
        at = end


def _parts(marked: str) -> Text:
    """`marked` as the template's own text and numbers of turns."""
    cut = MARKS.split(marked)  # text, number, text, number, ... text
    return tuple(int(part) if place % 2 else part for place, part in enumerate(cut) if part)


def _shown(marked: str) -> str:
    """The beginning of a marked text, for people."""
    text = MARKS.sub(lambda match: f"{{turn {match[1]}}}", marked)
    return repr(text[:SHOWN]) if text else "the end"
