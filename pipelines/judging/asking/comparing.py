"""Two models' answers before a language model: the requests, and what its replies say."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rayward.data.judging.prompts import (
    JudgePrompt,
    choose,
    has_reference,
    load_prompts,
    needs_reference,
    pair_fields,
)
from rayward.data.judging.rules import BOTH, RULES, Order, Review, drawn_order, outcome, read_review
from rayward.pipelines.judging.asking.asking import Asking
from rayward.pipelines.judging.asking.budget import Request

if TYPE_CHECKING:
    from rayward.data.judging.pairs import Pair


@dataclass(frozen=True, slots=True)
class Compared:
    """A pair, the prompt that asks about it, and what is asked: nothing where both are the same."""

    pair: Pair
    prompt: JudgePrompt
    orders: tuple[Order, ...]
    requests: tuple[Request, ...]


class Comparing:
    """All comparisons of two models by some rules."""

    def __init__(
        self, options: argparse.Namespace, pairs: Sequence[Pair], names: tuple[str, str]
    ) -> None:
        """`names`: of the baseline and of the model. ValueError: no prompt for these rules."""
        rules = RULES[options.rules]
        self.rules = replace(
            rules,
            orders=options.orders or rules.orders,
            samples=options.samples or rules.samples,
        )
        self.names, self.name_of_rules = names, options.rules
        self.prompts = load_prompts(options.prompts)
        self.not_asked, self.without_reference = Counter[str](), 0
        self.settings = {
            "rules": options.rules,
            "orders": self.rules.orders,
            "samples": self.rules.samples,
            "seed": options.seed,
            "prompts": str(options.prompts or "ours"),
        }
        self.compared: list[Compared] = []
        for pair in pairs:
            self._add(pair, options.seed)
        if not self.compared:
            raise ValueError(
                f"{options.prompts or 'ours'}: no pairwise prompt for --rules {options.rules}, "
                f"which needs one with the output_format {' or '.join(rules.formats)}"
            )
        self.requests = [request for one in self.compared for request in one.requests]
        self.by_request = {
            id(request): one.prompt for one in self.compared for request in one.requests
        }

    def _add(self, pair: Pair, seed: int) -> None:
        question, turn = pair.question, pair.turn
        prompt = choose(self.prompts, "pairwise", self.rules.formats, question, turn)
        if prompt is None:
            self.not_asked[f"turn {turn + 1}, of which these rules have no prompt"] += 1
            return
        if needs_reference(question) and not has_reference(question, turn):
            self.without_reference += 1
        orders = BOTH
        if self.rules.orders == "random":
            orders = (drawn_order(seed, question.id, turn),)  # type: ignore[assignment]
        requests = () if pair.identical else tuple(self._requests(pair, prompt, orders))
        self.compared.append(Compared(pair, prompt, orders, requests))

    def _requests(self, pair: Pair, prompt: JudgePrompt, orders: Sequence[Order]) -> list[Request]:
        made = []
        for order in orders:
            shown = (pair.model, pair.baseline)
            if order == "baseline first":
                shown = (pair.baseline, pair.model)
            messages = prompt.messages(pair_fields(pair.question, *shown, pair.turn))
            place = {"question_id": pair.question.id, "turn": pair.turn + 1, "order": order}
            made += [Request(messages, place, sample) for sample in range(self.rules.samples)]
        return made

    def tell(self) -> None:
        """What is not judged as one might expect."""
        for what, count in self.not_asked.items():
            print(f"{count} comparisons are not made: {what}")
        reference = any(one.prompt.output_format == "[[A]]" for one in self.compared)
        if self.without_reference and reference:
            print(
                f"{self.without_reference} comparisons of math, reasoning or coding have no "
                "reference answer to show (--references FILE)"
            )

    def is_readable(self, request: Request, reply: Mapping[str, Any]) -> bool:
        """Whether a reply is what its prompt asks for."""
        return self._review(request, reply).preference is not None

    def _review(self, request: Request, reply: Mapping[str, Any]) -> Review:
        prompt = self.by_request[id(request)]
        return read_review(
            prompt.output_format,
            reply["text"],
            reply.get("logprobs", {}),
            request.place["order"],
            request.sample,
            prompt.scale,
        )

    def rows(self, asking: Asking, judge: str) -> list[dict[str, Any]]:
        """The verdicts, in the order of the questions."""
        annotator = f"{judge}/{self.name_of_rules}"
        return [self._row(one, asking, annotator) for one in self.compared]

    def _row(self, one: Compared, asking: Asking, annotator: str) -> dict[str, Any]:
        row = verdict_row(one.pair, self.names, annotator)
        if one.pair.identical:
            return row | {"preference": 1.5, "identical": True}
        replies = [(request, asking.reply(request)) for request in one.requests]
        reviews = [self._review(request, reply) for request, reply in replies if reply]
        found = outcome(self.rules, one.orders, reviews)
        complete = all(reply is not None for _, reply in replies)
        row["reviews"] = [
            _told(self._review(request, reply), reply) for request, reply in replies if reply
        ]
        row["prompt"] = one.prompt.name
        if not complete:
            # What is there may be one side's view; the rest is asked for by the same command.
            return row | {"missing": "not all reviews of it were made"}
        if found.scores:
            row["scores"] = list(found.scores)
        return row | {"preference": found.preference, "conflict": found.conflict}


def verdict_row(pair: Pair, names: tuple[str, str], annotator: str) -> dict[str, Any]:
    """AlpacaEval's fields of a comparison, and ours, before there is a verdict."""
    question = pair.question
    return {
        "question_id": question.id,
        "category": question.category,
        "turn": pair.turn + 1,
        "instruction": question.turns[pair.turn],
        **({"dataset": question.more["dataset"]} if "dataset" in question.more else {}),
        "output_1": pair.baseline[pair.turn],
        "generator_1": names[0],
        "output_2": pair.model[pair.turn],
        "generator_2": names[1],
        "annotator": annotator,
        "preference": None,
        "conflict": None,
        "identical": False,
        "reviews": [],
    }


def _told(review: Review, reply: Mapping[str, Any]) -> dict[str, Any]:
    """A review as it stands in a verdict. `scores`: of the baseline and the model."""
    return {
        "order": review.order,
        "sample": review.sample,
        "text": reply["text"],
        "scores": list(review.scores) if review.scores else None,
        "verdict": review.verdict,
        "preference": None if review.preference is None else 1 + review.preference,
        "prompt_tokens": reply["prompt_tokens"],
        "reply_tokens": reply["reply_tokens"],
    }
