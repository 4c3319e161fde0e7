"""The figures of RewardBench 2 and RM-Bench, from a reward model's scores of their answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayward.algorithms.reward_benches import (
    LEVELS,
    TIES_WEIGHTS,
    Gaps,
    Part,
    best_of,
    figure,
    gaps,
    styles,
    ties,
)
from rayward.data.judging.annotations import BadRow
from rayward.data.judging.benches import REWARDBENCH2, RM_BENCH, TIES, BenchRow, bench_rows
from rayward.pipelines.rows.left_out import LeftOut

SUBSETS = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")
DOMAINS = ("chat", "code", "math", "safety")
SAFETY = ("safety-refuse", "safety-response")
"""RM-Bench's domain of safety is the mean of these two."""
TIES_FIGURES = (
    "accuracy, tied",
    "accuracy, one right",
    "margin",
    "margin, smaller gap",
    "tie-break",
)
NOT_WHOLE = "row of a benchmark without the scores of all its answers"
REPEATED = "id of Ties that comes again"


@dataclass(frozen=True)
class Scored:
    """A row and the scores of its answers, in their order."""

    row: BenchRow
    chosen: tuple[float, ...]
    rejected: tuple[float, ...]


def by_bench(
    paths: Iterable[str],
    scores_of: Mapping[str, Mapping[str, float]],
    left_out: LeftOut,
    seed: int,
) -> dict[str, Any]:
    """The figures of each benchmark that has rows in the files; {} where none has.

    `scores_of`: by FILE:LINE of the rankings that were scored, the score of each answer by its text
    without white space around it. Rows of which an answer has none are in `left_out`.
    """
    by_name: dict[str, list[Scored]] = {}
    # A file that is given twice counts once.
    for path in dict.fromkeys(paths):
        for row in bench_rows(path):
            if isinstance(row, BadRow):
                where = f"{row.file}:{row.line}: {row.error.field}"
                left_out.add(where, f"row: {row.error.reason}", row.error.found, row.error.expected)
            elif row.place in scores_of and (scored := _scored(row, scores_of, left_out)):
                by_name.setdefault(row.bench, []).append(scored)
    makers = {REWARDBENCH2: rewardbench2, RM_BENCH: rm_bench}
    figures = {name: makers[name](rows, left_out, seed) for name, rows in by_name.items()}
    return {name: found for name, found in figures.items() if found}


def _scored(
    row: BenchRow, scores_of: Mapping[str, Mapping[str, float]], left_out: LeftOut
) -> Scored | None:
    known = scores_of[row.place]
    sides = [
        tuple(known[text.strip()] for text in answers if text.strip() in known)
        for answers in (row.chosen, row.rejected)
    ]
    found, whole = sum(map(len, sides)), len(row.chosen) + len(row.rejected)
    if found < whole:
        left_out.add(
            row.place, NOT_WHOLE, f"{found} of {whole}", "answers that all fit the context"
        )
        return None
    return Scored(row, *sides)


def rewardbench2(rows: Sequence[Scored], left_out: LeftOut, seed: int) -> dict[str, Any]:
    """Score by subset and their mean, the parts of Ties, and which subsets are not there."""
    by_subset: dict[str, list[Scored]] = {}
    for each in rows:
        name = each.row.group or "unnamed"
        by_subset.setdefault("Ties" if name.lower() == TIES else name, []).append(each)
    tied = by_subset.pop("Ties", [])
    parts = {
        name: Part(np.array([[best_of(each.chosen, each.rejected)] for each in of_subset]), (1.0,))
        for name, of_subset in by_subset.items()
    }
    by_ties: dict[str, Any] = {}
    if tied:
        values_N5 = ties(_by_number(tied, left_out))
        parts["Ties"] = Part(values_N5, TIES_WEIGHTS)
        ones = np.eye(len(TIES_WEIGHTS))
        by_ties = {
            name: figure([Part(values_N5, ones[place].tolist())], seed)
            for place, name in enumerate(TIES_FIGURES)
        }
    order = sorted(parts, key=lambda name: (_place(SUBSETS, name), name))
    share = 1 / len(parts)
    whole = [Part(part.values_NK, [share * w for w in part.weights_K]) for part in parts.values()]
    return {
        "subsets": {name: figure([parts[name]], seed) for name in order},
        "ties": by_ties,
        "mean": figure(whole, seed),
        "missing": [name for name in SUBSETS if name not in parts],
    }


def _place(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else len(names)


def _by_number(rows: Sequence[Scored], left_out: LeftOut) -> list[tuple[Gaps | None, Gaps | None]]:
    """The gaps of each prompt of Ties: of its many right answers, and of its one."""
    found: dict[str, dict[str, Gaps]] = {}
    for each in rows:
        kind, _, number = each.row.id.partition(":")
        of_prompt = found.setdefault(number, {})
        if kind in of_prompt:
            left_out.add(each.row.place, REPEATED, each.row.id, "each id once")
            continue
        of_prompt[kind] = gaps(each.chosen, each.rejected)
    return [(of_prompt.get("tied"), of_prompt.get("ref")) for of_prompt in found.values()]


def rm_bench(rows: Sequence[Scored], left_out: LeftOut, seed: int) -> dict[str, Any]:
    """Hard, normal and easy accuracy and their mean, by domain and over all domains alike.

    Safety is the mean of its two halves.
    """
    values: dict[str, Any] = {}
    for name in dict.fromkeys(each.row.group for each in rows):
        of_group = [each for each in rows if each.row.group == name]
        values[name] = np.stack([styles(each.chosen, each.rejected) for each in of_group])
    domains: dict[str, list[str]] = {}
    for name in values:
        domains.setdefault("safety" if name in SAFETY else name or "unnamed", []).append(name)

    def levels(names: Sequence[str]) -> dict[str, Any]:
        """Each level and their mean, over the domains of these names alike."""
        shares = {
            group: 1 / len(names) / len(domains[name]) for name in names for group in domains[name]
        }
        weights = {level: np.eye(len(LEVELS))[place] for place, level in enumerate(LEVELS)}
        weights["mean"] = np.full(len(LEVELS), 1 / len(LEVELS))
        return {
            level: figure(
                [Part(values[group], (share * of).tolist()) for group, share in shares.items()],
                seed,
            )
            for level, of in weights.items()
        }

    order = sorted(domains, key=lambda name: (_place(DOMAINS, name), name))
    missing = [name for name in DOMAINS if name not in domains]
    if "safety" in domains:
        missing += [name for name in SAFETY if name not in values]
    return {
        "domains": {name: levels([name]) for name in order},
        "all": levels(order),
        "missing": missing,
    }
