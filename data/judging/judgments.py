"""Judgments in the shapes of FastChat and OpenChat: ratings of one answer, scores of two, winners.

A rating is a row of model_judgment/JUDGE_single.jsonl. Scores of two answers are Vicuna's reviews,
rows of OpenChat's evaluation with a review of each order, or verdicts of `judge pairwise` with
scores. Winners are rows of model_judgment/JUDGE_pair.jsonl, with a verdict in each order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rayward.data.formats.files.containers import sources
from rayward.data.judging.annotations import BadRow
from rayward.data.judging.openchat_rows import as_verdict, is_openchat
from rayward.data.judging.replies import first_line_scores, rating
from rayward.data.records import RowError, describe, list_of, number_of, object_of, text_of

UNRATABLE = -1  # FastChat's score of a judgment without a rating
UNNAMED = "(not named)"
Id: TypeAlias = "int | str"
Pair: TypeAlias = "tuple[float, float]"


@dataclass(frozen=True, slots=True)
class Rating:
    """A judge's rating of an answer to a turn (from 1) of a question.

    `score`: None where the judgment has none. `parsed`: what our parser reads in its text.
    """

    model: str
    judge: str
    question: Id
    turn: int
    score: float | None
    parsed: float | None
    category: str


@dataclass(frozen=True, slots=True)
class Scores:
    """What a judge gave two answers: for one review, or the mean over both orders.

    `scores`: None where there are none. `parsed`: those of the review's first line; None also where
    the row is no single review. `orders`: both of them in (first, second), where there are two.
    """

    file: str
    line: int
    first: str
    second: str
    judge: str
    question: Id
    scores: Pair | None
    parsed: Pair | None
    text: str
    orders: tuple[Pair | None, Pair | None] | None
    category: str


@dataclass(frozen=True, slots=True)
class Winners:
    """Who wins in each order: "first", "second" or "tie" of the two models; None: no verdict."""

    first: str
    second: str
    judge: str
    question: Id
    turn: int
    winners: tuple[str | None, str | None]
    category: str


Judgment: TypeAlias = "Rating | Scores | Winners"


def judgments(path: str | Path) -> Iterator[Judgment | BadRow]:
    """The judgments of a file, or of the files of a folder, and in their places what is none."""
    for source in sources(path):
        for line, value in source.rows():
            try:
                if isinstance(value, RowError):
                    raise value
                yield _judgment(object_of(value, "row"), source.name, line)
            except RowError as error:
                yield BadRow(source.name, line, error)


def _judgment(row: Mapping[str, Any], file: str, line: int) -> Judgment:
    if "g1_winner" in row:
        return _winners(row)
    if "judgment" in row:
        return _rating(row)
    if "answer1_id" in row:
        return _review(row, file, line)
    if is_openchat(row):
        row = as_verdict(row, file)
    if {"output_1", "output_2", "reviews"} <= row.keys():
        return _verdict(row, file, line)
    expected = "judgment (a rating), answer1_id (a review), g1_winner or score.raw_a (both orders)"
    raise RowError("row", f"the fields {', '.join(sorted(row)[:8])}", expected, "no judgment")


def _rating(row: Mapping[str, Any]) -> Rating:
    text = row.get("judgment")
    parsed = rating(text) if isinstance(text, str) else None
    stored = row.get("score")
    score = parsed if stored is None else number_of(stored, "score")
    return Rating(
        text_of(row.get("model"), "model"),
        _judge(row.get("judge")),
        _id(row),
        _turn(row),
        None if score == UNRATABLE else score,
        parsed,
        _category(row),
    )


def _winners(row: Mapping[str, Any]) -> Winners:
    first, second = (text_of(row.get(name), name) for name in ("model_1", "model_2"))
    # FastChat says "model_1", in old files also the model's name.
    word = {"model_1": "first", "model_2": "second", "tie": "tie", "error": None}
    word |= {second: "second", first: "first"}
    found: list[str | None] = []
    for field in ("g1_winner", "g2_winner"):
        value = row.get(field)
        if not isinstance(value, str) or value not in word:
            raise RowError(field, describe(value), "model_1, model_2, tie or error")
        found.append(word[value])
    judge, question, turn = _judge(row.get("judge")), _id(row), _turn(row)
    both = (found[0], found[1])
    return Winners(first, second, judge, question, turn, both, _category(row))


def _review(row: Mapping[str, Any], file: str, line: int) -> Scores:
    """A review of Vicuna's, with the ids of both answers in place of the models."""
    text = row.get("text")
    text = text if isinstance(text, str) else ""
    parsed = first_line_scores(text)
    scores = parsed if row.get("score") is None else _pair(row["score"], "score")
    return Scores(
        file,
        line,
        text_of(row.get("answer1_id"), "answer1_id"),
        text_of(row.get("answer2_id"), "answer2_id"),
        _judge(row.get("reviewer_id")),
        _id(row),
        None if scores and UNRATABLE in scores else scores,
        parsed,
        text,
        None,
        _category(row),
    )


def _verdict(row: Mapping[str, Any], file: str, line: int) -> Scores:
    """A verdict of `judge pairwise`: the model's scores first, as OpenChat has them."""
    mean = None if row.get("scores") is None else _pair(row["scores"], "scores")
    by_order: dict[Any, list[Pair]] = {}
    for place, review in enumerate(list_of(row["reviews"], "reviews")):
        review = object_of(review, f"reviews[{place}]")
        if review.get("scores") is not None:
            scores = _pair(review["scores"], f"reviews[{place}].scores")
            by_order.setdefault(review.get("order"), []).append(scores)
    orders = [_mean(by_order.get(order, ())) for order in ("model first", "baseline first")]
    return Scores(
        file,
        line,
        text_of(row.get("generator_2"), "generator_2"),
        text_of(row.get("generator_1"), "generator_1"),
        _judge(row.get("annotator")),
        _id(row),
        _turned(mean),
        None,
        "",
        (_turned(orders[0]), _turned(orders[1])),
        _category(row),
    )


def _mean(pairs: Sequence[Pair]) -> Pair | None:
    if not pairs:
        return None
    count = len(pairs)
    return sum(pair[0] for pair in pairs) / count, sum(pair[1] for pair in pairs) / count


def _turned(pair: Pair | None) -> Pair | None:
    return None if pair is None else (pair[1], pair[0])


def _pair(value: object, field: str) -> Pair:
    values = list_of(value, field)
    if len(values) != 2:
        raise RowError(field, f"{len(values)} items", "two numbers", "not two scores")
    return number_of(values[0], f"{field}[0]"), number_of(values[1], f"{field}[1]")


def _judge(value: object) -> str:
    """A judge's name; FastChat has it before the name of the prompt."""
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) and value else UNNAMED


def _id(row: Mapping[str, Any]) -> Id:
    value = row.get("question_id")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError("question_id", describe(value), "a number or text", "no question")
    return value


def _turn(row: Mapping[str, Any]) -> int:
    turn = number_of(row.get("turn", 1), "turn")
    if turn != int(turn) or turn < 1:
        raise RowError("turn", f"{turn:g}", "a whole number from 1 on", "turn out of range")
    return int(turn)


def _category(row: Mapping[str, Any]) -> str:
    value = row.get("category")
    return value if isinstance(value, str) else ""
