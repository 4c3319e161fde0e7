"""A conversation as a reward model reads it: its score is that of the last token, so all who score must end it alike.

It ends with the token that ends the last answer, whatever the template writes after that token: there a sampled answer
ends, too. An answer that was cut ends with its own last token; nothing that the template writes after it follows. Both
begin with the ids of the prompt, so a rollout and the same text from a file are the same ids wherever the text has one
spelling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data.records import Turn
from data.templates import (
    Encoded,
    Piece,
    Template,
    encode,
    encode_pieces,
    end_token,
    prompt_pieces,
    stop_token_ids,
)


def scored(template: Template, turns: Sequence[Turn], tokenizer: Any, finished: bool = True) -> Encoded:
    """Ids and SFT weights of turns whose last is an answer, which may be blank; `finished`: it ended by itself.

    Raises as `encode`, but a conversation without weight is none of its errors.
    """
    answer = turns[-1]
    if answer.role == "assistant" and not answer.content.strip():
        prompt = encode(template, turns[:-1], tokenizer, add_generation_prompt=True)
        stop = stop_token_ids(template, tokenizer) if finished else []
        return Encoded(prompt.ids + stop, prompt.weights + [answer.loss_weight] * len(stop))
    parts = prompt_pieces(template, turns, tokenizer)
    end = end_token(template, tokenizer)
    last = max(index for index, part in enumerate(parts) if part.special and part.text == end)
    return encode_pieces(template, parts[: last + 1] if finished else _cut(parts[:last], answer.content), tokenizer)


def _cut(parts: list[Piece], content: str) -> list[Piece]:
    """Pieces that end with what was said: without what the template writes between it and the end token."""
    for index in reversed(range(len(parts))):
        if parts[index].special:
            break
        for said in (content, content.strip()):  # a template may trim
            if (at := parts[index].text.rfind(said)) >= 0:
                return [*parts[:index], parts[index]._replace(text=parts[index].text[: at + len(said)])]
    return parts
