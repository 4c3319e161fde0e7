"""Questions of evaluations, as the projects that made them write their files.

AlpacaEval (`instruction`), Vicuna and MT-Bench (`question_id`, `turns`, or `text` as Vicuna once
had it), Arena-Hard (turns of objects, or `uid` and `prompt`), IFEval (`key`, `prompt` and
`instruction_id_list`), UltraLM (`class`, `data`), and any other file that `rayward data` reads: its
prompts, and what is asked in conversations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rayward.data.formats.registry import outcomes
from rayward.data.judging.annotations import BadRow
from rayward.data.judging.source_rows import (
    Id,
    Row,
    answer_of,
    first_row,
    id_of,
    rows_as,
    turns_of,
)
from rayward.data.records import (
    Conversation,
    Prompt,
    RowError,
    describe,
    list_of,
    number_of,
    text_of,
)


@dataclass(frozen=True, slots=True)
class Question:
    """What a model is asked: the user's turns, each put when the one before it is answered.

    `reference`: a right answer to each turn, or none. `more`: fields of the row that its suite's
    own answers have, such as AlpacaEval's `dataset`. `system`: what stands before the first turn.
    """

    id: Id
    turns: tuple[str, ...]
    category: str = ""
    reference: tuple[str, ...] = ()
    temperature: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""


def read_questions(path: str | Path, left_out: list[BadRow]) -> list[Question]:
    """The questions of a file, a folder or "hf:NAME"; rows without one go to `left_out`.

    ValueError: two questions have one id, or there is none.
    """
    shape = _shape(path)
    questions = rows_as(path, shape, left_out) if shape else _of_records(path, left_out)
    if not questions:
        why = f"; {left_out[0].file}:{left_out[0].line}: {left_out[0].error}" if left_out else ""
        raise ValueError(f"{path}: no question can be read{why}")
    seen = set[Id]()
    for question in questions:
        if question.id in seen:
            raise ValueError(f"{path}: two questions have the id {question.id!r}")
        seen.add(question.id)
    return questions


def with_references(
    questions: list[Question], references: Mapping[Id, tuple[str, ...]]
) -> list[Question]:
    """Questions with the reference answers of a file, by id, in place of their own."""
    return [
        replace(question, reference=references.get(question.id, question.reference))
        for question in questions
    ]


def _shape(path: str | Path) -> Callable[[Row, int], Question] | None:
    """How the rows of a file become questions, told from its first object; None: as records."""
    keys = (first_row(path) or {}).keys()
    return next((shape for needed, shape in SHAPES if needed <= keys), None)


def _alpaca(row: Row, number: int) -> Question:
    if row.get("input"):
        # AlpacaEval has none; Alpaca's own data does, and is no set of questions.
        raise RowError("input", describe(row["input"]), "none, in AlpacaEval's shape", "has input")
    more = {"dataset": row["dataset"]} if "dataset" in row else {}
    category = str(row.get("category") or row.get("dataset") or "")
    turns = (text_of(row.get("instruction"), "instruction"),)
    return Question(id_of(row.get("question_id", number)), turns, category, more=more)


def _fastchat(row: Row, number: int) -> Question:
    temperature = row.get("required_temperature")
    if temperature is not None:
        temperature = number_of(temperature, "required_temperature")
    # Some of MT-Bench's have no right answer to one of the turns, and an empty text in its place.
    reference = tuple(
        answer_of(value, f"reference[{number}]")
        for number, value in enumerate(list_of(row.get("reference") or (), "reference"))
    )
    return Question(
        id_of(row["question_id"]),
        turns_of(row, "turns"),
        str(row.get("category") or ""),
        reference,
        temperature,
        {name: row[name] for name in ("cluster", "subcategory") if name in row},
    )


def _of_one_text(identity: str, text: str, *more: str) -> Callable[[Row, int], Question]:
    """Rows with an id and a text; fields of the names `more` are kept."""

    def convert(row: Row, number: int) -> Question:
        turns = (text_of(row.get(text), text),)
        kept = {name: row[name] for name in more if name in row}
        category = str(row.get("category") or "")
        return Question(id_of(row.get(identity), identity), turns, category, more=kept)

    return convert


def _ultralm(row: Row, number: int) -> Question:
    # The names of its classes have spaces around them.
    return Question(number, (text_of(row["data"], "data"),), text_of(row["class"], "class").strip())


SHAPES: list[tuple[set[str], Callable[[Row, int], Question]]] = [
    ({"question_id", "turns"}, _fastchat),
    ({"question_id", "text"}, _of_one_text("question_id", "text")),
    ({"uid", "prompt"}, _of_one_text("uid", "prompt", "subcategory")),
    (
        {"key", "prompt", "instruction_id_list"},
        _of_one_text("key", "prompt", "instruction_id_list", "kwargs"),
    ),
    ({"class", "data"}, _ultralm),
    ({"instruction", "dataset"}, _alpaca),
    ({"instruction", "generator"}, _alpaca),
]
"""The fields by which a file's shape is told, and what reads it."""


def _of_records(path: str | Path, left_out: list[BadRow]) -> list[Question]:
    """Questions of what `rayward data` reads."""
    questions = list[Question]()
    number = 0
    for outcome in outcomes(path, token_files=False):
        if outcome.error:
            left_out.append(BadRow(outcome.file, outcome.line, outcome.error))
        for record in outcome.records:
            try:
                questions.append(_of_record(record, number))
            except RowError as error:
                left_out.append(BadRow(outcome.file, outcome.line, error))
            number += 1
    return questions


def _of_record(record: object, number: int) -> Question:
    """The question of a prompt with its follow-ups, or those that a conversation asks."""
    if not isinstance(record, Prompt | Conversation):
        kind = type(record).__name__.lower()
        raise RowError("record", f"a {kind}", "a prompt or a conversation", "no question")
    asked = [turn.content for turn in record.turns if turn.role == "user"]
    system = "".join(turn.content for turn in record.turns if turn.role == "system")
    said = tuple(turn.content for turn in record.turns if turn.role == "assistant")
    if isinstance(record, Conversation):
        turns, reference = tuple(asked), said
    else:
        turns = (*asked, *record.follow_ups)
        reference = (record.reference,) if record.reference else ()
        if said:
            raise RowError("turns", "an answer in it", "one question", "a prompt of several turns")
    if record.tools:
        raise RowError("tools", "tools", "none", "tools")
    return Question(record.id or number, turns, record.source, reference, system=system)
