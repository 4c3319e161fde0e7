"""Chat templates: turns to text and to token ids with loss weights.

The strings are in `rayward.data.templates.table`: a template is an entry there, one `Frame` for
each role. The same as a Hugging Face chat template: `rayward.data.templates.jinja`.

How turns become tokens: the text is cut into pieces, and each is encoded alone.
* Special tokens (BOS once, at the start; the end token) are emitted by id. All other text is
  encoded with special tokens split, so nothing that a user writes becomes one.
* What stands before an answer is never one piece with it: "GPT4 Correct Assistant:" and " Hello".
  So the ids of a prompt are a prefix of the ids of every conversation that continues it, by
  construction and for every tokenizer: an answer is sampled in the very context that it is trained
  in.
* A tokenizer that puts a space of its own before every text (SentencePiece) gets pieces without
  theirs. A space that belongs to the content stays: OpenChat v2's "User:" and " x" are "▁User",
  ":", "▁▁x".

Departures: FastChat encodes a Vicuna conversation as one string, finds the answers by counting
tokens and drops what it miscounts. Pieces give the same mask without counting. Alpaca and Llama-2
encode whole strings too; a SentencePiece tokenizer puts "▁" before an Alpaca answer here, as before
every other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rayward.data.records import RowError, Turn, check_turns
from rayward.data.templates.plain_text import Habit, encode_plain, habit, special_ids
from rayward.data.templates.published.template import own_end_tokens
from rayward.data.templates.published.tokens import own_opening_ids, own_row, own_rows
from rayward.data.templates.special_tokens import own_special_tokens
from rayward.data.templates.table import INPUT, TEMPLATES, Frame, Piece, Template, find

__all__ = [
    "TEMPLATES",
    "Encoded",
    "Frame",
    "Piece",
    "Template",
    "encode",
    "encode_all",
    "end_token",
    "find",
    "ids_and_habit",
    "needs_bos",
    "opening_ids",
    "pieces",
    "stop_token_ids",
    "text",
    "truncate",
    "with_condition",
]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids, and for each its weight in the SFT loss.

    `apart`: not those of the whole string in the tokenizer's own template, see
    `rayward.data.templates.published.tokens`.
    """

    ids: list[int]
    weights: list[float]
    apart: bool = field(default=False, compare=False)


def with_condition(template: Template, words: str) -> Template:
    """`template` with other words where its own name the class of an answer, such as GPT3 for GPT4
    (C-RLFT).

    ValueError where the template has no place for them.
    """
    if not template.condition or not words.strip():
        able = ", ".join(name for name, entry in TEMPLATES.items() if entry.condition)
        raise ValueError(
            f"chat template {template.name} cannot say {words!r} of an answer; those that can: "
            f"{able}"
        )

    def said(own: str) -> str:
        return own.replace(template.condition, words)

    return replace(
        template,
        user=template.user._replace(before=said(template.user.before)),
        assistant=template.assistant._replace(before=said(template.assistant.before)),
        head=said(template.head),
        condition=words,
    )


def pieces(
    template: Template, turns: Sequence[Turn], add_generation_prompt: bool = False
) -> list[Piece]:
    """The conversation in pieces, without BOS; with `add_generation_prompt` up to where the answer
    starts.

    The assistant's content and end token weigh 1 and all else 0, unless a turn has a weight of its
    own: then its content and end token weigh that. RowError (a ValueError) if the turns are not
    valid, or if an answer is asked for where the user does not have the last word.
    """
    check_turns(turns, last="user" if add_generation_prompt else None)
    if template.own:
        raise ValueError("the tokenizer's own chat template needs the tokenizer: name its folder")
    turns = _with_system(template, turns)
    out: list[Piece] = []
    # The template's own text: what follows a turn is one piece with what precedes the next.
    own = template.head
    for before, turn in zip((None, *turns), turns, strict=False):
        frame = template.frame(turn.role)
        weight = turn.loss_weight
        own += template.between_pairs if before and before.role == "assistant" else ""
        _add_own(out, template, own + frame.before)
        tail, end, own = frame.after.partition(template.end_token)
        if not end:
            tail, own = "", frame.after
        out.append(
            Piece(
                frame.lead + turn.content + tail,
                False,
                weight,
                turn.content[0] == " " and not frame.lead,
            )
        )
        out += _own_pieces(template, end, weight)
    own += template.assistant.before if add_generation_prompt else ""
    _add_own(out, template, own)
    return out


