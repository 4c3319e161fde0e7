"""The parts of a message beside its text: calls of tools, their results, reasoning; and back.

OpenAI's field names, with those that came before them ("function_call", the role "function") and
the three that servers give reasoning. ShareGPT's are those of LLaMA-Factory: the speakers
"function_call", whose text is the JSON of one call or of several, and "observation".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayward.data.parts import call_of, calls_of, json_value
from rayward.data.records import Role, RowError, ToolCall, Turn, text_of

Row = Mapping[str, Any]

CALLERS = ("function_call", "tool_call")
TOOL_SPEAKERS: dict[str, Role] = {
    **dict.fromkeys(CALLERS, "assistant"),
    **dict.fromkeys(("observation", "tool", "tool_response"), "tool"),
}
REASONING = ("reasoning_content", "reasoning", "thinking")


def message_parts(entry: Row, where: str) -> dict[str, Any]:
    """The fields of a `Turn` that an OpenAI message gives beside role, content and weight."""
    calls = calls_of(entry.get("tool_calls"), f"{where}.tool_calls")
    if not calls and entry.get("function_call") is not None:
        calls = (call_of(entry["function_call"], f"{where}.function_call"),)
    parts: dict[str, Any] = {"tool_calls": calls} if calls else {}
    if (reasoning := _reasoning(entry, where)) is not None:
        parts["reasoning"] = reasoning
    if entry.get("role") in ("tool", "function"):
        for name in ("tool_call_id", "name"):
            if entry.get(name) not in (None, ""):
                parts[name] = text_of(entry[name], f"{where}.{name}")
    return parts


def content_of(entry: Row, where: str, calls: bool) -> str:
    """The text of a message, which may be none or blank where it has `calls`."""
    content = entry.get("content")
    if calls and (content is None or (isinstance(content, str) and not content.strip())):
        return content or ""
    return text_of(content, f"{where}.content")


def _reasoning(entry: Row, where: str) -> str | None:
    given = [name for name in REASONING if entry.get(name) not in (None, "")]
    texts = {text_of(entry[name], f"{where}.{name}") for name in given}
    if len(texts) > 1:
        field, found = f"{where}.{given[1]}", f"another text than in {given[0]}"
        raise RowError(field, found, "one text", "two texts of reasoning")
    return texts.pop() if texts else None


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


def _openai_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return ({"id": call.id} if call.id else {}) | {"type": "function", "function": function}


def spoken_turn(speaker: object, role: Role, value: object, where: str) -> Turn:
    """A ShareGPT turn, whose text is that of calls where the speaker is one of CALLERS."""
    if speaker not in CALLERS:
        return Turn(role, text_of(value, where))
    calls = json_value(text_of(value, where), where)
    if not isinstance(calls, list):
        return Turn(role, "", tool_calls=(call_of(calls, where),))
    return Turn(role, "", tool_calls=calls_of(calls, where))
