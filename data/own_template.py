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

Run = tuple[str, bool, float, bool]  # as `data.templates.Piece`
MARK = "\ue000{}\ue001"  # of the private use area; a said mark cannot be mistaken, since both renderings must agree
PROBE = (Turn("user", "q"), Turn("assistant", "a"), Turn("user", "r"), Turn("assistant", "b"))


def own_special_tokens(tokenizer: Any) -> list[str]:
    """All tokens that the tokenizer holds special, longest first."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*added, *tokenizer.all_special_tokens}, key=lambda token: (-len(token), token))


def own_runs(tokenizer: Any, turns: Sequence[Turn], add_generation_prompt: bool = False) -> list[Run]:
    """The conversation in pieces (see `data.templates.Piece`), BOS among them where the template writes it.

    An assistant turn's weight (1 if it has none) holds for all that its `{% generation %}` block encloses.
    ValueError: no chat template, none with `{% generation %}`, or one that rewrites what is said.
    """
    _check(tokenizer)
    return _runs(tokenizer, turns, add_generation_prompt)


def own_end_token(tokenizer: Any) -> str:
    """The special token that ends an answer. ValueError if the template trains none."""
    return _end_token(tokenizer, tokenizer.chat_template)


@lru_cache(maxsize=64)
def _end_token(tokenizer: Any, template: str | None) -> str:
    ends = [text for text, special, weight, _ in own_runs(tokenizer, PROBE[:2]) if special and weight]
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
    prompt = "".join(text for text, *_ in _runs(tokenizer, PROBE[:3], True))
    whole = _runs(tokenizer, PROBE, False)
    start = max((index + 1 for index, run in enumerate(whole) if run[2]), default=0)
    if not start:
        raise ValueError("the tokenizer's chat template encloses nothing in {% generation %}")
    while start and whole[start - 1][2]:
        start -= 1
    before = "".join(text for text, *_ in whole[:start])
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


def _runs(tokenizer: Any, turns: Sequence[Turn], prompt: bool) -> list[Run]:
    marks = [MARK.format(index) for index in range(len(turns))]
    marked, spans = _render(tokenizer, turns, marks, prompt)
    parts = re.split("(" + "|".join(map(re.escape, marks)) + ")", marked)
    whole, _ = _render(tokenizer, turns, [turn.content for turn in turns], prompt)
    special = re.compile("(" + "|".join(map(re.escape, own_special_tokens(tokenizer))) + ")")
    answers = [turn.loss_weight for turn in turns if turn.role == "assistant"]
    weight_of = dict(zip([tuple(span) for span in spans], answers, strict=True))
    runs: list[Run] = []
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
            runs.append((content, False, inside if inside is not None else turn.weight or 0.0, False))
            here += len(content)
        else:
            runs += _own(part, at, weight_of, special)
            here += len(part)
        at += len(part)
    if here != len(whole):
        raise ValueError("the tokenizer's chat template writes other text around other words; choose one by name")
    return _joined(runs)


def _own(part: str, at: int, weight_of: dict[tuple[int, int], float], special: re.Pattern[str]) -> list[Run]:
    """The template's own text, cut at the edges of the trained spans and at special tokens."""
    edges = sorted({0, len(part), *(edge - at for span in weight_of for edge in span if 0 < edge - at < len(part))})
    runs: list[Run] = []
    for start, end in pairwise(edges):
        weight = next((w for (first, last), w in weight_of.items() if first <= at + start < last), 0.0)
        for text in special.split(part[start:end]):
            if text:
                runs.append((text, special.fullmatch(text) is not None, weight, False))
    return runs


def _joined(runs: list[Run]) -> list[Run]:
    """Neighbouring text of one weight as one piece, as whoever applies the template encodes it."""
    out: list[Run] = []
    for text, special, weight, _ in runs:
        if out and not special and not out[-1][1] and out[-1][2] == weight:
            out[-1] = (out[-1][0] + text, False, weight, out[-1][3])
        else:
            out.append((text, special, weight, not out or out[-1][1]))
    return out
