"""Questions and answers as the commands under `rayward judge` read them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayward.data.judging.annotations import BadRow
    from rayward.data.judging.answers import Answers
    from rayward.data.judging.questions import Question
    from rayward.pipelines.rows.left_out import LeftOut


def add_questions(parser: argparse.ArgumentParser) -> None:
    """--questions and --references."""
    parser.add_argument(
        "--questions",
        metavar="FILE",
        help="what was asked: AlpacaEval's, Vicuna's, MT-Bench's, Arena-Hard's, IFEval's or "
        "UltraLM's file, or any other that rayward data reads; not needed where the answers say it",
    )
    parser.add_argument(
        "--references",
        metavar="FILE",
        help="right answers by question_id, as FastChat's reference_answer; in place of those that "
        "the questions have",
    )
    parser.add_argument("--first", type=int, metavar="N", help="only the first N questions")


def questions_of(options: argparse.Namespace, answers: str, left_out: LeftOut) -> list[Question]:
    """The questions, of --questions or of a file of answers that says them, with references."""
    from rayward.data.judging.answers import questions_of as questions_beside
    from rayward.data.judging.answers import read_answers
    from rayward.data.judging.questions import read_questions, with_references

    bad: list[BadRow] = []
    if options.questions:
        questions = read_questions(options.questions, bad)
    else:
        questions = questions_beside(answers, bad)
    if options.references:
        references = read_answers(options.references, bad)
        by_id = {id: answer.turns for id, answer in references.by_id.items()}
        questions = with_references(questions, by_id)
    set_aside(bad, left_out)
    return the_first(questions, options.first)


def the_first(questions: list[Question], count: int | None) -> list[Question]:
    """What --first leaves of them. ValueError: it is below 1."""
    if count is not None and count < 1:
        raise ValueError(f"--first is {count}, expected at least 1")
    return questions[:count]


def answers_of(path: str, left_out: LeftOut) -> Answers:
    """The answers of one model; rows without one are set aside."""
    from rayward.data.judging.answers import read_answers

    bad: list[BadRow] = []
    answers = read_answers(path, bad)
    set_aside(bad, left_out)
    return answers


def set_aside(bad: list[BadRow], left_out: LeftOut) -> None:
    """Count rows that were no questions or answers."""
    for row in bad:
        where = f"{row.file}:{row.line}: {row.error.field}"
        left_out.add(where, row.error.reason, row.error.found, row.error.expected)
