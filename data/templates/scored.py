"""A conversation as a reward model reads it.

Its score is that of the last token, so all who score must end it alike. It ends with the token that
ends the last answer, whatever the template writes after that token: there a sampled answer ends,
too. An answer that was cut ends with its own last token; nothing that the template writes after it
follows. Both begin with the ids of the prompt, so a rollout and the same text from a file are the
same ids wherever the text has one spelling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rayward.data.records import Turn, check_turns
from rayward.data.templates.published.tokens import own_scored_row
from rayward.data.templates.template import Encoded, Template, encode, stop_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def scored(
    template: Template,
    turns: Sequence[Turn],
    tokenizer: PreTrainedTokenizerBase,
    finished: bool = True,
    tools: str | None = None,
) -> Encoded:
    """Ids, and weight 1 at the last answer with its end token. The answer may be blank.

    `finished`: it ended by itself. Raises as `encode`.
    """
    *before, answer = (replace(turn, weight=0.0) for turn in turns)
    apart = False
    # `encode` refuses a blank turn, but a policy may end at once.
    if answer.role == "assistant" and not (answer.content.strip() or answer.tool_calls):
        prompt_ids = encode(template, before, tokenizer, True, tools).ids
        answer_ids = stop_token_ids(template, tokenizer)[:1] if finished else []
    elif template.is_tokenizers:
        check_turns(turns, last="assistant")
        # The weights mark the answer: the first 1 is where it begins.
        row = own_scored_row(tokenizer, (*before, replace(answer, weight=1.0)), finished, tools)
        start, apart = row.weights.index(1.0), row.apart
        prompt_ids, answer_ids = row.ids[:start], row.ids[start:]
    elif finished:
        answered = (*before, replace(answer, weight=1.0))
        whole = encode(template, answered, tokenizer, tools=tools)
        places = [place for place, weight in enumerate(whole.weights) if weight]
        prompt_ids, answer_ids = whole.ids[: places[0]], whole.ids[places[0] : places[-1] + 1]
    else:
        # An answer is encoded by itself, so without its tail it is what it is in a template that
        # writes none.
        plain = replace(template, assistant=template.assistant._replace(after=template.end_token))
        prompt_ids = encode(template, before, tokenizer, True, tools).ids
        # Of the plain template, whose earlier answers end otherwise than those of `prompt_ids`.
        start = len(encode(plain, before, tokenizer, add_generation_prompt=True).ids)
        answer_ids = encode(plain, (*before, replace(answer, weight=1.0)), tokenizer).ids[start:-1]
    return Encoded(
        prompt_ids + answer_ids, [0.0] * len(prompt_ids) + [1.0] * len(answer_ids), apart
    )
