"""What the chat template that a tokenizer brings does, in sentences; found out by rendering."""

from __future__ import annotations

from itertools import takewhile, zip_longest
from typing import TYPE_CHECKING

from rayward.data.records import RowError, Turn, describe
from rayward.data.templates.pieces import text
from rayward.data.templates.published.program import MARKS, state_of
from rayward.data.templates.published.rendering import marked, plain_shape, render, voices
from rayward.data.templates.published.template import PROBE, own_end_tokens, own_form, own_opening
from rayward.data.templates.special_tokens import own_special_tokens, specials
from rayward.data.templates.table import Template
from rayward.data.templates.template import needs_bos

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM = Turn("system", "Be brief.")
THOUGHT = "<think>\nIt is hot.\n</think>\n\nYes."


def behaviour(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What it ends answers with, and what is unusual. ValueError: it cannot be trained from."""
    ends = own_end_tokens(tokenizer)
    sentences: list[str] = [f"ends answers with {' (the last) and '.join(map(repr, ends))}"]
    if after := _after(ends[0], tokenizer):
        sentences.append(f"writes {after!r} after that; a reward model reads its score before it")
    if system_text := _own_system(tokenizer):
        sentences.append(f"adds a system text: {system_text!r}")
    if (opening := own_opening(tokenizer)).strip():
        sentences.append(f"writes {opening!r} before an answer, and trains it")
    sentences += _unless(tokenizer, (SYSTEM, *PROBE[:2]), "has no system role")
    several = _unless(tokenizer, PROBE, "writes earlier answers otherwise than it asks for them")
    if _trims(tokenizer):
        sentences.append("trims what is said")
    thought = (PROBE[0], Turn("assistant", THOUGHT))
    sentences += _unless(tokenizer, thought, "changes an answer that begins with <think>")
    # Only where it takes several answers at all, or the same fault would be told twice.
    sentences += several or _unless(
        tokenizer, (*thought, *PROBE[2:]), "strips earlier reasoning (<think>)"
    )
    try:
        render(tokenizer, (PROBE[0], PROBE[0]), ("one", "two"), True)
    except Exception as error:  # a template is a foreign program: it raises what it likes
        sentences.append(f"raises where one role speaks twice in a row: {error}")
    if open_tokens := _open_tokens(tokenizer):
        sentences.append(
            f"writes {', '.join(map(repr, open_tokens))}, which the tokenizer does not hold "
            "special: a user who writes that in a message speaks as the template does"
        )
    if "strftime_now" in tokenizer.get_chat_template():
        sentences.append("writes the date: rows have that of prepare, a served model the day's")
    return sentences


def unlike_own(template: Template, tokenizer: PreTrainedTokenizerBase) -> str:
    """The first line in which a template of the table differs from the tokenizer's own."""
    if template.is_tokenizers or not tokenizer.chat_template:
        return ""
    for turns, asks in ((PROBE[:3], True), (PROBE, False), ((SYSTEM, *PROBE[:3]), True)):
        try:
            own = render(tokenizer, turns, [turn.content for turn in turns], asks)
        except Exception as error:  # a template is a foreign program: it raises what it likes
            shape = " with a system turn" * (turns[0] is SYSTEM)
            return (
                f"the model's folder has another chat template, which cannot be rendered{shape}: "
                f"{error}"
            )
        bos = tokenizer.bos_token if needs_bos(template, tokenizer) else ""
        ours = bos + text(template, turns, asks)
        lines = zip_longest(ours.split("\n"), own.split("\n"), fillvalue="")
        for number, (this, other) in enumerate(lines, 1):
            if this != other:
                wrote = f"in line {number} it writes {describe(other)}, this one {describe(this)}"
                return f"the model's folder has another chat template: {wrote}"
    return ""


def _unless(
    tokenizer: PreTrainedTokenizerBase, turns: tuple[Turn, ...], sentence: str
) -> list[str]:
    """The sentence, unless these turns can be trained from."""
    try:
        own_form(tokenizer, turns, prompt=False)
    except RowError as error:
        return [f"{sentence}: such rows are left out ({error.reason}: {error})"]
    return []


def _own_system(tokenizer: PreTrainedTokenizerBase) -> str:
    """The first line of what stands before the first question only; "" if it says nothing."""
    whole = marked(tokenizer, state_of(tokenizer), plain_shape("user", "assistant", "user"), True)
    if isinstance(whole, RowError):
        return ""
    # Text and numbers of marks in turn: before turn 0, and between turns 1 and 2.
    before, _, _, _, between, *_ = MARKS.split(whole)
    # Both end with the words that open a question; what remains is of the conversation's start.
    same = takewhile(
        lambda pair: pair[0] == pair[1], zip(reversed(before), reversed(between), strict=False)
    )
    preamble = before[: len(before) - len(list(same))]
    spans = specials(own_special_tokens(tokenizer)).find(preamble)
    last, lines = 0, list[str]()
    for start, end in (*spans, (len(preamble), len(preamble))):
        lines += preamble[last:start].split("\n")
        last = end
    # With a space: a role's name alone is no system text.
    return next((line.strip() for line in lines if " " in line.strip()), "")


def _after(end: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What a finished conversation has after the token that ends its answer."""
    whole = marked(tokenizer, state_of(tokenizer), plain_shape("user", "assistant"), False)
    return "" if isinstance(whole, RowError) else MARKS.split(whole)[-1].partition(end)[2]


def _open_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The added tokens in the frame of a question that are not special, in their order.

    A user's text that says one is read as it.
    """
    frame = marked(tokenizer, state_of(tokenizer), plain_shape("user"), True)
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if not token.special]
    if isinstance(frame, RowError):
        return []
    return sorted((token for token in added if token in frame), key=frame.index)


def _trims(tokenizer: PreTrainedTokenizerBase) -> bool:
    turns = (Turn("user", " \n Why? \n "), Turn("assistant", " \n Yes. \n "))
    try:
        return own_form(tokenizer, turns, prompt=False)[1] != voices(turns)
    except RowError:
        return True
