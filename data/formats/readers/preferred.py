"""Rows with a better answer and a worse one, under other names than "chosen" and "rejected".

Those of OpenAI's preference fine-tuning, of ms-swift, and of argilla's and distilabel's sets. One
function a format.
"""

from __future__ import annotations

from dataclasses import replace

from rayward.data.formats.readers.answers import answer_of, only_answer
from rayward.data.formats.readers.chat import (
    Row,
    instruction_with_input,
    label_of,
    messages_of,
)
from rayward.data.formats.readers.margins import margin_of
from rayward.data.formats.readers.questions import prompt_and_completion, prompt_of
from rayward.data.parts import tools_of
from rayward.data.records import (
    Preference,
    Record,
    RowError,
    check_turns,
    describe,
    object_of,
)


def openai_preference(row: Row, repairs: list[str]) -> list[Record]:
    """{"input": {"messages", "tools"?}, "preferred_output", "non_preferred_output": turns}."""
    asked = object_of(row.get("input"), "input")
    turns = messages_of(asked.get("messages"), "input.messages", repairs)
    check_turns(turns, "user", "input.messages")
    better, worse = (
        answer_of(row.get(name), name, turns)
        for name in ("preferred_output", "non_preferred_output")
    )
    record = Preference(turns, better, worse, None, "openai_preference", label_of(row, "id"))
    tools = asked.get("tools")
    return [replace(record, tools=tools_of(tools, "input.tools")) if tools else record]


def swift_pairs(row: Row, repairs: list[str]) -> list[Record]:
    """{"messages" or "query" and "response", "rejected_response" or "rejected_messages"}.

    As ms-swift has it. The last answer of the first two is the better one.
    """
    if row.get("messages") is not None:
        name, turns = "messages", messages_of(row["messages"], "messages", repairs)
        check_turns(turns, "assistant", name)
    else:
        name, turns = "response", prompt_and_completion(row, "response", repairs, "query")
    worse = "rejected_response" if row.get("rejected_response") is not None else "rejected_messages"
    prompt = turns[:-1]
    answers = only_answer(turns[-1:], name), answer_of(row.get(worse), worse, prompt)
    return [Preference(prompt, *answers, None, "swift_pairs", label_of(row, "id"))]


def response_pairs(row: Row, repairs: list[str]) -> list[Record]:
    """{"instruction" with "input"?, or "prompt", "chosen_response", "rejected_response"}.

    argilla's sets, some with an average rating of either answer.
    """
    if row.get("prompt") is not None:
        turns = prompt_of(row["prompt"], "prompt", repairs)
    else:
        text = instruction_with_input(row.get("instruction"), row.get("input"))
        turns = prompt_of(text, "instruction", repairs)
    check_turns(turns, "user", "prompt")
    better, worse = (
        answer_of(row.get(name), name, turns) for name in ("chosen_response", "rejected_response")
    )
    label = label_of(row, "id")
    return [Preference(turns, better, worse, margin_of(row), "response_pairs", label)]


def input_pairs(row: Row, repairs: list[str]) -> list[Record]:
    """{"input", "chosen", "rejected", "status"?}: distilabel's Orca pairs.

    Those of the status "tie" are set aside.
    """
    if row.get("status") == "tie":
        raise RowError("status", describe(row["status"]), "that one is better", "a tie")
    turns = prompt_of(row.get("input"), "input", repairs)
    check_turns(turns, "user", "input")
    better, worse = (answer_of(row.get(name), name, turns) for name in ("chosen", "rejected"))
    label = label_of(row, "id")
    return [Preference(turns, better, worse, margin_of(row), "input_pairs", label)]
