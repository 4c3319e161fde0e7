"""Verdicts of judges that give each answer a number: the higher one wins, equal ones are a tie."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rayward.pipelines.judging.asking.comparing import verdict_row
from rayward.pipelines.judging.asking.scorers import Scored, scores

if TYPE_CHECKING:
    from rayward.data.judging.pairs import Pair
    from rayward.pipelines.data_tools.ledger import Ledger


def verdicts_by_score(
    options: argparse.Namespace, pairs: Sequence[Pair], names: tuple[str, str], cache: Ledger
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The verdicts on all pairs, and the account of it."""
    answers = [
        Scored(pair.question, pair.question.turns[: pair.turn + 1], said)
        for pair in pairs
        if not pair.identical
        for said in (pair.baseline, pair.model)
    ]
    found, judge = scores(options, answers, cache)
    values = iter(found)
    rows = []
    for pair in pairs:
        row = verdict_row(pair, names, judge)
        if pair.identical:
            rows.append(row | {"preference": 1.5, "identical": True})
            continue
        both = [next(values), next(values)]
        why = [value for value in both if isinstance(value, str)]
        if why:
            rows.append(row | {"missing": why[0]})
            continue
        baseline, model = (float(value) for value in both)
        preference = 1.5 + 0.5 * ((model > baseline) - (model < baseline))
        rows.append(row | {"preference": preference, "scores": [baseline, model]})
    unscored = sum(isinstance(value, str) for value in found)
    account = {"asked": {"scores": len(found), "without": unscored}, "stopped": ""}
    return rows, account | {"rules": "a score of each answer"}
