"""The chat template that a tokenizer brings: where it asks for answers, and what is trained.

It is a Jinja program, so its frames are not known in advance. Each shape of conversation (its
roles) is rendered once with marks in place of what is said, and from that alone follows what is
trained: an answer begins where the rendering of the turns before it, with the generation prompt,
ends, and it ends with the first special token after its mark, or after its calls of tools. What the
template writes in between, such as Qwen3's empty `<think>` block, belongs to the answer.
`{% generation %}` is not needed, and where a template has it, what follows from the marks holds.

What must be so, for every answer of every row (else a RowError names the turn): the marked
rendering of the turns before it with the generation prompt is a prefix of the marked rendering of
the whole; each mark stands there once; a special token ends the answer; and the rendering of the
row is the marked one with its contents put in. A template may trim what is said. It may also know
its own text again: where an answer says itself what the template would write before it
(`<think>...</think>`), the answer alone stands there.

Tools, calls and reasoning are rendered where the template has a place for them, found out by
rendering (`places.py`). Tools and calls stand in a shape as they are, so a row of its own shape is
rendered several times. Reasoning must stand there once, as what is said: a template that drops that
of earlier answers (Qwen3) takes a row only where none of those has any, since an earlier answer
that is trained without what it thought would teach not to think.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from rayward.data.parts import json_text
from rayward.data.records import RowError, Turn, describe
from rayward.data.templates.published.form import (
    SHOWN_CHARACTERS,
    Form,
    Stretch,
    Text,
    ends_of,
    form_of,
)
from rayward.data.templates.published.places import places_of, refuse_without_place
from rayward.data.templates.published.program import MARK, MARKS, State, state_of
from rayward.data.templates.published.rendering import (
    marked,
    plain_shape,
    rendered,
    shape_of,
    voices,
    where,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = (
    Turn("user", "Hello there"),
    Turn("assistant", "Hi, you."),
    Turn("user", "And?"),
    Turn("assistant", "Yes."),
)
CHANGES = "the chat template writes other text around what is said"


def own_end_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The special tokens that end an answer, that of a last answer first.

    They are several where earlier answers end with another, as gpt-oss's. ValueError where the
    tokenizer's template cannot be trained from at all.
    """
    return _end_tokens(tokenizer, state_of(tokenizer))


def own_last_ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The id of the token that ends a last answer; none where no template can be trained from."""
    try:
        return [tokenizer.convert_tokens_to_ids(own_end_tokens(tokenizer)[0])]
    except ValueError:
        return []


def own_opening(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template writes between the generation prompt and a first answer.

    Raises as `own_end_tokens`.
    """
    state = state_of(tokenizer)
    _end_tokens(tokenizer, state)
    question = marked(tokenizer, state, plain_shape("user"), True)
    whole = marked(tokenizer, state, plain_shape("user", "assistant"), False)
    assert isinstance(question, str) and isinstance(whole, str), (
        "an end token was found, so these can be rendered"
    )
    return whole[len(question) : whole.index(MARK.format(1))]


def own_form(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    prompt: bool,
    tools: str | None = None,
) -> tuple[Form, list[str]]:
    """The form of a conversation, and its `voices`, as they stand in it.

    Of a prompt up to where its answer starts. ValueError: no template, or one that cannot be
    trained from at all. RowError: these turns or tools cannot, and which.
    """
    state = state_of(tokenizer)
    _end_tokens(tokenizer, state)
    if tools or any(turn.reasoning is not None or turn.tool_calls for turn in turns):
        refuse_without_place(places_of(tokenizer, state), turns, tools)
    return _filled(tokenizer, state, turns, prompt, tools)


def until_end(form: Form, turn: int, finished: bool) -> tuple[Stretch, ...]:
    """Its stretches up to and with the token that ends the answer of a turn.

    Not `finished`: up to what the turn says, without what the template writes after it.
    """
    stretches = form.stretches
    if finished:
        numbers = [number for number, stretch in enumerate(stretches) if stretch.answer == turn]
        return stretches[: max(numbers) + 1]
    for number, (head, tail, _, answer) in enumerate(stretches):
        before = stretches[:number]
        if turn in head:
            return (*before, Stretch(head[: head.index(turn) + 1], None, "", answer))
        if turn in (tail or ()):
            assert tail is not None
            return (*before, Stretch(head, tail[: tail.index(turn) + 1], "", answer))
    raise AssertionError(f"turn {turn} does not speak")


