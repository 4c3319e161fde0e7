"""Rows with a question, and an answer or none, in columns of their own: one function a format.

TRL's "prompt" and "completion", prompts for online RL (verl's, open-instruct's), OpenOrca,
Capybara's pairs of "input" and "output", ms-swift's "query" and "response", and the questions of
Vicuna's benchmark and of Arena-Hard. System texts, earlier turns and reference answers beside
them are read by data/formats/beside.py, as for all formats.
"""

from __future__ import annotations

import json

from rayward.data.formats.readers.chat import Row, label_of, messages_of, source_of
from rayward.data.formats.readers.exchanges import exchanges, is_exchanges
from rayward.data.formats.rows.turns import content_of, prompt_turns
from rayward.data.records import (
    Conversation,
    Prompt,
    Record,
    RowError,
    Turn,
    check_turns,
    describe,
    list_of,
    objects_of,
    text_of,
)


def prompt_of(value: object, name: str, repairs: list[str] | None = None) -> tuple[Turn, ...]:
    """A prompt of text, in Human/Assistant frames or plain, or of turns."""
    if isinstance(value, list | tuple):
        return messages_of(value, name, repairs)
    return prompt_turns(value, name)


def prompt_and_completion(
    row: Row, answer: str, repairs: list[str], prompt: str = "prompt"
) -> tuple[Turn, ...]:
    """The turns of the fields `prompt` and `answer`; both are text or turns."""
    turns, value = prompt_of(row.get(prompt), prompt, repairs), row.get(answer)
    check_turns(turns, "user", prompt)
    if not isinstance(value, list | tuple):
        return (*turns, Turn("assistant", text_of(value, answer)))
    answers = messages_of(value, answer)
    if not answers or answers[-1].role != "assistant":
        found, expected = describe(value), "turns that end with the assistant's"
        raise RowError(answer, found, expected, "does not end with the assistant")
    return (*turns, *answers)


def prompt_completion(row: Row, repairs: list[str]) -> list[Record]:
    """{"prompt", "completion" or "response" or "output"}, text or turns: TRL's."""
    name = _given(row, ("completion", "response", "output"))
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
    """{"conversation": [{"input", "output"}, ...]}, as Capybara has it, or turns as elsewhere.

    Firefly's exchanges are {"human", "assistant"}. WildChat and LMSYS-Chat-1M have turns.
    """
    name = "conversation"
    value = row.get(name)
    read = exchanges(value, name) if is_exchanges(value) else messages_of(value, name, repairs)
    check_turns(read, "assistant", name)
    source = source_of(name, label_of(row, "source"))
    return [Conversation(read, source, label_of(row, "id"))]


def flat(asked: str, said: str, name: str, row: Row, repairs: list[str]) -> list[Record]:
    """The fields `asked` and `said`, text or turns: {"query", "response"} of ms-swift and MetaMath,
    and plain {"input", "output"}.
    """
    turns = prompt_and_completion(row, said, repairs, asked)
    return [Conversation(turns, name, label_of(row, "id"))]


ASKED, SAID = ("human", "user"), ("assistant", "gpt", "bot")


def exchange(row: Row, repairs: list[str]) -> list[Record]:
    """{"human" or "user", "assistant" or "gpt" or "bot"}: one exchange by its speakers' names."""
    asked, said = (_given(row, names) for names in (ASKED, SAID))
    return flat(asked, said, "exchange", row, repairs)


def _given(row: Row, names: tuple[str, ...]) -> str:
    """The first name that a row has something under, or the first of all."""
    return ([name for name in names if row.get(name) is not None] or [names[0]])[0]


# ---- questions of benchmarks


def vicuna_questions(row: Row, repairs: list[str]) -> list[Record]:
    """{"question_id", "text", "category"}: Vicuna's own benchmark."""
    turns = (Turn("user", text_of(row.get("text"), "text")),)
    source = source_of("vicuna", label_of(row, "category"))
    return [Prompt(turns, source, label_of(row, "question_id"))]


def ifeval(row: Row, repairs: list[str]) -> list[Record]:
    """{"key", "prompt", "instruction_id_list", "kwargs"}: IFEval, a prompt.

    Its reference is JSON text of what can be checked, as data/verifiable/ifeval.py reads it.
    """
    names = [
        text_of(name, f"instruction_id_list[{number}]")
        for number, name in enumerate(
            list_of(row.get("instruction_id_list"), "instruction_id_list")
        )
    ]
    arguments = [dict(given) for _, given in objects_of(row.get("kwargs"), "kwargs")]
    if len(names) != len(arguments):
        found, expected = f"{len(arguments)} items", f"{len(names)}, one an instruction"
        raise RowError("kwargs", found, expected, "lists of other lengths")
    checked = {"instruction_id_list": names, "kwargs": arguments}
    turns = (Turn("user", text_of(row.get("prompt"), "prompt")),)
    reference = json.dumps(checked, ensure_ascii=False)
    return [Prompt(turns, "ifeval", label_of(row, "key"), reference=reference)]


def arena_hard(row: Row, repairs: list[str]) -> list[Record]:
    """{"question_id", "category", "cluster", "turns": [{"content"}]}: Arena-Hard, a prompt.

    Its second version has {"uid", "category", "subcategory", "prompt"}. Later turns are follow-ups.
    """
    source = source_of("arena_hard", label_of(row, "category"))
    label = label_of(row, "question_id") or label_of(row, "uid")
    if row.get("turns") is None:
        return [Prompt((Turn("user", text_of(row.get("prompt"), "prompt")),), source, label)]
    texts = [
        content_of(entry.get("content"), f"{where}.content")
        for where, entry in objects_of(row["turns"], "turns")
    ]
    if not texts:
        raise RowError("turns", "an empty list", "at least one text", "no turns")
    return [Prompt((Turn("user", texts[0]),), source, label, tuple(texts[1:]))]
