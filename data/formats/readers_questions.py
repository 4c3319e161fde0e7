"""Rows with a question, and an answer or none, in columns of their own: one function a format.

TRL's "prompt" and "completion", prompts for online RL (verl's, open-instruct's), OpenOrca, and
Capybara's pairs of "input" and "output". System texts, earlier turns and reference answers beside
them are read by data/formats/beside.py, as for all formats.
"""

from __future__ import annotations

from rayward.data.formats.readers_chat import Row, label_of, messages_of, source_of
from rayward.data.formats.turns import content_of, prompt_turns
from rayward.data.records import (
    Conversation,
    Prompt,
    Record,
    RowError,
    Turn,
    check_turns,
    describe,
    objects_of,
    text_of,
)


def prompt_of(value: object, name: str, repairs: list[str] | None = None) -> tuple[Turn, ...]:
    """A prompt of text, in Human/Assistant frames or plain, or of turns."""
    if isinstance(value, list | tuple):
        return messages_of(value, name, repairs)
    return prompt_turns(value, name)


def prompt_and_completion(row: Row, answer: str, repairs: list[str]) -> tuple[Turn, ...]:
    """The turns of "prompt" and of the field `answer`; both are text or turns."""
    turns, value = prompt_of(row.get("prompt"), "prompt", repairs), row.get(answer)
    check_turns(turns, "user", "prompt")
    if not isinstance(value, list | tuple):
        return (*turns, Turn("assistant", text_of(value, answer)))
    answers = messages_of(value, answer)
    if not answers or answers[-1].role != "assistant":
        found, expected = describe(value), "turns that end with the assistant's"
        raise RowError(answer, found, expected, "does not end with the assistant")
    return (*turns, *answers)


def prompt_completion(row: Row, repairs: list[str]) -> list[Record]:
    """{"prompt", "completion" or "response"}, text or turns: TRL's."""
    name = "completion" if row.get("completion") is not None else "response"
    turns = prompt_and_completion(row, name, repairs)
    return [Conversation(turns, "prompt_completion", label_of(row, "id"))]


def prompts(row: Row, repairs: list[str]) -> list[Record]:
    """{"prompt": text or turns, "data_source" or "dataset"?}: verl's rows, and plain prompts."""
    turns = prompt_of(row.get("prompt"), "prompt", repairs)
    check_turns(turns, "user", "prompt")
    source = source_of("prompts", label_of(row, "data_source"))
    return [Prompt(turns, source, label_of(row, "id"))]


def orca(row: Row, repairs: list[str]) -> list[Record]:
    """{"question", "response"}, and a "system_prompt" beside them: OpenOrca."""
    turns = prompt_turns(row.get("question"), "question")
    answer = Turn("assistant", text_of(row.get("response"), "response"))
    return [Conversation((*turns, answer), "orca", label_of(row, "id"))]


def conversation(row: Row, repairs: list[str]) -> list[Record]:
    """{"conversation": [{"input", "output"}, ...]}, as Capybara has it, or turns as elsewhere."""
    name = "conversation"
    turns: tuple[Turn, ...] = ()
    for where, entry in objects_of(row.get(name), name):
        if entry.get("input") is None and entry.get("output") is None:
            turns = messages_of(row[name], name, repairs)
            break
        asked, said = (content_of(entry.get(key), f"{where}.{key}") for key in ("input", "output"))
        turns += (Turn("user", asked), Turn("assistant", said))
    check_turns(turns, "assistant", name)
    source = source_of(name, label_of(row, "source"))
    return [Conversation(turns, source, label_of(row, "id"))]
