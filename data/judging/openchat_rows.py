"""Rows of OpenChat's evaluation (an answer and its score beside a baseline's) as verdicts.

`score.raw_a` is ((model's, baseline's), review) with the model shown first, `raw_b` the same with
the baseline first; (0, 0) is a review that could not be read. As on OpenChat's page of results, the
scores of a row are the mean over the orders that can be read. The baseline's answer is not in the
rows, and its name is that of the file, MODEL_VS_BASELINE.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayward.data.records import RowError, list_of, number_of, object_of, text_of

ORDERS = {"raw_a": "model first", "raw_b": "baseline first"}
UNNAMED = "(not named)"
NOTE = "The baseline's answer is not in the file."


def is_openchat(row: Mapping[str, Any]) -> bool:
    """Whether a row has reviews of both orders under "score"."""
    score = row.get("score")
    return isinstance(score, dict) and ORDERS.keys() <= score.keys()


def as_verdict(row: Mapping[str, Any], file: str) -> dict[str, Any]:
    """The row in the fields of `judge pairwise`. RowError: it is not what it should be."""
    score = object_of(row.get("score"), "score")
    reviews = [_review(score, field, order) for field, order in ORDERS.items()]
    read = [review["scores"] for review in reviews if review["scores"]]
    mean = [sum(pair[side] for pair in read) / len(read) for side in (0, 1)] if read else None
    sides = {review["preference"] for review in reviews if review["scores"]}
    answer = row.get("answer")
    return {
        "question_id": row.get("question_id"),
        "category": row.get("category"),
        "instruction": text_of(row.get("text"), "text"),
        "output_1": "",
        "generator_1": _baseline(file),
        "output_2": answer if isinstance(answer, str) else "",
        "generator_2": text_of(row.get("answer_model", "(the model)"), "answer_model"),
        "annotator": _judge(score.get("reviewer")),
        "preference": None if mean is None else _preference(mean),
        "scores": mean,
        "conflict": len(sides) > 1 if len(read) == len(ORDERS) else None,
        "reviews": reviews,
        "note": NOTE,
    }


def _review(score: Mapping[str, Any], field: str, order: str) -> dict[str, Any]:
    """Scores turned to (the baseline's, the model's), None where both are 0."""
    raw = list_of(score[field], f"score.{field}")
    pair = list_of(raw[0] if raw else None, f"score.{field}[0]")
    if len(pair) != 2:
        raise RowError(f"score.{field}[0]", f"{len(pair)} items", "two numbers", "not two scores")
    model, baseline = (number_of(each, f"score.{field}[0]") for each in pair)
    scores = None if model == baseline == 0 else [baseline, model]
    text = raw[1] if len(raw) > 1 and isinstance(raw[1], str) else ""
    preference = None if scores is None else _preference(scores)
    return {"order": order, "text": text, "scores": scores, "preference": preference}


def _preference(scores: list[float]) -> float:
    return 1.5 + 0.5 * ((scores[1] > scores[0]) - (scores[1] < scores[0]))


def _baseline(file: str) -> str:
    stem = Path(file).name.split(".jsonl")[0].split(".json")[0]
    return stem.partition("_VS_")[2] or "(the baseline)"


def _judge(reviewer: object) -> str:
    """Its model, where the row says one."""
    if isinstance(reviewer, dict):
        known = reviewer.get("kwargs")
        reviewer = reviewer.get("model") or (known.get("model") if isinstance(known, dict) else "")
    return reviewer if isinstance(reviewer, str) and reviewer else UNNAMED
