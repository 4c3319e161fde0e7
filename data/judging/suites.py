"""The suites of questions that Rayward knows by name: where their files lie, how they are sampled,
and in which shape their answers are written.

Temperatures by category are FastChat's (`llm_judge/common.py`); a question's own
`required_temperature` goes before. Longest answers: 1,024 tokens in FastChat, 2,048 for AlpacaEval
as UltraLM and Xwin sampled it, 4,096 for Arena-Hard, 1,280 for IFEval in lm-eval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayward.data.judging.questions import Question

TEMPERATURES = {
    **{"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1},
    **{"extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "arena-hard-200": 0.0},
}


@dataclass(frozen=True, slots=True)
class Written:
    """A model's answers to the turns of a question, with what goes into their row beside them."""

    question: Question
    model: str
    answers: tuple[str, ...]
    thoughts: tuple[str, ...]
    cut: tuple[bool, ...]
    key: str
    time: float


Row = dict[str, Any]


def _alpaca(written: Written) -> Row:
    question = written.question
    dataset = {"dataset": question.more["dataset"]} if "dataset" in question.more else {}
    row = {"instruction": question.turns[0], "output": written.answers[0]}
    category = {"category": question.category} if question.category and not dataset else {}
    return {**dataset, **category, **row, "generator": written.model} | _beside(written, 0)


def _fastchat(written: Written) -> Row:
    choice: Row = {"index": 0, "turns": list(written.answers)}
    if any(written.thoughts):
        choice["thinking"] = list(written.thoughts)
    if any(written.cut):
        choice["cut"] = list(written.cut)
    return {
        "question_id": written.question.id,
        "answer_id": written.key[:22],
        "model_id": written.model,
        "choices": [choice],
        "tstamp": written.time,
    }


def _arena_hard(written: Written) -> Row:
    """The rows of its second version where the question is of it, else FastChat's."""
    if isinstance(written.question.id, int) or "subcategory" not in written.question.more:
        return _fastchat(written)
    return {
        "uid": written.question.id,
        "ans_id": written.key[:22],
        "model": written.model,
        "messages": [
            {"role": "user", "content": written.question.turns[0]},
            {"role": "assistant", "content": {"answer": written.answers[0]}},
        ],
        "tstamp": written.time,
    }


def _ifeval(written: Written) -> Row:
    row = {"prompt": written.question.turns[0], "response": written.answers[0]}
    return row | _beside(written, 0)


def _beside(written: Written, turn: int) -> Row:
    thought = {"thinking": written.thoughts[turn]} if written.thoughts[turn] else {}
    return thought | ({"cut": True} if written.cut[turn] else {})


@dataclass(frozen=True, slots=True)
class Suite:
    """`folders` and `files`: where the questions may lie below the folder that is given.

    `out`: the name of the file of answers, with {model}. `turns`: how many are asked at most.
    """

    folders: tuple[str, ...]
    files: tuple[str, ...]
    out: str
    row: Callable[[Written], Row]
    max_tokens: int
    temperature: float
    turns: int = 1


QUESTION = ("question.jsonl", "question.jsonl.gz")
SUITES = {
    "alpaca": Suite(
        ("", "alpaca_eval"),
        ("alpaca_eval.json", "instructions.jsonl", "instructions.jsonl.gz", "alpaca_eval.jsonl"),
        "model_outputs.json",
        _alpaca,
        2048,
        0.7,
    ),
    "vicuna": Suite(
        ("vicuna_bench", "vicuna", ""), QUESTION, "{model}.jsonl", _fastchat, 1024, 0.7
    ),
    "mt_bench": Suite(("mt_bench", ""), QUESTION, "{model}.jsonl", _fastchat, 1024, 0.7, 2),
    "arena_hard": Suite(
        ("arena-hard-v2.0", "arena-hard-v0.1", "arena_hard", "arena-hard", ""),
        QUESTION,
        "{model}.jsonl",
        _arena_hard,
        4096,
        0.0,
    ),
    "ifeval": Suite(
        ("ifeval", ""),
        ("input_data.jsonl", "ifeval_input_data.jsonl", "input_data.jsonl.gz"),
        "input_response_data_{model}.jsonl",
        _ifeval,
        1280,
        0.0,
    ),
}
OTHER = Suite((), (), "model_outputs.json", _alpaca, 2048, 0.7)
"""A file of the user's own, whose answers are written as AlpacaEval's."""
OTHER_IN_TURNS = Suite((), (), "{model}.jsonl", _fastchat, 2048, 0.7, 1 << 30)
"""The same, where a question has several turns."""


def question_file(name: str, folder: Path | None) -> Path:
    """The questions of a suite below a folder. ValueError: where they were looked for."""
    suite = SUITES[name]
    if folder is None:
        raise ValueError(f"--suite {name} needs --data DIR, the folder that its questions are in")
    if folder.is_file():
        return folder
    paths = [folder / inner / file for inner in suite.folders for file in suite.files]
    for path in paths:
        if path.is_file():
            return path
    looked = ", ".join(str(path.relative_to(folder)) for path in paths)
    raise ValueError(f"{folder}: no questions of {name}; looked for {looked}")


def sampling(suite: Suite, question: Question, by_category: bool) -> Mapping[str, Any]:
    """Temperature and longest answer of a question."""
    temperature = suite.temperature
    if by_category:
        temperature = TEMPERATURES.get(question.category, temperature)
    if question.temperature is not None:
        temperature = question.temperature
    return {"temperature": temperature, "max_tokens": suite.max_tokens}


def has_several_turns(questions: Sequence[Question]) -> bool:
    """Whether one of them has more than one turn."""
    return any(len(question.turns) > 1 for question in questions)