@lru_cache(maxsize=64)
def _end_tokens(tokenizer: PreTrainedTokenizerBase, state: State) -> tuple[str, ...]:
    """`own_end_tokens`, found by conversations that are made up."""
    try:
        forms = [_filled(tokenizer, state, PROBE[:2], False)[0]]
    except RowError as error:
        details = f"{error.reason}: {error}{_open_end(tokenizer, state)}"
        raise ValueError(
            f"the tokenizer's chat template cannot be trained from: {details}"
        ) from None
    # One question and answer must do; longer shapes only add the ends of earlier answers.
    for turns in (PROBE, (Turn("system", "Be brief."), *PROBE)):
        try:
            forms.append(_filled(tokenizer, state, turns, False)[0])
        except RowError:
            continue
    last = forms[0].stretches
    ends = [ends_of(last)[-1], *(end for form in forms for end in ends_of(form.stretches))]
    return tuple(dict.fromkeys(ends))


def _open_end(tokenizer: PreTrainedTokenizerBase, state: State) -> str:
    """What to do where a template ends answers with an added token that is not special."""
    whole = marked(tokenizer, state, plain_shape("user", "assistant"), False)
    after = "" if isinstance(whole, RowError) else MARKS.split(whole)[-1].strip()
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if not token.special]
    # The longest first: a token may be the beginning of another.
    by_length = sorted(added, key=len, reverse=True)
    end = next((token for token in by_length if after.startswith(token)), "")
    if not end:
        return ""
    return (
        f"; {end!r} would end them, were it special: rayward extend MODEL --token {end!r} --out DIR"
    )


def _filled(
    tokenizer: PreTrainedTokenizerBase,
    state: State,
    turns: Sequence[Turn],
    prompt: bool,
    tools: str | None = None,
) -> tuple[Form, list[str]]:
    """The form of the turns' shape, and the voices in it, once both are proved of these turns.

    RowError: they are not as the marks have it.
    """
    shape = shape_of(turns, tools)
    form = form_of(tokenizer, state, shape, prompt, False)
    if isinstance(form, RowError):
        # A new one: the cached error would gather a traceback with every raise.
        raise RowError(form.field, form.found, form.expected, form.reason)
    whole = rendered(tokenizer, turns, [turn.content for turn in turns], prompt, tools)
    contents = _contents(form.text, turns, whole)
    if not isinstance(contents, RowError):
        return form, contents
    # A template may leave out its own opening where the answer says it itself (<think>).
    last = turns[-1]
    if last.role == "assistant" and last.reasoning is None and not last.tool_calls:
        bare = form_of(tokenizer, state, shape, prompt, True)
        if not isinstance(bare, RowError):
            bare_contents = _contents(bare.text, turns, whole)
            if not isinstance(bare_contents, RowError):
                return bare, bare_contents
    raise contents


def _contents(text: Text, turns: Sequence[Turn], whole: str) -> list[str] | RowError:
    """The voices where `whole` is `text` with them put in, trimmed at most.

    Else a RowError says where it is not.
    """
    contents = voices(turns)
    if whole == "".join(part if isinstance(part, str) else contents[part] for part in text):
        return contents
    start, last = 0, len(turns) - 1  # all of `whole` before `start` is accounted for
    for place, part in enumerate(text):
        shown = whole[start : start + SHOWN_CHARACTERS]
        if isinstance(part, str):
            if not whole.startswith(part, start):
                index = next((number for number in text[place:] if isinstance(number, int)), last)
                expected = repr(part[:SHOWN_CHARACTERS])
                return RowError(where(turns, index), describe(shown), expected, CHANGES)
            start += len(part)
            continue
        # Several ways of trimming may fit; the one that the template's next text follows is it.
        next_text = next((own for own in text[place + 1 : place + 2] if isinstance(own, str)), "")
        ways = _trimmed(contents[part])
        if turns[part % len(turns)].role == "tool":
            ways = (*ways, json_text(contents[part])[1:-1])  # Llama 3 writes results as JSON
        fitting = [cut for cut in ways if whole.startswith(cut, start)]
        if not fitting:
            return RowError(
                where(turns, part),
                describe(shown),
                describe(contents[part]),
                "the chat template rewrites what is said",
            )
        followed = (cut for cut in fitting if whole.startswith(next_text, start + len(cut)))
        contents[part] = next(followed, fitting[0])
        start += len(contents[part])
    if start < len(whole):
        shown = whole[start : start + SHOWN_CHARACTERS]
        return RowError(where(turns, last), describe(shown), "the end", CHANGES)
    return contents


def _trimmed(text: str) -> tuple[str, ...]:
    """What templates make of a text with `trim` and its kin; as it is first."""
    return (
        text,
        text.strip(),
        text.lstrip("\n"),
        text.rstrip("\n"),
        text.strip("\n"),
        text.lstrip(),
        text.rstrip(),
    )
