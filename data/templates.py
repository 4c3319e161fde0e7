"""Chat templates: turns to text and to token ids with loss weights.

The strings are in `data.template_table`: a template is an entry there, one `Frame` for each role. The same as a
Hugging Face chat template: `data.template_jinja`.

How turns become tokens: the text is cut into pieces, and each is encoded alone.
* Special tokens (BOS once, at the start; the end token) are emitted by id. All other text is encoded with
  special tokens split, so nothing that a user writes becomes one.
* What stands before an answer is never one piece with it: "GPT4 Correct Assistant:" and " Hello". So the ids of
  a prompt are a prefix of the ids of every conversation that continues it, by construction and for every
  tokenizer: an answer is sampled in the very context that it is trained in.
* A tokenizer that puts a space of its own before every text (SentencePiece) gets pieces without theirs. A space
  that belongs to the content stays: OpenChat v2's "User:" and " x" are "▁User", ":", "▁▁x".

Departures: FastChat encodes a Vicuna conversation as one string, finds the answers by counting tokens and
drops what it miscounts. Pieces give the same mask without counting. Alpaca and Llama-2 encode whole strings too;
a SentencePiece tokenizer puts "▁" before an Alpaca answer here, as before every other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from data.own_template import own_end_token, own_pieces, own_special_tokens
from data.records import Turn, check_turns
from data.template_table import INPUT, TEMPLATES, Frame, Piece, Template, find

__all__ = ["TEMPLATES", "Encoded", "Frame", "Piece", "Template", "encode", "encode_pieces", "end_token", "find",
           "ids_and_habit", "pieces", "prompt_pieces", "stop_token_ids", "text", "truncate",
           "with_condition"]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids, and for each its weight in the SFT loss."""

    ids: list[int]
    weights: list[float]


def with_condition(template: Template, words: str) -> Template:
    """`template` with other words where its own name the class of an answer, such as GPT3 for GPT4 (C-RLFT).

    ValueError where the template has no place for them.
    """
    if not template.condition or not words.strip():
        able = ", ".join(name for name, entry in TEMPLATES.items() if entry.condition)
        raise ValueError(f"chat template {template.name} cannot say {words!r} of an answer; those that can: {able}")

    def said(own: str) -> str:
        return own.replace(template.condition, words)

    return replace(
        template,
        user=template.user._replace(before=said(template.user.before)),
        assistant=template.assistant._replace(before=said(template.assistant.before)),
        head=said(template.head),
        condition=words,
    )


def pieces(template: Template, turns: Sequence[Turn], add_generation_prompt: bool = False) -> list[Piece]:
    """The conversation in pieces, without BOS; with `add_generation_prompt` up to where the answer starts.

    The assistant's content and end token weigh 1 and all else 0, unless a turn has a weight of its own: then
    its content and end token weigh that. RowError (a ValueError) if the turns are not valid, or if an answer
    is asked for where the user does not have the last word.
    """
    check_turns(turns, last="user" if add_generation_prompt else None)
    if template.own:
        raise ValueError("the tokenizer's own chat template needs the tokenizer: name its folder")
    turns = _with_system(template, turns)
    out: list[Piece] = []
    own = template.head  # the template's own text: what follows a turn is one piece with what precedes the next
    for before, turn in zip((None, *turns), turns, strict=False):
        frame = template.frame(turn.role)
        weight = turn.loss_weight
        own += template.between_pairs if before and before.role == "assistant" else ""
        _add_own(out, template, own + frame.before)
        tail, end, own = frame.after.partition(template.end_token)
        if not end:
            tail, own = "", frame.after
        out.append(Piece(frame.lead + turn.content + tail, False, weight, turn.content[0] == " " and not frame.lead))
        out += _own_pieces(template, end, weight)
    own += template.assistant.before if add_generation_prompt else ""
    _add_own(out, template, own)
    return out


def _add_own(out: list[Piece], template: Template, text: str) -> None:
    """The template's text; what goes on without a space where the last piece ends is one with it, if neither counts."""
    new = _own_pieces(template, text, 0.0)
    if out and new and not (out[-1].special or out[-1].weight or new[0].special or text.startswith(" ")):
        out[-1] = out[-1]._replace(text=out[-1].text + new.pop(0).text)
    out += new


def _with_system(template: Template, turns: Sequence[Turn]) -> Sequence[Turn]:
    """The turns with the system message that the template puts first, or inside of the first question."""
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


