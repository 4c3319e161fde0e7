"""Rows of chat formats as conversations and prompts, by one function a format.

Each is `(row, repairs) -> records`. Field names are those of the published data sets: ShareGPT (as
FastChat and OpenChat write it), Stanford Alpaca, UltraChat, OpenChat's C-RLFT files, AlpacaEval
model outputs, and MT-Bench questions and model answers (FastChat's llm_judge). Alpaca's input
follows its instruction after the heading that its own prompt has. ShareGPT conversations are often
pieces of longer chats: a leading assistant turn and a trailing user turn are dropped, and counted.
`label_of` and `messages_of` also serve the ranked formats.

A function raises RowError for a row that cannot be used and appends to `repairs` the names of
repairs made. Where a format has a label of its own, such as MT-Bench's category, `source` is
"format/label".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rayward.data.formats.message_parts import (
    TOOL_SPEAKERS,
    content_of,
    message_parts,
    spoken_turn,
)
from rayward.data.parts import tools_of
from rayward.data.record_json import from_json
from rayward.data.records import (
    Conversation,
    Prompt,
    Record,
    Role,
    RowError,
    Turn,
    check_turns,
    describe,
    list_of,
    number_of,
    objects_of,
    text_of,
)
from rayward.data.templates.table import INPUT

Row = Mapping[str, Any]
Questions = Mapping[str, tuple[str, ...]]

SPEAKERS: dict[str, Role] = {
    "human": "user", "user": "user", "system": "system", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
}  # fmt: skip
ALL_SPEAKERS = SPEAKERS | TOOL_SPEAKERS
ROLES: dict[str, Role] = {
    "system": "system", "user": "user", "assistant": "assistant",
    "tool": "tool", "function": "tool",
}  # fmt: skip
# Turns of these are counted as "tool turn", not as an unknown role, where a format has none.
TOOLS = ("function", "function_call", "observation", "tool", "tool_call", "tool_response")


def label_of(row: Row, name: str) -> str:
    """Text or an integer of a field as text; "" if it is absent. RowError for anything else."""
    value = row.get(name)
    if value is None or isinstance(value, str):
        return "" if value is None or not value.strip() else value
    # pandas makes floats of ids where some are missing: 1.0, and NaN for those.
    if isinstance(value, float) and (math.isnan(value) or value.is_integer()):
        return "" if math.isnan(value) else str(int(value))
    # Ids are often whole numbers; true and false are ints in Python, but no ids.
    if isinstance(value, bool) or not isinstance(value, int):
        raise RowError(name, describe(value), "text or an integer", "wrong type")
    return str(value)


def source_of(name: str, label: str) -> str:
    """The source of a record of the format `name` whose row has a label of its own, or none."""
    return f"{name}/{label}" if label else name


def role_of(value: object, roles: Mapping[str, Role], where: str) -> Role:
    """The role that a name stands for. RowError for one that is none of `roles`, or of a tool."""
    if isinstance(value, str) and value in roles:
        return roles[value]
    reason = "tool turn" if value in TOOLS else "unknown role"
    raise RowError(where, describe(value), "one of " + ", ".join(roles), reason)


def messages_of(value: object, name: str) -> tuple[Turn, ...]:
    """Turns of a list of {"role", "content", "weight"?}, with their calls and reasoning."""
    turns = []
    for where, entry in objects_of(value, name):
        weight, parts = entry.get("weight"), message_parts(entry, where)
        turns.append(
            Turn(
                role_of(entry.get("role"), ROLES, f"{where}.role"),
                content_of(entry, where, "tool_calls" in parts),
                None if weight is None else number_of(weight, f"{where}.weight"),
                **parts,
            )
        )
    return tuple(turns)


def rayward(row: Row, repairs: list[str]) -> list[Record]:
    """Our own records, as `to_json` writes them."""
    return [from_json(row)]


def sharegpt(row: Row, repairs: list[str]) -> list[Record]:
    """{"id", "model", "conversations" or "items": [{"from", "value"}], "tools"}."""
    # Which of the names a row has: null is as good as absent, as in a parquet file of both.
    name = "conversations" if row.get("conversations") is not None else "items"
    entries: list[tuple[Role, object, object, str]] = []
    for where, entry in objects_of(row.get(name), name):
        speaker = entry.get("from")
        role = role_of(speaker, ALL_SPEAKERS, f"{where}.from")
        entries.append((role, speaker, entry.get("value"), f"{where}.value"))
    # Pieces of longer chats are trimmed before their texts are checked: a dropped turn that is
    # blank or broken must not cost the row.
    start = 1 if entries and entries[0][0] == "system" else 0
    while len(entries) > start and entries[start][0] == "assistant":
        del entries[start]
        repairs.append("dropped leading assistant turn")
    while len(entries) > start and entries[-1][0] == "user":
        del entries[-1]
        repairs.append("dropped trailing user turn")
    if len(entries) == start:
        raise RowError(name, "no user turn with an answer", "at least one", "no answered turn")
    turns = tuple(spoken_turn(who, role, value, where) for role, who, value, where in entries)
    tools, quality = tools_of(row.get("tools")), label_of(row, "model") or None
    return [Conversation(turns, "sharegpt", label_of(row, "id"), quality, tools)]


def instruction_with_input(instruction: object, context: object) -> str:
    """An instruction with its input, if it has one, after INPUT."""
    question = text_of(instruction, "instruction")
    if context is not None and not isinstance(context, str):
        raise RowError("input", describe(context), "text", "wrong type")
    return question + INPUT + context if context and context.strip() else question


def alpaca(row: Row, repairs: list[str]) -> list[Record]:
    """{"instruction", "input" (Dolly: "context"), "output" (GPTeacher and Dolly: "response")}."""
    responded = row.get("output") is None and row.get("response") is not None
    name = "response" if responded else "output"
    context = row.get("context") if row.get("input") is None else row["input"]
    question = instruction_with_input(row.get("instruction"), context)
    turns = (Turn("user", question), Turn("assistant", text_of(row.get(name), name)))
    return [Conversation(turns, "alpaca", label_of(row, "id"))]


def self_instruct(row: Row, repairs: list[str]) -> list[Record]:
    """{"instruction", "instances": [{"input", "output"}]}: a conversation an instance."""
    records: list[Record] = []
    for where, entry in objects_of(row.get("instances"), "instances"):
        question = instruction_with_input(row.get("instruction"), entry.get("input"))
        turns = (
            Turn("user", question),
            Turn("assistant", text_of(entry.get("output"), f"{where}.output")),
        )
        records.append(Conversation(turns, "self_instruct", label_of(row, "id")))
    if not records:
        raise RowError("instances", "an empty list", "at least one", "no instances")
    return records


def gsm8k(row: Row, repairs: list[str]) -> list[Record]:
    """{"question", "answer"}."""
    question, answer = (text_of(row.get(name), name) for name in ("question", "answer"))
    turns = (Turn("user", question), Turn("assistant", answer))
    return [Conversation(turns, "gsm8k", label_of(row, "id"))]


def kto(row: Row, repairs: list[str]) -> list[Record]:
    """{"messages", "label"}: a conversation where the label is true; one to unlearn is refused."""
    if row.get("label") is not True:
        raise RowError("label", describe(row.get("label")), "true", "answer to be unlearned")
    turns = messages_of(row.get("messages"), "messages")
    check_turns(turns, "assistant", "messages")
    return [Conversation(turns, "kto", label_of(row, "id"))]


def alpaca_eval(row: Row, repairs: list[str]) -> list[Record]:
    """{"instruction", "output", "generator"}; without output, a prompt."""
    user = Turn("user", text_of(row.get("instruction"), "instruction"))
    if row.get("output") is None:
        return [Prompt((user,), "alpaca_eval", label_of(row, "id"))]
    turns = (user, Turn("assistant", text_of(row["output"], "output")))
    return [
        Conversation(turns, "alpaca_eval", label_of(row, "id"), label_of(row, "generator") or None)
    ]


def ultrachat(row: Row, repairs: list[str]) -> list[Record]:
    """{"id", "data": [user, assistant, user, assistant, ...]}: an even number of turns."""
    texts = list_of(row.get("data"), "data")
    roles: tuple[Role, Role] = ("user", "assistant")
    turns = tuple(
        Turn(roles[index % 2], text_of(text, f"data[{index}]")) for index, text in enumerate(texts)
    )
    check_turns(turns, "assistant", "data")
    return [Conversation(turns, "ultrachat", label_of(row, "id"))]


def ultra_eval(row: Row, repairs: list[str]) -> list[Record]:
    """{"class", "data": question}: UltraLM's evaluation set."""
    source = source_of("ultra_eval", label_of(row, "class").strip())  # its names end in spaces
    return [Prompt((Turn("user", text_of(row.get("data"), "data")),), source, label_of(row, "id"))]