def _add_own(out: list[Piece], template: Template, text: str) -> None:
    """The template's text; what goes on without a space where the last piece ends is one with it,
    if neither counts.
    """
    new = _own_pieces(template, text, 0.0)
    if (
        out
        and new
        and not (out[-1].special or out[-1].weight or new[0].special or text.startswith(" "))
    ):
        out[-1] = out[-1]._replace(text=out[-1].text + new.pop(0).text)
    out += new


def _with_system(template: Template, turns: Sequence[Turn]) -> Sequence[Turn]:
    """The turns with the system message that the template puts first, or inside of the first
    question.
    """
    if turns[0].role != "system":
        with_input = bool(template.input_system) and INPUT in turns[0].content
        default = template.input_system if with_input else template.default_system
        return (Turn("system", default), *turns) if default else turns
    if not template.folds_system or len(turns) == 1:
        return turns
    frame, first = template.system, turns[1]
    said = frame.before + frame.lead + turns[0].content + frame.after + first.content
    return (Turn("user", said, first.weight), *turns[2:])


def _own_pieces(template: Template, text: str, weight: float) -> list[Piece]:
    if not text:
        return []
    parts = re.split("(" + "|".join(map(re.escape, template.special_tokens)) + ")", text)
    return [Piece(part, part in template.special_tokens, weight) for part in parts if part]


