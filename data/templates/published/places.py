"""Which parts of a conversation a chat template has a place for, found out by rendering.

Templates differ in where they look for a part, and many have no place for one: they then leave it
out without a word. So each way in use is tried with marks in place of the part, once a template,
and the first whose rendering shows the marks is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rayward.data.parts import json_text, json_value
from rayward.data.records import RowError, Turn, parts_of
from rayward.data.templates.published.program import MARK, State, apply

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
MARKED = (MARK.format(0), MARK.format(1))
ASKS = {"role": "user", "content": "Hello there"}

Arguments = Literal["object", "text"]


class Places(NamedTuple):
    """Where a template takes each part.

    `reasoning`: the key of a message, "" where there is none. `arguments`: what those of a call
    are, None where it has no place for calls. `silent`: the content of a turn that only calls.
    """

    tools: bool
    reasoning: str
    arguments: Arguments | None
    silent: str | None


NOWHERE = Places(False, "", None, "")
"""The places of a template that has none, which do for turns without parts."""


@lru_cache(maxsize=64)
def places_of(tokenizer: PreTrainedTokenizerBase, state: State) -> Places:
    """The places of the tokenizer's template."""

    def shows(*answer: dict[str, Any], tools: str | None = None, never: str = "") -> bool:
        try:
            text = apply(tokenizer, (ASKS, *answer), not answer, tools)
        except Exception:  # a template is a foreign program: it raises what it likes
            return False
        return all(mark in text for mark in MARKED) and not (never and never in text)

    thinks = {"role": "assistant", "content": MARKED[0]}
    reasoning = next((key for key in REASONING_KEYS if shows(thinks | {key: MARKED[1]})), "")
    word = {"type": "string", "description": MARKED[1]}
    function = {
        "name": "look_up",
        "description": MARKED[0],
        "parameters": {"type": "object", "properties": {"word": word}, "required": ["word"]},
    }
    tools = shows(tools=json_text([{"type": "function", "function": function}]))
    # True is `true` in JSON: a template that puts the object itself writes Python's text of it.
    arguments = {"word": MARKED[1], "sure": True}
    ways: tuple[tuple[Arguments, Any], ...] = (
        ("object", arguments),
        ("text", json_text(arguments)),
    )
    contents: tuple[str | None, ...] = ("", None)
    for silent in contents:
        for kind, value in ways:
            call = {"type": "function", "function": {"name": MARKED[0], "arguments": value}}
            calls = {"role": "assistant", "content": silent, "tool_calls": [call]}
            if shows(calls, never=str(arguments)):
                return Places(tools, reasoning, kind, silent)
    return NOWHERE._replace(tools=tools, reasoning=reasoning)


def refuse_without_place(places: Places, turns: Sequence[Turn], tools: str | None) -> None:
    """RowError: the first part that the template leaves out wherever it stands."""
    has = {
        "tools": places.tools,
        "tool calls": places.arguments is not None,
        "reasoning": bool(places.reasoning),
        "results of tools": True,  # a message like others: whether it is rendered, marks show
    }
    for field, found, what in parts_of(turns, tools):
        if not has[what]:
            raise no_place(field, found, what)


def no_place(field: str, found: str, what: str) -> RowError:
    """The error of a part for which a template has no place."""
    name = {"tools": "tools", "reasoning": "reasoning"}.get(what, "tool_calls")
    expected = f"a template with a place for {what} (ignore {name} to use the rest of the row)"
    return RowError(field, found, expected, f"the chat template has no place for {what}")


def message_of(places: Places, turn: Turn, content: str) -> dict[str, Any]:
    """A turn with this content as the message that the template takes."""
    message: dict[str, Any] = {"role": turn.role, "content": content}
    if turn.reasoning is not None and places.reasoning:
        message[places.reasoning] = turn.reasoning
    if turn.tool_calls and places.arguments:
        message["content"] = content if content.strip() else places.silent
        message["tool_calls"] = [
            ({"id": call.id} if call.id else {})
            | {
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": json_value(call.arguments, "arguments")
                    if places.arguments == "object"
                    else call.arguments,
                },
            }
            for call in turn.tool_calls
        ]
    labels = {"tool_call_id": turn.tool_call_id, "name": turn.name}
    return message | {name: label for name, label in labels.items() if label}
