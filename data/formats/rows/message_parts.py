"""The parts of a message beside its text: calls of tools, their results, reasoning; and back.

OpenAI's field names, with those that came before them ("function_call", the role "function") and
the three that servers give reasoning. ShareGPT's are those of LLaMA-Factory: the speakers
"function_call", whose text is the JSON of one call or of several, and "observation".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rayward.data.formats.rows.meaning import NAMES, SPELLED
from rayward.data.formats.rows.meaning import REASONING as REASONING_BESIDE
from rayward.data.formats.rows.turns import SPEAKERS
from rayward.data.parts import call_of, calls_of, json_value
from rayward.data.records import Role, RowError, ToolCall, Turn, text_of

Row = Mapping[str, Any]
Calls = tuple[ToolCall, ...]

CALLERS = ("function_call", "tool_call")
RESULT = ("tool_call_id", "name")
"""What a tool's result has beside its text."""
REASONING = tuple(NAMES[REASONING_BESIDE].split())
REASONINGS = frozenset(name for name, meant in SPELLED.items() if meant in REASONING)


def message_parts(entry: Row, role: Role, where: str) -> dict[str, Any]:
    """The fields of a `Turn` that a message gives beside role, text and weight."""
    calls = calls_of(entry.get("tool_calls"), f"{where}.tool_calls")
    if entry.get("function_call") is not None:
        one = (call_of(entry["function_call"], f"{where}.function_call"),)
        check_one_call(calls or one, one, f"{where}.function_call")
        calls = calls or one
    parts: dict[str, Any] = {"tool_calls": calls} if calls else {}
    reasoning = reasoning_of(entry, f"{where}.")
    if reasoning is not None:
        parts["reasoning"] = reasoning
    if role == "tool":
        for name in RESULT:
            if entry.get(name) not in (None, ""):
                parts[name] = text_of(entry[name], f"{where}.{name}")
    return parts


def check_one_call(calls: Calls, others: Calls, field: str) -> None:
    """RowError for calls that are told twice and differ, whatever their ids."""
    one, two = ([(call.name, call.arguments) for call in given] for given in (calls, others))
    if one != two:
        raise RowError(field, f"{len(others)} other calls", "the same calls", "two lists of calls")


def reasoning_of(fields: Row, where: str = "") -> str | None:
    """What the assistant thought, under one of REASONING; None if there is none.

    `where`: what stands before a field's name. RowError for two texts that differ.
    """
    given = [name for name in fields.keys() & REASONINGS if fields[name] not in (None, "")]
    given.sort(key=lambda name: REASONING.index(SPELLED[name]))
    texts = {text_of(fields[name], f"{where}{name}") for name in given}
    if len(texts) > 1:
        field, found = f"{where}{given[1]}", f"another text than in {given[0]}"
        raise RowError(field, found, "one text", "two texts of reasoning")
    return texts.pop() if texts else None


def is_result(entry: Row) -> bool:
    """Whether a turn is a tool's result."""
    speaker = entry.get("role") if entry.get("role") is not None else entry.get("from")
    return isinstance(speaker, str) and SPEAKERS.get(speaker.strip().lower()) == "tool"


def is_caller(speaker: object) -> bool:
    """Whether what a ShareGPT speaker says is the JSON of calls."""
    return isinstance(speaker, str) and speaker.strip().lower() in CALLERS


def calls_in_text(value: object, where: str) -> tuple[ToolCall, ...]:
    """The calls, one or several, that a speaker of CALLERS says as JSON text."""
    calls = json_value(text_of(value, where), where)
    if not isinstance(calls, list):
        return (call_of(calls, where),)
    return calls_of(calls, where)


def message(turn: Turn) -> dict[str, Any]:
    """A turn as an OpenAI message; a weight where it has one of its own."""
    row: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.weight is not None:
        row["weight"] = turn.weight
    if turn.reasoning is not None:
        row["reasoning_content"] = turn.reasoning
    if turn.tool_calls:
        row["tool_calls"] = [_openai_call(call) for call in turn.tool_calls]
    labels = {"tool_call_id": turn.tool_call_id, "name": turn.name}
    return row | {name: label for name, label in labels.items() if label}


def messages_of(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Turns as OpenAI messages for somebody who reads them: without loss weights."""
    return [message(replace(turn, weight=None)) for turn in turns]


def _openai_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return ({"id": call.id} if call.id else {}) | {"type": "function", "function": function}


def tools_row(tools: str | None) -> dict[str, Any]:
    """The field with the tools of a record, where it has any."""
    return {"tools": json.loads(tools)} if tools else {}
