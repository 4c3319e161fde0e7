"""Two models' answers to the same questions, turn by turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rayward.data.judging.answers import Answers
from rayward.data.judging.questions import Question


@dataclass(frozen=True, slots=True)
class Pair:
    """A turn (from 0) of a question with the answers of both models to it and to those before."""

    question: Question
    turn: int
    baseline: tuple[str, ...]
    model: tuple[str, ...]

    @property
    def identical(self) -> bool:
        """Whether both said the same, to this turn and to those before it."""
        return self.baseline[: self.turn + 1] == self.model[: self.turn + 1]

    def answer(self, of_model: bool) -> str:
        """The answer to this turn."""
        return (self.model if of_model else self.baseline)[self.turn]


def pairs(
    questions: Sequence[Question], baseline: Answers, model: Answers
) -> tuple[list[Pair], list[str]]:
    """All turns that both have an answer to, in the questions' order; and those that one lacks.

    ValueError: there is none that both have.
    """
    made, lacking = list[Pair](), list[str]()
    found = zip(questions, baseline.to(questions), model.to(questions), strict=True)
    for question, of_baseline, of_model in found:
        for turn in range(len(question.turns)):
            lacks = [
                answers.model
                for answers, turns in ((baseline, of_baseline), (model, of_model))
                if len(turns) <= turn
            ]
            if lacks:
                lacking.append(
                    f"question {question.id}, turn {turn + 1}: no answer of {' and '.join(lacks)}"
                )
                continue
            made.append(Pair(question, turn, of_baseline, of_model))
    if not made:
        raise ValueError(
            f"{model.path} and {baseline.path} answer none of the {len(questions)} questions both; "
            f"{lacking[0] if lacking else 'there is no question'}"
        )
    return made, lacking
