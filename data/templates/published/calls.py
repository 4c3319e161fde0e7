"""Tools and calls in the rendering of a shape, where they stand as they are: are they all there?

What a template makes of a call's arguments is its own business (JSON, or an element for each), so
where a call ends is found by a second rendering, in which each call has one argument more, a mark.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rayward.data.parts import ToolCall, json_text, tool_names
from rayward.data.records import RowError, Turn
from rayward.data.templates.published.program import MARK
from rayward.data.templates.published.rendering import Shape, rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Find = Callable[[str], list[tuple[int, int]]]
FURTHER = "\ue002"
"""Name of the argument that calls of the second rendering have more."""


def call_places(
    tokenizer: PreTrainedTokenizerBase, shape: Shape, prompt: bool, text: str, find: Find
) -> dict[int, int] | RowError:
    """Of each turn that calls tools: how many special tokens of `text` stand before its last call.

    `text`: the marked rendering. RowError: a tool or a call that it leaves out, or text of one that
    would be read as a special token.
    """
    if error := _foreign_text(shape, find):
        return error
    for name in tool_names(shape.tools) if shape.tools else ():
        if name not in text:
            reason = "the chat template leaves out a tool"
            return RowError("tools", repr(name[:60]), "it in the rendering", reason)
    if not any(turn.tool_calls for turn in shape.turns):
        return {}
    further = _with_marks(shape)
    try:
        contents = [turn.content for turn in further.turns]
        other = rendered(tokenizer, further.turns, contents, prompt, further.tools)
    except RowError as error:
        return error
    spans = find(other)
    places: dict[int, int] = {}
    for index, turn in enumerate(further.turns):
        for number, call in enumerate(turn.tool_calls):
            mark = json.loads(call.arguments)[FURTHER]
            if other.count(mark) != 1:
                field = f"turns[{index}].tool_calls[{number}]"
                found = f"it {other.count(mark)} times in the rendering"
                reason = "the chat template leaves out a tool call, or repeats it"
                return RowError(field, found, "it once", reason)
            places[index] = sum(end <= other.index(mark) for _, end in spans)
    if [other[slice(*span)] for span in spans] != [text[slice(*span)] for span in find(text)]:
        reason = "the chat template writes calls by what their arguments are"
        return RowError("turns", "other special tokens", "the same for all arguments", reason)
    return places


def check_names(answer: str, turns: Sequence[Turn], index: int) -> RowError | None:
    """Why the rendered `answer` of a turn is not that of its calls."""
    for number, call in enumerate(turns[index].tool_calls):
        if call.name not in answer:
            field = f"turns[{index}].tool_calls[{number}].name"
            reason = "the chat template leaves out the name of a tool"
            return RowError(field, repr(call.name[:60]), "it in the rendering", reason)
    return None


def _with_marks(shape: Shape) -> Shape:
    """The shape with a mark as a further argument of each call, numbered after all voices."""
    number = 2 * len(shape.turns)
    turns: list[Turn] = []
    for turn in shape.turns:
        calls: list[ToolCall] = []
        for call in turn.tool_calls:
            arguments = json.loads(call.arguments) | {FURTHER: MARK.format(number)}
            calls.append(replace(call, arguments=json_text(arguments)))
            number += 1
        turns.append(replace(turn, tool_calls=tuple(calls)))
    return shape._replace(turns=tuple(turns))


def _foreign_text(shape: Shape, find: Find) -> RowError | None:
    """The first text of a tool or a call in which a special token, or a mark, would be read."""
    texts = [("tools", shape.tools or "")]
    for index, turn in enumerate(shape.turns):
        where = f"turns[{index}]"
        texts += [(f"{where}.tool_call_id", turn.tool_call_id), (f"{where}.name", turn.name)]
        for number, call in enumerate(turn.tool_calls):
            field = f"{where}.tool_calls[{number}]"
            texts += [(field, text) for text in (call.name, call.arguments, call.id)]
    for field, text in texts:
        read = [text[slice(*span)] for span in find(text)]
        read += [character for character in ("\ue000", "\ue001", FURTHER) if character in text]
        if read:
            reason = "a special token of the chat template is read out of a tool or a call"
            return RowError(field, repr(read[0]), "text without special tokens", reason)
    return None
