"""What the chat template that a tokenizer brings does with a conversation, in sentences; found out
by asking it.
"""

from __future__ import annotations

from itertools import takewhile, zip_longest
from typing import Any

from rayward.data.records import RowError, Turn, describe
from rayward.data.templates.published.rendering import MARKS, marked, render, state_of
from rayward.data.templates.published.template import PROBE, own_end_tokens, own_form, own_opening
from rayward.data.templates.special_tokens import own_special_tokens, specials
from rayward.data.templates.table import Template
from rayward.data.templates.template import needs_bos, text

SYSTEM = Turn("system", "Be brief.")
THOUGHT = "<think>\nIt is hot.\n</think>\n\nYes."


def behaviour(tokenizer: Any) -> list[str]:
    """What it ends answers with, and what one would not expect of it. ValueError: it cannot be
    trained from.
    """
    ends = own_end_tokens(tokenizer)
    told: list[str] = [f"ends answers with {' (the last) and '.join(map(repr, ends))}"]
    if after := _after(ends[0], tokenizer):
        told.append(f"writes {after!r} after that; a reward model reads its score before it")
    if system_text := _own_system(tokenizer):
        told.append(f"adds a system text: {system_text!r}")
    if (opening := own_opening(tokenizer)).strip():
        told.append(f"writes {opening!r} before an answer, and trains it")
    told += _unless(tokenizer, (SYSTEM, *PROBE[:2]), "has no system role")
    several = _unless(tokenizer, PROBE, "writes earlier answers otherwise than it asks for them")
    if _trims(tokenizer):
        told.append("trims what is said")
    thought = (PROBE[0], Turn("assistant", THOUGHT))
    told += _unless(tokenizer, thought, "changes an answer that begins with <think>")
    told += several or _unless(
        tokenizer, (*thought, *PROBE[2:]), "strips earlier reasoning (<think>)"
    )
    try:
        render(tokenizer, (PROBE[0], PROBE[0]), ("one", "two"), True)
    except Exception as error:  # a template is a foreign program: it raises what it likes
        told.append(f"raises where one role speaks twice in a row: {error}")
    if open_tokens := _open_tokens(tokenizer):
        told.append(
            f"writes {', '.join(map(repr, open_tokens))}, which the tokenizer does not hold "
            "special: a user who writes that in a message speaks as the template does"
        )
    if "strftime_now" in tokenizer.get_chat_template():
        told.append("writes the date: rows have that of prepare, a served model the day's")
    return told


def unlike_own(template: Template, tokenizer: Any) -> str:
    """How a template of the table differs from the one that the tokenizer brings, by the first line
    that does.
    """
    if template.own or not tokenizer.chat_template:
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
        ours = (tokenizer.bos_token if needs_bos(template, tokenizer) else "") + text(
            template, turns, asks
        )
        lines = zip_longest(ours.split("\n"), own.split("\n"), fillvalue="")
        for number, (this, other) in enumerate(lines, 1):
            if this != other:
                wrote = f"in line {number} it writes {describe(other)}, this one {describe(this)}"
                return f"the model's folder has another chat template: {wrote}"
    return ""


def _unless(tokenizer: Any, turns: tuple[Turn, ...], told: str) -> list[str]:
    try:
        own_form(tokenizer, turns, prompt=False)
    except RowError as error:
        return [f"{told}: such rows are left out ({error.reason}: {error})"]
    return []


def _own_system(tokenizer: Any) -> str:
    """The first line of what stands before the first question and not before the second; "" if it
    says nothing.
    """
    whole = marked(tokenizer, state_of(tokenizer), ("user", "assistant", "user"), True)
    if isinstance(whole, RowError):
        return ""
    before, _, _, _, between, *_ = MARKS.split(whole)
    same = takewhile(
        lambda pair: pair[0] == pair[1], zip(reversed(before), reversed(between), strict=False)
    )
    own = before[: len(before) - len(list(same))]
    at, lines = 0, list[str]()
    for start, end in (*specials(own_special_tokens(tokenizer)).find(own), (len(own), len(own))):
        lines += own[at:start].split("\n")
        at = end
    return next((line.strip() for line in lines if " " in line.strip()), "")


def _after(end: str, tokenizer: Any) -> str:
    """What a finished conversation has after the token that ends its answer."""
    whole = marked(tokenizer, state_of(tokenizer), ("user", "assistant"), False)
    return "" if isinstance(whole, RowError) else MARKS.split(whole)[-1].partition(end)[2]


def _open_tokens(tokenizer: Any) -> list[str]:
    """The added tokens in the frame of a question that are not special, in their order: text that
    says them is them.
    """
    frame = marked(tokenizer, state_of(tokenizer), ("user",), True)
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if not token.special]
    return (
        []
        if isinstance(frame, RowError)
        else sorted((one for one in added if one in frame), key=frame.index)
    )


def _trims(tokenizer: Any) -> bool:
    turns = (Turn("user", " \n Why? \n "), Turn("assistant", " \n Yes. \n "))
    try:
        return own_form(tokenizer, turns, prompt=False)[1] != [turn.content for turn in turns]
    except RowError:
        return True
