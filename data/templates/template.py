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

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rayward.data.records import RowError, Turn, check_turns
from rayward.data.templates.pieces import pieces
from rayward.data.templates.plain_text import Habit, encode_plain, habit, special_ids
from rayward.data.templates.published.template import own_end_tokens
from rayward.data.templates.published.tokens import own_opening_ids, own_row, own_rows
from rayward.data.templates.special_tokens import own_special_tokens
from rayward.data.templates.table import TEMPLATES, Frame, Piece, Template, find

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    "stop_token_ids",
    "truncate",
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


def encode(
    template: Template,
    turns: Sequence[Turn],
    tokenizer: PreTrainedTokenizerBase,
    add_generation_prompt: bool = False,
    tools: str | None = None,
) -> Encoded:
    """Token ids and weights of a conversation; BOS comes first as `needs_bos` says.

    ValueError: a special token that the tokenizer lacks. RowError, which is one: invalid turns (see
    `pieces`), turns that the tokenizer's own template cannot render as they are trained, a special
    token that is read out of plain text, or a conversation (not a prompt) in which no token has
    weight.
    """
    if template.is_tokenizers:
        check_turns(turns, last="user" if add_generation_prompt else None)
        encoded = Encoded(*own_row(tokenizer, turns, add_generation_prompt, tools))
    else:
        parts = pieces(template, turns, add_generation_prompt, tools)
        plain_ids = encode_plain(tokenizer, _plain(parts, tokenizer))
        encoded = _joined(template, parts, plain_ids, tokenizer)
    if not add_generation_prompt:
        _check_weight(encoded)
    return encoded


def encode_all(
    rows: Sequence[tuple[Template, Sequence[Turn]]],
    tokenizer: PreTrainedTokenizerBase,
    tools: Sequence[str | None] | None = None,
) -> list[Encoded | RowError]:
    """`encode` of conversations, each in its template; `tools` of each, if any have some.

    One call of the tokenizer, which spreads them over the processor's cores. What is wrong with a
    row stands in its place; else raises as `encode`.
    """
    pieces_of: list[list[Piece] | RowError | None] = []  # None: in the tokenizer's own template
    tools = tools or [None] * len(rows)
    for (template, turns), offered in zip(rows, tools, strict=True):
        try:
            if template.is_tokenizers:
                check_turns(turns)
                pieces_of.append(None)
            else:
                pieces_of.append(pieces(template, turns, False, offered))
        except RowError as error:
            pieces_of.append(error)
    # All texts of all rows in one list; each row takes as many ids as it gave texts.
    texts = [_plain(parts, tokenizer) if isinstance(parts, list) else [] for parts in pieces_of]
    every = [text for row in texts for text in row]
    # Each text once: those of the template's own come in every turn.
    once = list(dict.fromkeys(every))
    ids_of = dict(zip(once, encode_plain(tokenizer, once), strict=True))
    plain = (ids_of[text] for text in every)
    published = [
        (turns, offered)
        for (_, turns), offered, parts in zip(rows, tools, pieces_of, strict=True)
        if parts is None
    ]
    published_rows = iter(own_rows(tokenizer, published))
    encoded: list[Encoded | RowError] = []
    for (template, _), parts, row_texts in zip(rows, pieces_of, texts, strict=True):
        if isinstance(parts, list):
            plain_ids = [next(plain) for _ in row_texts]
            try:
                encoded.append(_joined(template, parts, plain_ids, tokenizer))
            except RowError as error:
                encoded.append(error)
        else:
            row = parts or next(published_rows)
            encoded.append(row if isinstance(row, RowError) else Encoded(*row))
        if isinstance(encoded[-1], Encoded):
            try:
                _check_weight(encoded[-1])
            except RowError as error:
                encoded[-1] = error
    return encoded


def _check_weight(encoded: Encoded) -> None:
    if not any(encoded.weights):
        # Also where a turn has weight, but a template has no place for it.
        found, expected = "no token of the conversation has weight", "an answer with weight"
        raise RowError("turns", found, expected, "nothing to learn")


def _plain(parts: Sequence[Piece], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts of the pieces that are no special tokens, as the tokenizer is to get them.

    A tokenizer with the habit "always" puts a space before each: it gets them without theirs.
    """
    strips = habit(tokenizer) == "always"
    return [
        part.text.removeprefix(" ") if strips and not part.verbatim else part.text
        for part in parts
        if not part.special
    ]


def _joined(
    template: Template,
    parts: Sequence[Piece],
    plain_ids: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> Encoded:
    """The row of pieces, given the ids of their `_plain` text."""
    ids_of = special_ids(tokenizer, template.special_tokens, template.name)
    remaining = iter(plain_ids)
    ids = [tokenizer.bos_token_id] if needs_bos(template, tokenizer) else []
    weights = [0.0] * len(ids)
    # A user's text must not become one of these; an added token that is not special would, for
    # `encode_plain` splits special ones only.
    forbidden = {*ids_of.values(), *ids}
    for part in parts:
        part_ids = [ids_of[part.text]] if part.special else next(remaining)
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


def needs_bos(template: Template, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether BOS is put before a conversation.

    The tokenizer has one, and the template does not do without, nor begin with the same token, as
    ChatML with SmolLM2's.
    """
    if not template.bos or tokenizer.bos_token_id is None:
        return False
    return not (template.head or template.user.before).startswith(tokenizer.bos_token)


def truncate(encoded: Encoded, max_tokens: int) -> Encoded | None:
    """The first `max_tokens` tokens, None if none of them has weight; the caller counts the
    loss."""
    if len(encoded.ids) <= max_tokens:
        return encoded
    cut = Encoded(encoded.ids[:max_tokens], encoded.weights[:max_tokens])
    return cut if any(cut.weights) else None


def end_token(template: Template, tokenizer: PreTrainedTokenizerBase) -> str:
    """The special token that ends a last answer. ValueError if the tokenizer's template has
    none."""
    return own_end_tokens(tokenizer)[0] if template.is_tokenizers else template.end_token


def opening_ids(template: Template, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer's own template writes before an answer: a model says it (gpt-oss)."""
    return own_opening_ids(tokenizer) if template.is_tokenizers else []


def stop_token_ids(template: Template, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end an answer, that of `end_token` first. ValueError if the tokenizer lacks one.

    They are more than one where the tokenizer's own template ends earlier answers with another
    token than the last.
    """
    ends = own_end_tokens(tokenizer) if template.is_tokenizers else (template.end_token,)
    ids, _ = ids_and_habit(template, tokenizer)
    return [ids[end] for end in ends]


def ids_and_habit(
    template: Template, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, int], Habit]:
    """Ids of the template's special tokens, and the tokenizer's habit of a space before a text."""
    tokens = own_special_tokens(tokenizer) if template.is_tokenizers else template.special_tokens
    return special_ids(tokenizer, tokens, template.name), habit(tokenizer)