def text(template: Template, turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
    """The conversation as text, without BOS. Raises as `pieces`."""
    return "".join(piece.text for piece in pieces(template, turns, add_generation_prompt))


def encode(
    template: Template, turns: Sequence[Turn], tokenizer: Any, add_generation_prompt: bool = False
) -> Encoded:
    """Token ids and weights; BOS comes first if the tokenizer has one, the template does not do
    without, and its own text does not begin with it.

    `tokenizer`: of transformers. ValueError: invalid turns (see `pieces`), a special token that the
    tokenizer lacks or finds in plain text, or a conversation (not a prompt) in which no token has
    weight. RowError: turns that the tokenizer's own template cannot render as they are trained.
    """
    if template.own:
        check_turns(turns, last="user" if add_generation_prompt else None)
        encoded = Encoded(*own_row(tokenizer, turns, add_generation_prompt))
    else:
        parts = pieces(template, turns, add_generation_prompt)
        encoded = _joined(
            template, parts, encode_plain(tokenizer, _plain(parts, tokenizer)), tokenizer
        )
    if not add_generation_prompt:
        _check_weight(encoded)
    return encoded


def encode_all(
    rows: Sequence[tuple[Template, Sequence[Turn]]], tokenizer: Any
) -> list[Encoded | RowError]:
    """`encode` of conversations, each in its template, in one call of the tokenizer, which spreads
    them over the processor's cores. What is wrong with a row stands in its place; else raises as
    `encode`."""
    made: list[list[Piece] | RowError | None] = []  # None: in the tokenizer's own template
    for template, turns in rows:
        try:
            check_turns(turns)
            made.append(None if template.own else pieces(template, turns))
        except RowError as error:
            made.append(error)
    texts = [_plain(parts, tokenizer) if isinstance(parts, list) else [] for parts in made]
    plain = iter(encode_plain(tokenizer, [text for row in texts for text in row]))
    own = iter(
        own_rows(
            tokenizer,
            [turns for (_, turns), parts in zip(rows, made, strict=True) if parts is None],
        )
    )
    encoded: list[Encoded | RowError] = []
    for (template, _), parts, row_texts in zip(rows, made, texts, strict=True):
        if isinstance(parts, list):
            plain_ids = [next(plain) for _ in row_texts]
            try:
                encoded.append(_joined(template, parts, plain_ids, tokenizer))
            except RowError as error:
                encoded.append(error)
        else:
            row = parts or next(own)
            encoded.append(row if isinstance(row, RowError) else Encoded(*row))
        if isinstance(encoded[-1], Encoded):
            _check_weight(encoded[-1])
    return encoded


def _check_weight(encoded: Encoded) -> None:
    if not any(encoded.weights):
        raise ValueError(
            "no token of the conversation has weight: it needs an assistant turn with weight"
        )


def _plain(parts: Sequence[Piece], tokenizer: Any) -> list[str]:
    """The text of the pieces that are no special tokens, without the space that the tokenizer puts
    before each.
    """
    strips = habit(tokenizer) == "always"
    return [
        part.text.removeprefix(" ") if strips and not part.verbatim else part.text
        for part in parts
        if not part.special
    ]


def _joined(
    template: Template, parts: Sequence[Piece], plain_ids: Sequence[list[int]], tokenizer: Any
) -> Encoded:
    """The row of pieces, given the ids of their `_plain` text."""
    ids_of, encoded = (
        special_ids(tokenizer, template.special_tokens, template.name),
        iter(plain_ids),
    )
    ids = [tokenizer.bos_token_id] if needs_bos(template, tokenizer) else []
    weights = [0.0] * len(ids)
    forbidden = {*ids_of.values(), *ids}
    for part in parts:
        part_ids = [ids_of[part.text]] if part.special else next(encoded)
        if not part.special and not forbidden.isdisjoint(part_ids):
            raise RowError(
                "turns",
                repr(part.text[:80]),
                "text in which the tokenizer reads no special token",
                "a special token of the template is read out of a message: make it special "
                "(rayward extend --token)",
            )
        ids += part_ids
        weights += [part.weight] * len(part_ids)
    return Encoded(ids, weights)


def needs_bos(template: Template, tokenizer: Any) -> bool:
    """Whether BOS is put before a conversation: the tokenizer has one, and the template does not do
    without, nor begin with the same token, as ChatML with SmolLM2's."""
    if not template.bos or tokenizer.bos_token_id is None:
        return False
    return not (template.head or template.user.before).startswith(tokenizer.bos_token)


def truncate(encoded: Encoded, max_tokens: int) -> Encoded | None:
    """The first `max_tokens` tokens, None if none of them has weight. The tail is lost: the caller
    counts.
    """
    if len(encoded.ids) <= max_tokens:
        return encoded
    cut = Encoded(encoded.ids[:max_tokens], encoded.weights[:max_tokens])
    return cut if any(cut.weights) else None


def end_token(template: Template, tokenizer: Any) -> str:
    """The special token that ends a last answer, as text. ValueError if the tokenizer's own
    template shows none.
    """
    return own_end_tokens(tokenizer)[0] if template.own else template.end_token


def opening_ids(template: Template, tokenizer: Any) -> list[int]:
    """What a model says before its answer since the tokenizer's own template writes it there
    (gpt-oss's channel).
    """
    return own_opening_ids(tokenizer) if template.own else []


def stop_token_ids(template: Template, tokenizer: Any) -> list[int]:
    """The ids that end an answer, that of `end_token` first. ValueError if the tokenizer lacks one.

    They are more than one where the tokenizer's own template ends earlier answers with another
    token than the last.
    """
    ends = own_end_tokens(tokenizer) if template.own else (template.end_token,)
    ids, _ = ids_and_habit(template, tokenizer)
    return [ids[end] for end in ends]


def ids_and_habit(template: Template, tokenizer: Any) -> tuple[dict[str, int], Habit]:
    """Ids of the template's special tokens, and whether the tokenizer puts a space before a text
    (`plain_text`).
    """
    tokens = own_special_tokens(tokenizer) if template.own else template.special_tokens
    return special_ids(tokenizer, tokens, template.name), habit(tokenizer)