def encode(template: Template, turns: Sequence[Turn], tokenizer: Any, add_generation_prompt: bool = False) -> Encoded:
    """Token ids and weights; BOS comes first if the tokenizer has one and the template does not do without.

    `tokenizer`: of transformers. ValueError: invalid turns (see `pieces`), a special token that the tokenizer
    lacks or finds in plain text, or a conversation (not a prompt) in which no token has weight.
    """
    encoded = encode_pieces(template, prompt_pieces(template, turns, tokenizer, add_generation_prompt), tokenizer)
    if not add_generation_prompt and not any(encoded.weights):
        raise ValueError("no token of the conversation has weight: it needs an assistant turn with weight")
    return encoded


def encode_pieces(template: Template, parts: Sequence[Piece], tokenizer: Any) -> Encoded:
    """Token ids and weights of pieces that begin a conversation. ValueError: see `encode`, of special tokens."""
    special_ids, habit = ids_and_habit(template, tokenizer)
    strips = habit == "always"
    plain = [
        part.text.removeprefix(" ") if strips and not part.verbatim else part.text for part in parts if not part.special
    ]
    encoded = iter(_encode_plain(tokenizer, plain))
    bos = [] if tokenizer.bos_token_id is None or not template.bos else [tokenizer.bos_token_id]
    ids, weights = list(bos), [0.0] * len(bos)
    forbidden = {*special_ids.values(), *bos}
    for part in parts:
        part_ids = [special_ids[part.text]] if part.special else next(encoded)
        if not part.special and not forbidden.isdisjoint(part_ids):
            raise ValueError(
                f"the tokenizer reads a special token out of the plain text {part.text[:80]!r}: "
                "mark the token as special in the tokenizer, so that it can be told from text"
            )
        ids += part_ids
        weights += [part.weight] * len(part_ids)
    return Encoded(ids, weights)


def prompt_pieces(
    template: Template, turns: Sequence[Turn], tokenizer: Any, add_generation_prompt: bool = False
) -> list[Piece]:
    """As `pieces`, and also for the tokenizer's own chat template."""
    if not template.own:
        return pieces(template, turns, add_generation_prompt)
    check_turns(turns, last="user" if add_generation_prompt else None)
    return own_pieces(tokenizer, turns, add_generation_prompt)


def truncate(encoded: Encoded, max_tokens: int) -> Encoded | None:
    """The first `max_tokens` tokens, None if none of them has weight. The tail is lost: the caller counts."""
    if len(encoded.ids) <= max_tokens:
        return encoded
    cut = Encoded(encoded.ids[:max_tokens], encoded.weights[:max_tokens])
    return cut if any(cut.weights) else None


def end_token(template: Template, tokenizer: Any) -> str:
    """The special token that ends an answer, as text. ValueError if the tokenizer's own template shows none."""
    return own_end_token(tokenizer) if template.own else template.end_token


def stop_token_ids(template: Template, tokenizer: Any) -> list[int]:
    """The ids that end an answer: the template's end token. ValueError if the tokenizer lacks it."""
    return [ids_and_habit(template, tokenizer)[0][end_token(template, tokenizer)]]


def _encode_plain(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    arguments = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    return tokenizer(texts, return_attention_mask=False, **arguments)["input_ids"] if texts else []


@lru_cache(maxsize=64)
def ids_and_habit(template: Template, tokenizer: Any) -> tuple[dict[str, int], str]:
    """Ids of the template's special tokens, and whether the tokenizer puts a space before a text.

    "always": "a b" is "a" and then "b", although " b" is not "b". "missing": it adds one only where there is
    none (" b" is "b"), so it needs no help, and would lose a space of the content by it. Else "never".
    """
    ids = {}
    for token in own_special_tokens(tokenizer) if template.own else template.special_tokens:
        token_id = tokenizer.convert_tokens_to_ids(token)
        if token_id is None or tokenizer.convert_ids_to_tokens(token_id) != token:
            raise ValueError(
                f"chat template {template.name} needs the token {token!r}, which is not among the "
                f"{len(tokenizer)} of this tokenizer: rayward extend MODEL --template {template.name} --out DIR "
                "adds it and its embedding"
            )
        ids[token] = token_id
    first, second, spaced, joined = _encode_plain(tokenizer, ["Hello", "world", " world", "Hello world"])
    if spaced == second:
        return ids, "missing"
    return ids, "always" if joined == first + second else "never"