def crlft(row: Row, repairs: list[str]) -> list[Record]:
    """{"items": [{"role", "content", "weight"}], "condition" (our `quality`), "system"}."""
    turns, system = messages_of(row.get("items"), "items"), label_of(row, "system")
    check_turns(turns, "assistant", "items")
    if system:
        if turns[0].role == "system":
            raise RowError("items[0].role", "system", "one system text only", "two system texts")
        turns = (Turn("system", text_of(system, "system")), *turns)
    return [Conversation(turns, "crlft", label_of(row, "id"), label_of(row, "condition") or None)]


# ---- MT-Bench


def mt_bench_question(row: Row, repairs: list[str]) -> list[Record]:
    """{"question_id", "category", "turns": [question, follow-up, ...], "reference"?}: a prompt.

    The reference answers, which are not a part of a prompt, are left out and counted.
    """
    questions = _texts(row.get("turns"), "turns")
    source = source_of("mt_bench", label_of(row, "category"))
    if row.get("reference") is not None:
        repairs.append("left out reference answers")
    return [
        Prompt((Turn("user", questions[0]),), source, label_of(row, "question_id"), questions[1:])
    ]


def mt_bench_answer(questions: Questions, row: Row, repairs: list[str]) -> list[Record]:
    """{"question_id", "model_id", "choices": [{"turns": [answer, ...]}]}: a conversation a choice.

    In Vicuna's own benchmark, "text" is the one answer. `questions`: the texts of each question by
    its id; the rows themselves hold none.
    """
    name = label_of(row, "question_id")
    if name not in questions:
        given = describe(row.get("question_id"))
        raise RowError("question_id", given, "an id of the question file", "no question")
    if row.get("choices") is None and row.get("text") is not None:
        row = {**row, "choices": [{"turns": [text_of(row["text"], "text")]}]}
    records: list[Record] = []
    for where, choice in objects_of(row.get("choices"), "choices"):
        answers = _texts(choice.get("turns"), f"{where}.turns")
        if len(answers) != len(questions[name]):
            given, expected = f"{len(answers)} answers", f"{len(questions[name])}, one a question"
            reason = "answers do not match the questions"
            raise RowError(f"{where}.turns", given, expected, reason)
        turns: list[Turn] = []
        for question, answer in zip(questions[name], answers, strict=True):
            turns += [Turn("user", question), Turn("assistant", answer)]
        model = label_of(row, "model_id") or None
        records.append(Conversation(tuple(turns), "mt_bench", name, model))
    if not records:
        raise RowError("choices", "0 choices", "at least one", "no choices")
    return records


def _texts(value: object, name: str) -> tuple[str, ...]:
    texts: Sequence[Any] = list_of(value, name)
    if not texts:
        raise RowError(name, "an empty list", "at least one text", "no turns")
    return tuple(text_of(text, f"{name}[{index}]") for index, text in enumerate(texts))
