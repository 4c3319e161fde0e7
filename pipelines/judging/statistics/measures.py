"""What judges, people and length have in common on labelled pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayward.data.judging.annotations import Verdict
    from rayward.data.judging.labels import LabelledPair, Rejudged
    from rayward.pipelines.rows.left_out import LeftOut

LONGER = "the longer answer"
AGAIN = "rankings made again, by majority"


def measure(
    pairs: Sequence[LabelledPair],
    files: Sequence[str],
    again: Sequence[Rejudged],
    seed: int,
    left_out: LeftOut,
) -> list[dict[str, Any]]:
    """The figures of the longer answer, of each judge that has verdicts in the files, and of
    rankings that were made again.
    """
    from rayward.data.judging.labels import verdict_on
    from rayward.pipelines.judging.statistics.labelled_pairs import read_verdicts

    longer = {index: _longer(pair) for index, pair in enumerate(pairs)}
    rows = [figures_of(LONGER, pairs, longer, {}, seed)]
    for judge, verdicts in read_verdicts(files, pairs, left_out).items():
        sides = {index: verdict_on(of, pairs[index]) for index, of in verdicts.items()}
        said = {index: side for index, side in sides.items() if side is not None}
        rows.append(figures_of(judge, pairs, said, verdicts, seed))
    if again:
        rows.append(_of_majority(pairs, again, seed))
    return rows


def _of_majority(
    pairs: Sequence[LabelledPair], again: Sequence[Rejudged], seed: int
) -> dict[str, Any]:
    """What most of the rankings of the same answers say, and how far they agree on a pair."""
    by_group: dict[str, list[Rejudged]] = {}
    for ranking in again:
        by_group.setdefault(ranking.group, []).append(ranking)
    said: dict[int, float] = {}
    equal, count = 0, 0
    for index, pair in enumerate(pairs):
        found = [ranking.verdict_on(pair) for ranking in by_group.get(pair.group, ())]
        sides = [side for side in found if side is not None]
        if sides:
            second = sum(sides)
            said[index] = _side(second - len(sides) / 2)
            for one, other in combinations(sides, 2):
                equal, count = equal + (one == other), count + 1
    row = figures_of(AGAIN, pairs, said, {}, seed)
    return row | {"self_consistency": {"mean": equal / count if count else None, "n": count}}


def by_scores(
    judge: str,
    pairs: Sequence[LabelledPair],
    scores: Sequence[tuple[float, float]],
    seed: int,
) -> list[dict[str, Any]]:
    """The figures of the longer answer, and of a judge that gives each answer a number.

    `scores`: of the first and the second answer of each pair; NaN for none, which is no verdict.
    """
    gaps = {index: second - first for index, (first, second) in enumerate(scores)}
    said = {index: _side(gap) for index, gap in gaps.items() if gap == gap}  # NaN equals nothing
    longer = {index: _longer(pair) for index, pair in enumerate(pairs)}
    return [figures_of(LONGER, pairs, longer, {}, seed), figures_of(judge, pairs, said, {}, seed)]


def is_no_better_than_length(row: Mapping[str, Any]) -> bool:
    """Whether the interval of a judge's accuracy less that of taking the longer answer does not lie
    above 0.
    """
    low = row["beyond_length"]["low"]
    return low is None or low <= 0


def _side(difference: float) -> float:
    """1 above 0, 0 below it, 0.5 at it."""
    return 0.5 + 0.5 * ((difference > 0) - (difference < 0))


def _longer(pair: LabelledPair) -> float:
    return _side(len(pair.second) - len(pair.first))


def figures_of(
    judge: str,
    pairs: Sequence[LabelledPair],
    said: Mapping[int, float],
    verdicts: Mapping[int, Verdict],
    seed: int,
) -> dict[str, Any]:
    """What a judge that `said` a side of each pair (0, 1, 0.5 for a tie) has in common with the
    labels; its `verdicts`, where it has some, tell of order and samples.
    """
    from rayward.algorithms.judging.agreement import accuracy, better_than, longer_preferred, same

    of_both = [pairs[index] for index in said]
    sides, labels = list(said.values()), [pair.label() or 0.0 for pair in of_both]
    groups = [pair.group for pair in of_both]
    gaps = [len(pair.second) - len(pair.first) for pair in of_both]
    longer = [_longer(pair) for pair in of_both]
    return {
        "judge": judge,
        "n": len(said),
        "missing": len(pairs) - len(said),
        "ties": sum(side == 0.5 for side in sides),
        **same(sides, labels, groups, seed),
        "accuracy": accuracy(sides, labels, groups, seed),
        "beyond_length": better_than(sides, longer, labels, groups, seed),
        "prefers_longer": longer_preferred(sides, gaps, groups, seed),
        "labels_prefer_longer": longer_preferred(labels, gaps, groups, seed),
        "conflicts": _conflicts(verdicts.values()),
        "self_consistency": _consistency(verdicts.values()),
    }


def _conflicts(verdicts: Any) -> dict[str, Any]:
    """How often the winner changes with the order, of verdicts with a review of each order."""
    known = [verdict.row["conflict"] for verdict in verdicts if _is_told(verdict)]
    return {"mean": sum(known) / len(known) if known else None, "n": len(known)}


def _is_told(verdict: Verdict) -> bool:
    return isinstance(verdict.row.get("conflict"), bool)


def _consistency(verdicts: Any) -> dict[str, Any]:
    """Share of the pairs of samples of one order, asked the same, that prefer the same answer."""
    equal, count = 0, 0
    for verdict in verdicts:
        by_order: dict[Any, list[float]] = {}
        for review in verdict.row.get("reviews") or ():
            preference = review.get("preference")
            if preference is not None:
                side = (preference > 1.5) - (preference < 1.5)
                by_order.setdefault(review.get("order"), []).append(side)
        for sides in by_order.values():
            for one, other in combinations(sides, 2):
                equal, count = equal + (one == other), count + 1
    return {"mean": equal / count if count else None, "n": count}


def of_humans(pairs: Sequence[LabelledPair], seed: int) -> list[dict[str, Any]]:
    """How far each two labellers agree, where there are several."""
    from rayward.algorithms.judging.agreement import accuracy, same

    names = list(dict.fromkeys(name for pair in pairs for name in pair.labels))
    rows = []
    for one, other in combinations(names, 2):
        both = [pair for pair in pairs if one in pair.labels and other in pair.labels]
        if not both:
            continue
        first, second = ([pair.labels[name] for pair in both] for name in (one, other))
        groups = [pair.group for pair in both]
        rows.append(
            {
                "labellers": [one, other],
                "n": len(both),
                **same(first, second, groups, seed),
                "accuracy": accuracy(first, second, groups, seed),
            }
        )
    return rows


def of_rankings(found: Sequence[Rejudged], seed: int) -> list[dict[str, Any]]:
    """How far rankings that were made again have the pairs in the order of before, by judge."""
    import numpy as np

    from rayward.algorithms.judging.agreement import mean_of, numbered, pairs_in_order, spearman

    by_judge = {"all": list(found)}
    for each in found:
        by_judge.setdefault(each.judge, []).append(each)
    if len(by_judge) == 2:
        del by_judge["all"]
    rows = []
    for judge, of_one in by_judge.items():
        if of_one:
            groups = numbered([each.group for each in of_one])
            in_order = np.array([pairs_in_order(each.order) for each in of_one])
            correlation = np.array([spearman(each.order) for each in of_one])
            rows.append(
                {
                    "judge": judge,
                    "rankings": len(of_one),
                    "pairs_in_order": mean_of(in_order, groups, seed),
                    "spearman": mean_of(correlation, groups, seed),
                }
            )
    return rows
