"""What a conversation has beside texts: calls of tools, and the schemas of those on offer.

Records stay plain and hashable: they hold JSON as text. Its form is `json_text`'s, so that equal
values are equal text; what a row has as text is read and written anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayward.data.values import (
    RowError,
    describe,
    list_of,
    object_of,
    objects_of,
    surrogate_in,
    text_of,
)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the assistant calls. `arguments`: a JSON object as text. `id`: the row's own."""

    name: str
    arguments: str
    id: str = ""


def json_text(value: object) -> str:
    """A JSON value as text, as templates write it. ValueError: NaN, or no JSON value."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def json_value(value: object, field: str) -> Any:
    """The value of JSON text; any other value as it is. RowError: text that is no JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise RowError(field, describe(value), "JSON", "text that is no JSON") from None


def tools_of(value: object, field: str = "tools") -> str | None:
    """The schemas of tools, a list or its JSON text, as JSON text; None where there are none.

    A bare function ({"name", "parameters"}) becomes a tool of the type "function", as OpenAI has
    it. RowError: a tool without a name.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    tools = [
        tool if tool.get("function") is not None else {"type": "function", "function": tool}
        for _, tool in objects_of(json_value(value, field), field)
    ]
    for index, tool in enumerate(tools):
        function = object_of(tool["function"], f"{field}[{index}].function")
        text_of(function.get("name"), f"{field}[{index}].function.name")
    return _checked_text(tools, field) if tools else None


def tool_names(tools: str) -> list[str]:
    """The names in what `tools_of` gave."""
    return [tool["function"]["name"] for tool in json.loads(tools)]


def call_of(value: object, field: str) -> ToolCall:
    """A call as OpenAI has it, {"id", "function": {"name", "arguments"}}, or its function alone."""
    call = object_of(json_value(value, field), field)
    kind = call.get("type")
    if kind not in (None, "function"):
        raise RowError(f"{field}.type", describe(kind), "function", "call of another kind")
    function: Mapping[str, Any] = call
    where = field
    if call.get("function") is not None:
        where = f"{field}.function"
        function = object_of(call["function"], where)
    name = text_of(function.get("name"), f"{where}.name")
    identity = call.get("id")
    arguments = arguments_text(function.get("arguments"), f"{where}.arguments")
    return ToolCall(name, arguments, "" if identity is None else text_of(identity, f"{field}.id"))


def calls_of(value: object, field: str) -> tuple[ToolCall, ...]:
    """The calls of a list; none where there is no list."""
    if value is None:
        return ()
    calls = list_of(json_value(value, field), field)
    return tuple(call_of(call, f"{field}[{index}]") for index, call in enumerate(calls))


def arguments_text(value: object, field: str) -> str:
    """Arguments, an object or its JSON text, as JSON text. None and "" are no arguments: {}."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return "{}"
    return _checked_text(dict(object_of(json_value(value, field), field)), field)


def check_tools(tools: object, field: str = "tools") -> None:
    """RowError unless `tools` is text that `tools_of` gives."""
    if tools_of(text_of(tools, field), field) is None:
        raise RowError(field, describe(tools), "the schemas of tools", "no tools")


def check_calls(calls: object, field: str) -> None:
    """RowError unless `calls` are those of a turn."""
    for index, call in enumerate(list_of(calls, field)):
        where = f"{field}[{index}]"
        if not isinstance(call, ToolCall):
            raise RowError(where, describe(call), "a call of a tool", "wrong type")
        text_of(call.name, f"{where}.name")
        arguments_text(text_of(call.arguments, f"{where}.arguments"), f"{where}.arguments")
        if call.id != "":
            text_of(call.id, f"{where}.id")


def _checked_text(value: object, field: str) -> str:
    try:
        text = json_text(value)
    except (ValueError, TypeError, RecursionError):
        raise RowError(field, describe(value), "JSON", "a value that is no JSON") from None
    if found := surrogate_in(text):
        raise RowError(field, f"\\u{ord(found):04x}", "valid Unicode", "invalid Unicode")
    return text


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
