"""What is read in judges' replies: hand-made ones, and every stored score of real files."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest

from rayward.data.judging import replies
from rayward.data.judging.rules import (
    BOTH,
    RULES,
    Review,
    drawn_order,
    outcome,
    read_review,
)

SHARED = Path(__file__).parents[3] / "shared" / "data"
real_files = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")


def rows(name: str) -> list[dict[str, Any]]:
    with gzip.open(SHARED / name, "rt", encoding="utf-8") as file:
        if name.endswith(".json.gz"):
            listed: list[dict[str, Any]] = json.load(file)
            return listed
        return [json.loads(line) for line in file]


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("9 8.5\nBoth are fine.", (9.0, 8.5)),
        ("8, 7\nBoth", (8.0, 7.0)),
        ("8 7", (8.0, 7.0)),
        ("10 11\n", None),
        ("nan 3\n", None),
        ("8 7 6\n", None),
        ("Assistant 1: 8", None),
        ("\n8 7", None),
        ("", None),
    ],
)
def test_vicuna_has_two_scores_on_the_first_line(
    reply: str, scores: tuple[float, float] | None
) -> None:
    assert replies.first_line_scores(reply) == scores


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("Reasons, 3 of them.\n[8, 9]", (8.0, 9.0)),
        ("Reasons.\n[8, 9]\n\n", (8.0, 9.0)),
        ("Reasons.\n8 9\n", (8.0, 9.0)),
        ("First [1, 2], then [7.5,3], as [this] says.", (7.5, 3.0)),
        ("[1, 2]\n4 5\nThat is all.", (4.0, 5.0)),
        ("Evidence.\nScore of the Assistant 1: 8\nScore of the Assistant 2: 9.5\n", (8.0, 9.5)),
        ("Evidence.\n**Score of 1:** 8/10\n**Score of 2:** 9", (8.0, 9.0)),
        ("[8, 9, 10]", None),
        ('["8", 9]', None),
        ("[true, 9]", None),
        ("[80, 90]", None),
        ("[1e999, 2]", None),
        ("No scores at all", None),
        ("[" * 5000, None),
        ("", None),
    ],
)
def test_evidence_first_has_the_scores_at_the_end(
    reply: str, scores: tuple[float, float] | None
) -> None:
    assert replies.last_line_scores(reply) == scores


def test_a_scale_may_be_another() -> None:
    assert replies.pair_scores("[80, 90]", scale=100) == (80.0, 90.0)
    assert replies.rating("[[80]]", scale=100) == 80.0


@pytest.mark.parametrize(
    ("reply", "second"),
    [
        ("[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]", False),
        ("[{'model': 'model_1', 'rank': 2}, {'model': 'model_2', 'rank': 1}]", True),
        (
            '```python\n[{"model": "model_2", "rank": "1"}, {"model": "model_1", "rank": 2}]\n```',
            True,
        ),
        ("[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 1}]", None),
        ("[{'model': 'model_1', 'rank': 1}]", None),
        ("[{'model': 'm', 'rank': 1}, {'model': 'M', 'rank': 2}]", None),
        ("[__import__('os').system('true')]", None),
        ("model_1", None),
        ("[" * 20000, None),
        ("", None),
    ],
)
def test_alpaca_eval_has_a_list_of_ranks(reply: str, second: bool | None) -> None:
    assert replies.ranked_second(reply) is second


def test_the_weight_of_a_first_token() -> None:
    golden = {"m": -4.048847, "M": -0.017597131}
    weight = replies.first_token_weight(golden)
    # P(m) = .0174424870: preference 2 - P(m) where M names the model.
    assert weight == pytest.approx(1 - 0.0174424870, abs=1e-10)
    assert 1 + weight == pytest.approx(1.9825575, abs=1e-7)
    assert replies.first_token_weight({"m": -0.3}) == 0.0
    assert replies.first_token_weight({"M": -900.0}) == 1.0
    assert replies.first_token_weight({"The": -0.1}) is None
    assert replies.first_token_weight({"m": -math.inf, "M": -math.inf}) is None
    assert replies.first_token_weight({}) is None


def test_letters_grades_and_ratings() -> None:
    assert replies.verdict_letter("My final verdict is: [[B]]") == "B"
    # FastChat looks for A first, wherever it stands.
    assert replies.verdict_letter("[[C]] or [[A]]") == "A"
    assert replies.verdict_letter("[A]") is None
    assert [replies.grade(f"so [[{text}]]") for text in ("A>>B", "A<B", "B=A", "A=B", "B>A")] == [
        *("A>>B", "B>A", "A=B", "A=B", "B>A")
    ]
    assert replies.grade("[[A>B]] at first, then [[B>>A]]") == "B>>A"
    assert replies.grade("[[A>>>B]]") is None and replies.grade("[[A]]") is None
    assert replies.rating("Rating: [[7.5]]") == 7.5
    assert replies.rating("[3] sources. Rating: [[10]]") == 10.0
    assert replies.rating("Rating: [4]") == 4.0
    assert replies.rating("Rating: [[11]]") is None and replies.rating("seven") is None


@real_files
@pytest.mark.parametrize(
    "name", ["mistral-orpo-mix", "mistral-orpo-trl", "Meta-Llama-3-8B-Instruct-Normal"]
)
def test_every_stored_rating_is_read(name: str) -> None:
    judged = rows(f"mt_bench/model_judgment/gpt-4_single/{name}.jsonl.gz")
    assert len(judged) >= 160
    read = [replies.rating(row["judgment"]) for row in judged]
    # FastChat writes -1 where there is no rating.
    assert [-1 if rating is None else rating for rating in read] == [r["score"] for r in judged]


@real_files
@pytest.mark.parametrize(
    ("name", "sums"),
    [("review_gpt35_vicuna-13b", (693.0, 638.0)), ("review_llama-13b_vicuna-13b", (513.0, 694.0))],
)
def test_vicunas_reviews_have_their_scores_on_the_first_line_but_for_three(
    name: str, sums: tuple[float, float]
) -> None:
    reviews = rows(f"vicuna_bench/review/{name}.jsonl.gz")
    assert len(reviews) == 80
    other = {
        row["question_id"]
        for row in reviews
        if replies.first_line_scores(row["text"]) != tuple(row["score"])
    }
    # Three of mathematics begin with a solution, and say their scores in lines with more in them.
    assert other == {68, 69, 70}
    for row in reviews:
        if row["question_id"] in other:
            assert replies.first_line_scores(row["text"]) is None
            assert row["text"].startswith("First, I will solve the problem independently")
    stored = [row["score"] for row in reviews]
    assert (sum(s[0] for s in stored), sum(s[1] for s in stored)) == sums


@real_files
def test_stored_log_probabilities_give_the_stored_preferences() -> None:
    annotated = rows(
        "alpaca_eval/results/ultralm-13b/weighted_alpaca_eval_gpt4_turbo/"
        "annotations_first40_with_logprobs.json.gz"
    )
    assert len(annotated) == 40
    for row in annotated:
        top = row["raw_completion"]["logprobs"]["content"][0]["top_logprobs"]
        logprobs = {token["token"]: token["logprob"] for token in top}
        # The file does not say which of the two orders was shown.
        found = [
            1 + float(read_review("m/M", "M", logprobs, order, 0).preference or 0) for order in BOTH
        ]
        assert min(abs(p - row["preference"]) for p in found) < 1e-10


# ---- reviews to a preference


def reviews(format: str, **said: list[str]) -> list[Review]:
    """Reviews of replies by order: model_first=[...], baseline_first=[...]."""
    return [
        read_review(format, text, {}, order.replace("_", " "), sample)  # type: ignore[arg-type]
        for order, texts in said.items()
        for sample, text in enumerate(texts)
    ]


def test_scores_of_both_orders_are_averaged_and_turned() -> None:
    # The model has 8, 6 and 5, the baseline 4, 7 and 7: means 19/3 and 6.
    made = reviews("scores", model_first=["[8, 4]", "[6, 7]"], baseline_first=["[7, 5]", "what?"])
    found = outcome(RULES["vicuna"], BOTH, made)
    assert found.scores == (pytest.approx(6.0), pytest.approx(19 / 3))
    assert found.preference == 2.0
    # Shown first the model wins (7 to 5.5), shown second it loses (5 to 7).
    assert found.conflict is True
    one = outcome(RULES["vicuna"], BOTH, made[:2])
    assert one.preference == 2.0 and one.conflict is None
    assert outcome(RULES["vicuna"], BOTH, made[3:]).preference is None


@pytest.mark.parametrize(
    ("first", "second", "preference", "conflict"),
    [
        ("A", "B", 2.0, False),
        ("B", "A", 1.0, False),
        ("A", "A", 1.5, True),
        ("A", "C", 1.5, True),
        ("C", "C", 1.5, False),
        ("A", "?", None, None),
    ],
)
def test_letters_count_where_both_orders_agree(
    first: str, second: str, preference: float | None, conflict: bool | None
) -> None:
    made = reviews("[[A]]", model_first=[f"[[{first}]]"], baseline_first=[f"[[{second}]]"])
    found = outcome(RULES["mt_bench"], BOTH, made)
    assert (found.preference, found.conflict) == (preference, conflict)


def test_strong_grades_count_three_times() -> None:
    made = reviews("[[A>>B]]", model_first=["[[A>>B]]"], baseline_first=["[[A>B]]"])
    # Three wins of the model and one loss.
    assert outcome(RULES["arena_hard"], BOTH, made).preference == pytest.approx(1.75)
    made = reviews("[[A>>B]]", model_first=["[[A=B]]"], baseline_first=["[[B>A]]"])
    assert outcome(RULES["arena_hard"], BOTH, made).preference == pytest.approx(1.75)


def test_an_order_is_drawn_for_each_question_by_the_seed() -> None:
    drawn = [[drawn_order(seed, n, 0) for n in range(400)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert 160 < drawn[0].count("model first") < 240
