"""The rules of pairwise judging: what a judge is asked for, in which orders, and what counts.

BPC (balanced positions) shows both orders, EC (evidence first) takes k samples whose reasons stand
before their scores: Wang et al., arXiv:2305.17926, whose FairEval drops unreadable reviews from the
mean. AlpacaEval and UltraLM show one order, drawn by the seed. MT-Bench's letters count where both
orders agree, and are a tie elsewhere. Arena-Hard's strong grades count three times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from rayward.data.judging import replies

Order = Literal["baseline first", "model first"]
BOTH: tuple[Order, Order] = ("model first", "baseline first")
STRONG_WEIGHT = 3  # of [[A>>B]] beside [[A>B]], as Arena-Hard has it
TIE = 1.5


@dataclass(frozen=True, slots=True)
class Rules:
    """How two answers are compared. `formats`: of prompts, the first that there is is taken.

    `orders`: "both", or "random": one of them. `samples`: reviews of each order. `request`: fields
    of each request. `combine`: how reviews become a preference.
    """

    formats: tuple[str, ...]
    orders: Literal["both", "random"]
    combine: Literal["scores", "agreement", "mean"]
    request: Mapping[str, Any]
    samples: int = 1


RULES = {
    "vicuna": Rules(("scores",), "both", "scores", {"temperature": 0.2, "max_tokens": 1024}),
    "faireval": Rules(("scores",), "both", "scores", {"temperature": 1.0, "max_tokens": 512}, 3),
    "ultralm": Rules(
        ("correct-first", "scores"), "random", "scores", {"temperature": 0.0, "max_tokens": 1024}
    ),
    "alpaca_eval": Rules(("ranking",), "random", "mean", {"temperature": 0.0, "max_tokens": 100}),
    "alpaca_eval_2": Rules(
        ("m/M",),
        "random",
        "mean",
        {"temperature": 1.0, "max_tokens": 1, "logprobs": True, "top_logprobs": 5},
    ),
    "mt_bench": Rules(("[[A]]",), "both", "agreement", {"temperature": 0.0, "max_tokens": 2048}),
    "arena_hard": Rules(("[[A>>B]]",), "both", "mean", {"temperature": 0.0, "max_tokens": 4096}),
}


@dataclass(frozen=True, slots=True)
class Review:
    """One reply about two answers, turned to the model's side.

    `preference`: 0 the baseline's is better, 1 the model's; None where the reply cannot be read.
    `scores`: (baseline's, model's), where the judge gave such; `verdict`: its own word otherwise.
    """

    order: Order
    sample: int
    preference: float | None
    scores: tuple[float, float] | None = None
    verdict: str | None = None
    weight: int = 1


def read_review(
    output_format: str,
    text: str,
    logprobs: Mapping[str, float],
    order: Order,
    sample: int,
    scale: float = 10,
) -> Review:
    """The review of a reply by the format that its prompt asks for."""
    second: float | None = None  # how far what was shown second is better, 0 to 1
    scores, verdict, weight = None, None, 1
    if output_format in ("scores", "correct-first"):
        scores = replies.pair_scores(text, scale)
        second = _share(scores[1] - scores[0]) if scores else None
    elif output_format == "ranking":
        is_second = replies.ranked_second(text)
        second = None if is_second is None else float(is_second)
    elif output_format == "m/M":
        second = replies.first_token_weight(logprobs)
    elif output_format == "[[A]]":
        verdict = replies.verdict_letter(text)
        second = {"A": 0.0, "B": 1.0, "C": 0.5}[verdict] if verdict else None
    else:
        verdict = replies.grade(text)
        steps = replies.GRADES[verdict] if verdict else 0
        second = _share(steps) if verdict else None
        weight = STRONG_WEIGHT if abs(steps) == 2 else 1
    # Of the baseline and the model, in this order.
    if order == "model first":
        second = None if second is None else 1 - second
        scores = (scores[1], scores[0]) if scores else None
    return Review(order, sample, second, scores, verdict, weight)


def _share(difference: float) -> float:
    """1 where something is better, 0 where it is worse, 0.5 where it is the same."""
    return 0.5 + 0.5 * ((difference > 0) - (difference < 0))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What reviews say of two answers. `preference`: from 1, the baseline, to 2; None: nothing.

    `conflict`: whether the two orders have other winners, a tie being one of the three ways; None
    where no review of one of them can be read.
    """

    preference: float | None
    conflict: bool | None = None
    scores: tuple[float, float] | None = None


def outcome(rules: Rules, orders: Sequence[Order], reviews: Sequence[Review]) -> Outcome:
    """The preference of all reviews of two answers, by the rules."""
    read = [review for review in reviews if review.preference is not None]
    winners = {
        order: _winner(rules, [review for review in read if review.order == order])
        for order in orders
    }
    found = {order: winner for order, winner in winners.items() if winner is not None}
    conflict = len(set(found.values())) > 1 if len(found) == 2 else None
    if rules.combine == "scores":
        # FairEval's mean of all reviews that can be read, of one order alone where it has to be.
        scores = _mean_scores(read)
        preference = None if scores is None else 1 + _share(scores[1] - scores[0])
        return Outcome(preference, conflict, scores)
    if len(found) < len(orders):  # one side's view would be that of its position
        return Outcome(None, conflict)
    if rules.combine == "agreement":
        agreed = set(found.values())
        return Outcome(1 + agreed.pop() if len(agreed) == 1 else TIE, conflict)
    return Outcome(1 + _mean(read), conflict)


def _winner(rules: Rules, reviews: Sequence[Review]) -> float | None:
    """Who wins by the reviews of one order: 1 the model, 0 the baseline, 0.5 neither."""
    if not reviews:
        return None
    scores = _mean_scores(reviews) if rules.combine == "scores" else None
    return _share(scores[1] - scores[0] if scores else _mean(reviews) - 0.5)


def _mean_scores(reviews: Sequence[Review]) -> tuple[float, float] | None:
    scores = [review.scores for review in reviews if review.scores]
    if not scores:
        return None
    return fmean(score[0] for score in scores), fmean(score[1] for score in scores)


def _mean(reviews: Sequence[Review]) -> float:
    """Of preferences, each as often as its grade counts."""
    preferences = [review.preference or 0.0 for review in reviews]
    return fmean(preferences, [review.weight for review in reviews])


def drawn_order(seed: int, question: object, turn: int) -> Order:
    """One of the two orders, by the seed and the question alone."""
    drawn = hashlib.sha256(f"{seed}\0order\0{question}\0{turn}".encode(errors="replace"))
    return BOTH[drawn.digest()[0] % 2]
