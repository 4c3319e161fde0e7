"""The tokenizer's own chat template, applied: to what is said, and to marks in place of it.

A template that writes the day's date (Llama 3.2, gpt-oss) gets that of the tokenizer's folder,
where prepare puts it, so that a run's rows are the same on every day; else that of the process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import date, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from rayward.data.records import Role, RowError, Turn

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


def render(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], contents: Sequence[str], prompt: bool
) -> str:
    """The turns with `contents` as their contents. Raises what the template raises."""
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [
        {"role": turn.role, "content": text} for turn, text in zip(turns, contents, strict=True)
    ]
    rendered, _ = render_jinja_template(
        conversations=[messages],
        chat_template=tokenizer.get_chat_template(),
        add_generation_prompt=prompt,
        strftime_now=clock(tokenizer),
        **tokenizer.special_tokens_map,
    )
    return rendered[0]


def rendered(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], contents: Sequence[str], prompt: bool
) -> str:
    """RowError where the template raises: of the first turn after all that it renders."""
    try:
        return render(tokenizer, turns, contents, prompt)
    except Exception as error:  # a template is a foreign program: it raises what it likes
        # The longest beginning that it renders: what it cannot take is the turn after that. All are
        # tried, since some beginnings end where no template ends.
        last = 0
        for end in range(1, len(turns)):
            try:
                render(tokenizer, turns[:end], contents[:end], False)
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
def marked(
    tokenizer: PreTrainedTokenizerBase, state: State, roles: tuple[Role, ...], prompt: bool
) -> str | RowError:
    """The rendering of these roles with marks, or why there is none: cached, so it is returned."""
    turns = [Turn(role, MARK.format(index)) for index, role in enumerate(roles)]
    try:
        return rendered(tokenizer, turns, [turn.content for turn in turns], prompt)
    except RowError as error:
        return error


def where(turns: Sequence[Turn], index: int) -> str:
    """A turn, for people."""
    return f"turns[{index}] ({turns[index].role})"
