"""What must hold of every row in a tokenizer's own chat template, whatever the template and the
tokenizer.
"""

from __future__ import annotations

from typing import Any

from rayward.data.records import Turn
from rayward.data.templates.special_tokens import own_special_tokens
from rayward.data.templates.template import Encoded, encode, find, stop_token_ids

OWN = find("tokenizer")


def messages(turns: tuple[Turn, ...]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def trained(encoded: Encoded, tokenizer: Any) -> list[str]:
    """The text of each stretch of tokens that have weight."""
    runs: list[list[int]] = []
    before = 0.0
    for token, weight in zip(encoded.ids, encoded.weights, strict=True):
        if weight:
            runs = [*runs[:-1], [*runs[-1], token]] if before else [*runs, [token]]
        before = weight
    return [tokenizer.decode(run) for run in runs]


def check_row(tokenizer: Any, turns: tuple[Turn, ...]) -> bool:
    """Whether a stretch of the row is in pieces, which it is exactly where the whole string does
    not keep every prompt as its prefix, or somebody writes a special token. Else its ids are those
    of the whole string; always every prompt is a prefix, and each answer is trained up to its end.
    """
    whole, served = (
        encode(OWN, turns, tokenizer),
        tokenizer.apply_chat_template(messages(turns), return_dict=False),
    )
    said = any(token in turn.content for turn in turns for token in own_special_tokens(tokenizer))
    kept = True
    for end in (index for index, turn in enumerate(turns) if turn.role == "assistant"):
        prompt = encode(OWN, turns[:end], tokenizer, True)
        assert prompt.ids == whole.ids[: len(prompt.ids)] and whole.weights[len(prompt.ids)] == 1.0
        assert whole.weights[len(prompt.ids) - 1] == 0.0, "training begins where the prompt ends"
        asked = tokenizer.apply_chat_template(
            messages(turns[:end]), return_dict=False, add_generation_prompt=True
        )
        kept &= served[: len(asked)] == asked
        assert prompt.ids == asked or prompt.apart
    assert whole.apart == (said or not kept), "pieces where they must be, and nowhere else"
    assert whole.apart or whole.ids == served
    ends = tokenizer.convert_ids_to_tokens(stop_token_ids(OWN, tokenizer))
    answers = [turn.content for turn in turns if turn.role == "assistant"]
    for text, answer in zip(trained(whole, tokenizer), answers, strict=True):
        end = next(end for end in ends if text.endswith(end))
        assert answer.strip() in text and len(text) < len(answer + end) + 60
    return whole.apart
