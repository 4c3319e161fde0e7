"""A conversation as pieces of text, each encoded alone, and as text: by a template of the table.

How pieces become token ids, and why there are any, is in `rayward.data.templates.template`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from rayward.data.records import Turn, check_turns, parts_of
from rayward.data.templates.published.places import no_place
from rayward.data.templates.table import INPUT, TEMPLATES, Piece, Template


def with_condition(template: Template, words: str) -> Template:
    """`template` with other words for the class of an answer, such as GPT3 for GPT4 (C-RLFT).

    ValueError where the template has no place for them.
    """
    if not template.condition or not words.strip():
        able = ", ".join(name for name, entry in TEMPLATES.items() if entry.condition)
        raise ValueError(
            f"chat template {template.name} cannot say {words!r} of an answer; those that can: "
            f"{able}"
        )

    def conditioned(frame_text: str) -> str:
        return frame_text.replace(template.condition, words)

    return replace(
        template,
        user=template.user._replace(before=conditioned(template.user.before)),
        assistant=template.assistant._replace(before=conditioned(template.assistant.before)),
        head=conditioned(template.head),
        condition=words,
    )


def pieces(
    template: Template,
    turns: Sequence[Turn],
    add_generation_prompt: bool = False,
    tools: str | None = None,
) -> list[Piece]:
    """The conversation in pieces, without BOS.

    With `add_generation_prompt` up to where the answer starts. The assistant's content and end
    token weigh 1 and all else 0, unless a turn has a weight of its own: then its content and end
    token weigh that. RowError (a ValueError) if the turns are not valid, if there are tools, calls
    or reasoning, for which no template of the table has a place, or if an answer is asked for where
    the user does not have the last word.
    """
    check_turns(turns, last="user" if add_generation_prompt else None)
    for field, found, what in parts_of(turns, tools):
        raise no_place(field, found, what)
    if template.is_tokenizers:
        raise ValueError("the tokenizer's own chat template needs the tokenizer: name its folder")
    turns = _with_system(template, turns)
    out: list[Piece] = []
    # The template's own text: what follows a turn is one piece with what precedes the next.
    own_text = template.head
    for before, turn in zip((None, *turns), turns, strict=False):
        frame = template.frame(turn.role)
        weight = turn.loss_weight
        own_text += template.between_pairs if before and before.role == "assistant" else ""
        _add_own(out, template, own_text + frame.before)
        # What stands before the end token is one piece with the content, and trained with it.
        tail, end, own_text = frame.after.partition(template.end_token)
        if not end:
            tail, own_text = "", frame.after
        # A space of the content's own stays, whatever the tokenizer puts before a text.
        verbatim = turn.content[0] == " " and not frame.lead
        out.append(Piece(frame.lead + turn.content + tail, False, weight, verbatim))
        out += _own_pieces(template.special_tokens, end, weight)
    own_text += template.assistant.before if add_generation_prompt else ""
    _add_own(out, template, own_text)
    return out


def _add_own(out: list[Piece], template: Template, text: str) -> None:
    """The template's text; joined to the last piece where it goes on without a space.

    Only where neither counts: an edge of what is trained is an edge of pieces.
    """
    new = list(_own_pieces(template.special_tokens, text, 0.0))
    if out and new:
        weighted = out[-1].special or out[-1].weight or new[0].special
        if not weighted and not text.startswith(" "):
            out[-1] = out[-1]._replace(text=out[-1].text + new.pop(0).text)
    out += new


def _with_system(template: Template, turns: Sequence[Turn]) -> Sequence[Turn]:
    """The turns with the system message that the template puts first, or in the first question."""
    if turns[0].role != "system":
        with_input = bool(template.input_system) and INPUT in turns[0].content
        default = template.input_system if with_input else template.default_system
        return (Turn("system", default), *turns) if default else turns
    if not template.folds_system or len(turns) == 1:
        return turns
    frame, first = template.system, turns[1]
    content = frame.before + frame.lead + turns[0].content + frame.after + first.content
    return (Turn("user", content, first.weight), *turns[2:])


@lru_cache(maxsize=256)
def _own_pieces(special_tokens: tuple[str, ...], text: str, weight: float) -> tuple[Piece, ...]:
    """A text of the template, cut at its special tokens. Nearly every turn has the same."""
    if not text:
        return ()
    parts = re.split("(" + "|".join(map(re.escape, special_tokens)) + ")", text)
    return tuple(Piece(part, part in special_tokens, weight) for part in parts if part)


def text(template: Template, turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
    """The conversation as text, without BOS. Raises as `pieces`."""
    return "".join(piece.text for piece in pieces(template, turns, add_generation_prompt))
