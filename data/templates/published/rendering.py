"""The tokenizer's own chat template, applied: to what is said, and to marks in place of it.

A template that writes the day's date (Llama 3.2, gpt-oss) gets that of the tokenizer's folder,
where prepare puts it, so that a run's rows are the same on every day; else that of the process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import date, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from rayward.data.records import Role, RowError, Turn

# Of the private use area; a said mark cannot be mistaken, since both renderings must agree.
MARK = "\ue000{}\ue001"
MARKS = re.compile("\ue000([0-9]+)\ue001")
DATE = "template_date"
"""Of tokenizer_config.json: the day of every row, as 2025-12-31."""
# Of the process: a shape is rendered once, and the clock must not part it from a row.
TODAY = date.today().isoformat()


class State(NamedTuple):
    """What the rendering of a shape depends on; a tokenizer can be given another template or end
    token.
    """

    template: str
    named: tuple[tuple[str, Any], ...]
    day: str


def state_of(tokenizer: Any) -> State:
    """ValueError: no chat template."""
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template of its own; choose a template by name")
    return State(
        tokenizer.get_chat_template(), tuple(tokenizer.special_tokens_map.items()), _day(tokenizer)
    )


def _day(tokenizer: Any) -> str:
    return str(tokenizer.init_kwargs.get(DATE) or TODAY)


def clock(tokenizer: Any) -> Callable[[str], str]:
    """What writes the date for a template, given its form."""
    return datetime.fromisoformat(_day(tokenizer)).strftime


def render(tokenizer: Any, turns: Sequence[Turn], said: Sequence[str], prompt: bool) -> str:
    """The turns with `said` as their contents. Raises what the template raises."""
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [
        {"role": turn.role, "content": text} for turn, text in zip(turns, said, strict=True)
    ]
    rendered, _ = render_jinja_template(
        conversations=[messages],
        chat_template=tokenizer.get_chat_template(),
        add_generation_prompt=prompt,
        strftime_now=clock(tokenizer),
        **tokenizer.special_tokens_map,
    )
    return rendered[0]


def rendered(tokenizer: Any, turns: Sequence[Turn], said: Sequence[str], prompt: bool) -> str:
    """RowError where the template raises: of the first turn after all that it renders."""
    try:
        return render(tokenizer, turns, said, prompt)
    except Exception as error:  # a template is a foreign program: it raises what it likes
        last = 0
        for end in range(1, len(turns)):
            try:
                render(tokenizer, turns[:end], said[:end], False)
                last = end
            except Exception:
                continue
        raise RowError(
            where(turns, last),
            f"{type(error).__name__}: {error}"[:200],
            "a turn that the chat template renders",
            "the chat template raises",
        ) from None


@lru_cache(maxsize=1024)
def marked(tokenizer: Any, state: State, roles: tuple[Role, ...], prompt: bool) -> str | RowError:
    """The rendering of these roles with marks, or why there is none: cached, so an error is
    returned.
    """
    turns = [Turn(role, MARK.format(index)) for index, role in enumerate(roles)]
    try:
        return rendered(tokenizer, turns, [turn.content for turn in turns], prompt)
    except RowError as error:
        return error


def where(turns: Sequence[Turn], index: int) -> str:
    """A turn, for people."""
    return f"turns[{index}] ({turns[index].role})"
