"""The chat template that a tokenizer brings, used like those of our table: in pieces, with weights.

It is a Jinja program, so its frames are not known in advance. A conversation is rendered twice, once with marks
in place of what is said; the template's own text is then what stands between the marks. Special tokens count only
there, so that none that a user writes becomes one. What is trained is what `{% generation %}` encloses. A template
may trim what is said, and nothing else: one that rewrites it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from data.records import Turn
from data.template_table import Piece

MARK = "\ue000{}\ue001"  # of the private use area; a said mark cannot be mistaken, since both renderings must agree
PROBE = (Turn("user", "q"), Turn("assistant", "a"), Turn("user", "r"), Turn("assistant", "b"))


def own_special_tokens(tokenizer: Any) -> list[str]:
    """All tokens that the tokenizer holds special, longest first."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*added, *tokenizer.all_special_tokens}, key=lambda token: (-len(token), token))


def own_pieces(tokenizer: Any, turns: Sequence[Turn], add_generation_prompt: bool = False) -> list[Piece]:
    """The conversation in pieces, BOS among them where the template writes it.

    An assistant turn's weight (1 if it has none) holds for all that its `{% generation %}` block encloses.
    ValueError: no chat template, none with `{% generation %}`, or one that rewrites what is said.
    """
    _check(tokenizer)
    return _pieces(tokenizer, turns, add_generation_prompt)


def own_end_token(tokenizer: Any) -> str:
    """The special token that ends an answer. ValueError if the template trains none."""
    return _end_token(tokenizer, tokenizer.chat_template)


@lru_cache(maxsize=64)
def _end_token(tokenizer: Any, template: str | None) -> str:
    ends = [piece.text for piece in own_pieces(tokenizer, PROBE[:2]) if piece.special and piece.weight]
    if not ends:
        raise ValueError(
            "the tokenizer's chat template has no special token after the answer inside {% generation %}: "
            "a model trained so never learns to stop; move {% endgeneration %} behind the end token"
        )
    return ends[0]


@lru_cache(maxsize=64)
def _checked(tokenizer: Any, template: str) -> None:
    if not re.search(r"\{%-?\s*generation\s*-?%\}", template):
        raise ValueError(
            "the tokenizer's chat template has no {% generation %} ... {% endgeneration %} around the answer, so what "
            "is to be trained cannot be told; add them, or choose a template by name"
        )
    prompt = "".join(piece.text for piece in _pieces(tokenizer, PROBE[:3], True))
    whole = _pieces(tokenizer, PROBE, False)
    start = max((index + 1 for index, piece in enumerate(whole) if piece.weight), default=0)
    if not start:
        raise ValueError("the tokenizer's chat template encloses nothing in {% generation %}")
    while start and whole[start - 1].weight:
        start -= 1
    before = "".join(piece.text for piece in whole[:start])
    if before != prompt:
        raise ValueError(
            f"the tokenizer's chat template asks for an answer after {prompt[-60:]!r}, but {{% generation %}} begins "
            f"after {before[-60:]!r}: an answer would be trained in another context than it is sampled in"
        )


def _check(tokenizer: Any) -> None:
    if not isinstance(tokenizer.chat_template, str):
        raise ValueError("the tokenizer has no chat template of its own; choose a template by name")
    _checked(tokenizer, tokenizer.chat_template)


def _render(tokenizer: Any, turns: Sequence[Turn], said: Sequence[str], prompt: bool) -> tuple[str, list[Any]]:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": turn.role, "content": text} for turn, text in zip(turns, said, strict=True)]
    rendered, spans = render_jinja_template(
        conversations=[messages],
        chat_template=tokenizer.chat_template,
        return_assistant_tokens_mask=True,
        add_generation_prompt=prompt,
        **tokenizer.special_tokens_map,
    )
    return rendered[0], spans[0]


def _pieces(tokenizer: Any, turns: Sequence[Turn], prompt: bool) -> list[Piece]:
    marks = [MARK.format(index) for index in range(len(turns))]
    marked, spans = _render(tokenizer, turns, marks, prompt)
    parts = re.split("(" + "|".join(map(re.escape, marks)) + ")", marked)
    whole, _ = _render(tokenizer, turns, [turn.content for turn in turns], prompt)
    special = re.compile("(" + "|".join(map(re.escape, own_special_tokens(tokenizer))) + ")")
    answers = [turn.loss_weight for turn in turns if turn.role == "assistant"]
    weight_of = dict(zip([tuple(span) for span in spans], answers, strict=True))
    out: list[Piece] = []
    at = here = 0  # where we are in `marked` and in `whole`
    for number, part in enumerate(parts):
        if part in marks:
            turn = turns[marks.index(part)]
            following = parts[number + 1]
            content = next((c for c in (turn.content, turn.content.strip())
                            if whole.startswith(c + following, here)), None)  # fmt: skip
            if content is None:
                raise ValueError(
                    f"the tokenizer's chat template rewrites what the {turn.role} says ({turn.content[:60]!r}), so "
                    "special tokens in it cannot be told from the template's; choose a template by name"
                )
            inside = next((weight for (start, end), weight in weight_of.items() if start <= at < end), None)
            out.append(Piece(content, False, inside if inside is not None else turn.weight or 0.0))
            here += len(content)
        else:
            out += _own(part, at, weight_of, special)
            here += len(part)
        at += len(part)
    if here != len(whole):
        raise ValueError("the tokenizer's chat template writes other text around other words; choose one by name")
    return _joined(out)


def _own(part: str, at: int, weight_of: dict[tuple[int, int], float], special: re.Pattern[str]) -> list[Piece]:
    """The template's own text, cut at the edges of the trained spans and at special tokens."""
    edges = sorted({0, len(part), *(edge - at for span in weight_of for edge in span if 0 < edge - at < len(part))})
    out: list[Piece] = []
    for start, end in pairwise(edges):
        weight = next((w for (first, last), w in weight_of.items() if first <= at + start < last), 0.0)
        for text in special.split(part[start:end]):
            if text:
                out.append(Piece(text, special.fullmatch(text) is not None, weight))
    return out


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbouring text of one weight as one piece, as whoever applies the template encodes it."""
    out: list[Piece] = []
    for piece in pieces:
        last = out[-1] if out else None
        if last and not piece.special and not last.special and last.weight == piece.weight:
            out[-1] = last._replace(text=last.text + piece.text)
        else:
            out.append(piece._replace(verbatim=last is None or last.special))
    return out
