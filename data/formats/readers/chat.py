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

from rayward.data.formats.readers.exchanges import exchanges, is_exchanges
from rayward.data.formats.rows.message_parts import (
    calls_in_text,
    check_one_call,
    is_caller,
    message_parts,
)
from rayward.data.formats.rows.turns import (
    EMPTY_SYSTEM,
    content_of,
    role_of,
    weight_of,
)
from rayward.data.record_json import from_json
from rayward.data.records import (
    BLANK,
    Conversation,
    Prompt,
    Record,
    Role,
    RowError,
    Turn,
    check_turns,
    describe,
    list_of,
    objects_of,
    text_of,
)
from rayward.data.templates.table import INPUT

Row = Mapping[str, Any]
Questions = Mapping[str, tuple[str, ...]]


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


def messages_of(value: object, name: str, repairs: list[str] | None = None) -> tuple[Turn, ...]:
    """Turns of a list of {"role" or "from", "content" or "value"}, with weights and parts if any.

    An empty system turn is none, and counted in `repairs`.
    """
    turns = []
    for where, entry in objects_of(value, name):
        turn = turn_of(entry, where)
        if turn is not None:
            turns.append(turn)
        elif repairs is not None:
            repairs.append(EMPTY_SYSTEM)
    return tuple(turns)


def turn_of(entry: Row, where: str) -> Turn | None:
    """One turn of `messages_of`; None for an empty one of the system."""
    speaker, content = turn_fields(entry)
    role = role_of(entry.get(speaker), f"{where}.{speaker}")
    text = _only_text(entry, content, where)
    if role == "system" and is_blank(text):
        return None
    weight = weight_of(entry, where)
    if is_caller(entry.get(speaker)):
        calls = calls_in_text(text, f"{where}.{content}")
        parts = message_parts(entry, role, where)
        check_one_call(parts.get("tool_calls", calls), calls, f"{where}.tool_calls")
        return Turn(role, "", weight, **parts | {"tool_calls": calls})
    parts = message_parts(entry, role, where)
    if "tool_calls" in parts and (not text or is_blank(text)):
        return Turn(role, text if isinstance(text, str) else "", weight, **parts)
    return Turn(role, content_of(text, f"{where}.{content}"), weight, **parts)


def _only_text(entry: Row, name: str, where: str) -> object:
    """What a turn says under `name`. RowError for another text under the other name."""
    text, other = entry.get(name), "value" if name == "content" else "content"
    if entry.get(other) not in (None, "", text):
        expected = f"none, or the same as in {name}"
        field = f"{where}.{other}"
        raise RowError(field, describe(entry[other]), expected, "two texts of a turn")
    return text


def turn_fields(entry: Row) -> tuple[str, str]:
    """The names under which a turn says its role and its text: OpenAI's, or ShareGPT's."""
    if entry.get("role") is not None:
        return "role", "content"
    # Where there is no role, the error names the one that goes with the text.
    return ("from", "value") if "from" in entry or "value" in entry else ("role", "content")


def is_blank(value: object) -> bool:
    """Whether a text is there and says nothing."""
    return isinstance(value, str) and not value.strip(BLANK)


def rayward(row: Row, repairs: list[str]) -> list[Record]:
    """Our own records, as `to_json` writes them."""
    return [from_json(row)]


def sharegpt(row: Row, repairs: list[str]) -> list[Record]:
    """{"id", "model", "conversations" or "items": [{"from", "value"}]}.

    "role" and "content" are as good, and so is {"human", "gpt"} for both turns at once.
    """
    # Which of the names a row has: null is as good as absent, as in a parquet file of both.
    name = "conversations" if row.get("conversations") is not None else "items"
    if is_exchanges(row.get(name)):
        model = label_of(row, "model") or None
        return [Conversation(exchanges(row[name], name), "sharegpt", label_of(row, "id"), model)]
    entries: list[tuple[Role, Row, str]] = []
    for where, entry in objects_of(row.get(name), name):
        speaker, content = turn_fields(entry)
        role = role_of(entry.get(speaker), f"{where}.{speaker}")
        if role == "system" and is_blank(entry.get(content)):
            repairs.append(EMPTY_SYSTEM)
            continue
        entries.append((role, entry, where))
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
    read = [turn_of(entry, where) for _, entry, where in entries]
    turns = tuple(turn for turn in read if turn is not None)
    return [Conversation(turns, "sharegpt", label_of(row, "id"), label_of(row, "model") or None)]


def instruction_with_input(instruction: object, context: object) -> str:
    """An instruction with its input, if it has one, after INPUT; an input alone is the question."""
    if (instruction is None or is_blank(instruction)) and isinstance(context, str):
        instruction, context = (context, None) if context.strip() else (instruction, None)
    question = text_of(instruction, "instruction")
    if context is not None and not isinstance(context, str):
        raise RowError("input", describe(context), "text", "wrong type")
    return question + INPUT + context if context and context.strip() else question


def alpaca(row: Row, repairs: list[str]) -> list[Record]:
    """{"instruction", "input" (Dolly: "context"), "output" (GPTeacher and Dolly: "response")}."""
    responded = row.get("output") is None and row.get("response") is not None
    name = "response" if responded else "output"
    context = row.get("input")
    if context is None or (is_blank(context) and row.get("context") is not None):
        context = row.get("context")
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
    turns, system = messages_of(row.get("items"), "items", repairs), label_of(row, "system")
    check_turns(turns, "assistant", "items")
    if system:
        if turns[0].role == "system":
            raise RowError("items[0].role", "system", "one system text only", "two system texts")
        turns = (Turn("system", text_of(system, "system")), *turns)
    return [Conversation(turns, "crlft", label_of(row, "id"), label_of(row, "condition") or None)]


# ---- MT-Bench


def mt_bench_question(row: Row, repairs: list[str]) -> list[Record]:
    """{"question_id", "category", "turns": [question, follow-up, ...], "reference"?}: a prompt.

    One reference answer to one question is the prompt's; several are left out and counted.
    """
    questions = _texts(row.get("turns"), "turns")
    source = source_of("mt_bench", label_of(row, "category"))
    label, references = label_of(row, "question_id"), row.get("reference")
    reference = None
    if isinstance(references, list) and len(references) == len(questions) == 1:
        reference = text_of(references[0], "reference[0]")
    elif references is not None:
        repairs.append("left out reference answers")
    return [Prompt((Turn("user", questions[0]),), source, label, questions[1:], reference)]


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
