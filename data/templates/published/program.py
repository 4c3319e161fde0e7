"""The chat template of a tokenizer as a program: messages in, text out. And marks, to find them.

A template that writes the day's date (Llama 3.2, gpt-oss) gets that of the tokenizer's folder,
where prepare puts it, so that a run's rows are the same on every day; else that of the process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Of the private use area, so that no template treats it as text of a language. A conversation that
# holds a mark itself is not mistaken: its own rendering must be the marked one with contents put
# in.
MARK = "\ue000{}\ue001"
MARKS = re.compile("\ue000([0-9]+)\ue001")
DATE = "template_date"
"""Of tokenizer_config.json: the day of every row, as 2025-12-31."""
# Of the process: a shape is rendered once, and the clock must not part it from a row.
TODAY = date.today().isoformat()


class State(NamedTuple):
    """What the rendering of a shape depends on; a tokenizer can be given another template.

    It is part of the cache's key: the tokenizer is hashed by identity, and stays the same object.
    """

    template: str
    named: tuple[tuple[str, Any], ...]  # special_tokens_map: eos_token and so on
    day: str


def state_of(tokenizer: PreTrainedTokenizerBase) -> State:
    """ValueError: no chat template."""
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template of its own; choose a template by name")
    return State(
        tokenizer.get_chat_template(), tuple(tokenizer.special_tokens_map.items()), _day(tokenizer)
    )


def _day(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.init_kwargs.get(DATE) or TODAY)


def clock(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], str]:
    """What writes the date for a template, given its form."""
    return datetime.fromisoformat(_day(tokenizer)).strftime


def apply(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    prompt: bool,
    tools: str | None = None,
) -> str:
    """The rendering of messages, and of tools as JSON text. Raises what the template raises."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template(
        conversations=[list(messages)],
        # Not in place of None: some templates ask whether there are any, others how many.
        tools=json.loads(tools) if tools else None,
        chat_template=tokenizer.get_chat_template(),
        add_generation_prompt=prompt,
        strftime_now=clock(tokenizer),
        **tokenizer.special_tokens_map,
    )
    text: str = rendered[0]
    return text
