"""Answers of models, as the projects that judge them write their files, and back.

AlpacaEval's model_outputs.json (`instruction`, `output`, `generator`), FastChat's model_answer
(`question_id`, `choices` with `turns`), the older ones of Vicuna (`question_id`, `text`) and of
OpenChat (`question_id`, `answer`), Arena-Hard's (`uid`, `messages`) and IFEval's (`prompt`,
`response`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayward.data.formats.files.containers import SUFFIXES
from rayward.data.judging.annotations import BadRow
from rayward.data.judging.questions import Question
from rayward.data.judging.source_rows import (
    Id,
    Row,
    answer_of,
    first_row,
    id_of,
    rows_as,
)
from rayward.data.records import RowError, list_of, objects_of, text_of


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answers to the turns of a question, which is known by its id or by its text."""

    model: str
    turns: tuple[str, ...]
    id: Id | None = None
    text: str | None = None


class Answers:
    """The answers of one model, by question. ValueError: those of several, or none."""

    def __init__(self, path: str | Path, answers: Sequence[Answer]) -> None:
        names = list(dict.fromkeys(answer.model for answer in answers))
        if len(names) != 1:
            found = f"answers of {', '.join(names[:4])}" if names else "no answer"
            raise ValueError(f"{path}: found {found}, expected those of one model")
        self.path, self.model = str(path), names[0]
        # The last one of a question: a file that was added to has the newer ones at its end.
        self.by_id = {answer.id: answer for answer in answers if answer.id is not None}
        self.by_text: dict[str, list[Answer]] = {}
        for answer in answers:
            if answer.text is not None:
                self.by_text.setdefault(answer.text, []).append(answer)

    def to(self, questions: Sequence[Question]) -> list[tuple[str, ...]]:
        """The answers to the turns of each question; () where there is none.

        Where several questions have one text, and answers no ids, they stand in one order.
        ValueError: these answers are fewer than the questions.
        """
        texts = [None if question.id in self.by_id else question.turns[0] for question in questions]
        asked, before = Counter(texts), Counter[str]()
        found = []
        for question, text in zip(questions, texts, strict=True):
            if text is None:
                found.append(self.by_id[question.id].turns)
                continue
            answers = self.by_text.get(text, [])
            if 0 < len(answers) < asked[text]:
                raise ValueError(
                    f"{self.path}: {asked[text]} questions have the text {text[:60]!r}, and "
                    f"{len(answers)} of the answers: which is to which cannot be told without ids"
                )
            if asked[text] > 1 and answers:
                found.append(answers[before[text]].turns)
            else:
                found.append(answers[-1].turns if answers else ())
            before[text] += 1
        return found

    def __len__(self) -> int:
        return max(len(self.by_id), sum(len(answers) for answers in self.by_text.values()))


def read_answers(path: str | Path, left_out: list[BadRow]) -> Answers:
    """The answers of a file; rows that hold none go to `left_out`.

    ValueError: the file has none of the known shapes.
    """
    row = first_row(path)
    if row is None:
        raise ValueError(f"{path}: no row that can be read")
    shape = next((shape for needed, shape in SHAPES if needed <= row.keys()), None)
    if shape is None:
        raise ValueError(
            f"{path}: found the fields {', '.join(sorted(row))}, expected those of AlpacaEval "
            "(instruction, output), FastChat (question_id, choices), Vicuna (question_id, text), "
            "OpenChat (question_id, answer), Arena-Hard (uid, messages) or IFEval (prompt, "
            "response)"
        )
    name = _stem(path)
    return Answers(path, rows_as(path, lambda row, _: shape(row, name), left_out))


def questions_of(path: str | Path, left_out: list[BadRow]) -> list[Question]:
    """The questions that a file of answers holds beside them, as AlpacaEval's does.

    ValueError: it holds none, as FastChat's.
    """
    from rayward.data.judging.questions import read_questions

    row = first_row(path) or {}
    if not {"instruction", "output"} <= row.keys():
        raise ValueError(f"{path}: these answers do not say what was asked; give --questions FILE")
    return read_questions(path, left_out)


def _stem(path: str | Path) -> str:
    name = Path(path).name
    suffix = next(
        (suffix for suffix in sorted(SUFFIXES, key=len)[::-1] if name.endswith(suffix)), ""
    )
    return name.removesuffix(suffix)


def _name(row: Row, field: str, name: str) -> str:
    """The model's name in a row, or else that of the file."""
    return text_of(row[field], field) if row.get(field) else name


def _alpaca(row: Row, name: str) -> Answer:
    instruction = text_of(row.get("instruction"), "instruction")
    turns = (answer_of(row.get("output"), "output"),)
    return Answer(_name(row, "generator", name), turns, text=instruction)


def _fastchat(row: Row, name: str) -> Answer:
    for field, choice in objects_of(row.get("choices"), "choices"):
        turns = tuple(
            answer_of(value, f"{field}.turns[{number}]")
            for number, value in enumerate(list_of(choice.get("turns"), f"{field}.turns"))
        )
        # The first choice, as FastChat judges it; Arena-Hard's turns are objects.
        return Answer(_name(row, "model_id", name), turns, id_of(row.get("question_id")))
    raise RowError("choices", "an empty list", "at least one", "no choices")


def _vicuna(row: Row, name: str) -> Answer:
    turns = (answer_of(row.get("text"), "text"),)
    return Answer(_name(row, "model_id", name), turns, id_of(row.get("question_id")))


def _openchat(row: Row, name: str) -> Answer:
    turns = (answer_of(row.get("answer"), "answer"),)
    return Answer(_name(row, "answer_model", name), turns, id_of(row.get("question_id")))


def _arena_hard(row: Row, name: str) -> Answer:
    turns = []
    for field, message in objects_of(row.get("messages"), "messages"):
        content: Any = message.get("content")
        if message.get("role") == "assistant":
            text = content.get("answer") if isinstance(content, dict) else content
            turns.append(answer_of(text, f"{field}.content"))
    return Answer(_name(row, "model", name), tuple(turns), id_of(row.get("uid"), "uid"))


def _ifeval(row: Row, name: str) -> Answer:
    prompt = text_of(row.get("prompt"), "prompt")
    return Answer(name, (answer_of(row.get("response"), "response"),), text=prompt)


SHAPES: list[tuple[set[str], Callable[[Row, str], Answer]]] = [
    ({"instruction", "output"}, _alpaca),
    ({"question_id", "choices"}, _fastchat),
    ({"question_id", "answer"}, _openchat),
    ({"question_id", "text"}, _vicuna),
    ({"uid", "messages"}, _arena_hard),
    ({"prompt", "response"}, _ifeval),
]
"""The fields by which a file's shape is told, and what reads it."""
