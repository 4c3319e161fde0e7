"""Style-controlled win rates of the models that were compared with one baseline by one judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayward.data.judging.annotations import Verdict
    from rayward.pipelines.judging.statistics.verdict_groups import Comparison

STRONG = 3  # how often a review counts that says >> or <<, as Arena-Hard has it


def add_style(rows: Sequence[dict[str, Any]], found: Sequence[Comparison], seed: int) -> None:
    """Put the rates into the rows, and print them with the weights of style.

    Models that were compared with the same baseline by the same judge share those weights.
    ValueError: a row of lists, which has no answers.
    """
    from rayward.data.judging.style import NAMES
    from rayward.pipelines.run.metrics import table

    by_judge: dict[tuple[str, str], list[int]] = {}
    for index, comparison in enumerate(found):
        if comparison.verdicts[0].place is not None:
            raise ValueError(f"--style: lists of {comparison.of.model} have no answers to look at")
        key = (comparison.of.baseline, comparison.of.annotator)
        by_judge.setdefault(key, []).append(index)
    for (baseline, judge), places in by_judge.items():
        weights = _add_to(
            [rows[place] for place in places], [found[place] for place in places], seed
        )
        lines = [
            (
                rows[place]["model"],
                "{style_controlled_winrate:.2f} [{style_low:.2f}, {style_high:.2f}]".format(
                    **rows[place]
                ),
            )
            for place in places
            if "style_low" in rows[place]
        ]
        table(
            f"style-controlled win rates against {baseline}, judged by {judge}, in %",
            lines,
            ("model", "rate [95 %]"),
        )
        told = ", ".join(f"{name} {value:+.3f}" for name, value in zip(NAMES, weights, strict=True))
        print(f"weights of style: {told}")


def _add_to(
    rows: Sequence[dict[str, Any]], found: Sequence[Comparison], seed: int
) -> Sequence[float]:
    """The rates of these models into their rows; the weights of style."""
    from rayward.algorithms.judging.style_control import controlled, differences
    from rayward.algorithms.judging.win_rates import shares
    from rayward.data.judging.style import style_of
    from rayward.pipelines.judging.statistics.verdict_groups import number_or_nan

    # A model without a verdict has no rate, and takes no number.
    judged = [
        (row, [verdict for verdict in comparison.verdicts if verdict.preference is not None])
        for row, comparison in zip(rows, found, strict=True)
    ]
    judged = [(row, verdicts) for row, verdicts in judged if verdicts]
    if not judged:
        return [0.0] * 4
    flat = [(number, of) for number, (_, verdicts) in enumerate(judged) for of in verdicts]
    styles = [[style_of(of.row[name]) for _, of in flat] for name in ("output_2", "output_1")]
    got = controlled(
        shares([number_or_nan(of.preference) for _, of in flat]),
        [_weight(of) for _, of in flat],
        differences(styles[0], styles[1]),
        [number for number, _ in flat],
        [of.instruction for _, of in flat],
        seed,
    )
    for number, (row, _) in enumerate(judged):
        row["style_controlled_winrate"] = float(got.rate_M[number])
        row["style_low"], row["style_high"] = float(got.low_M[number]), float(got.high_M[number])
    return [float(weight) for weight in got.weights_S]


def _weight(verdict: Verdict) -> int:
    """How often it counts: each review with a grade once, with one of the strong ones thrice."""
    reviews = verdict.row.get("reviews")
    said = [
        review["verdict"]
        for review in (reviews if isinstance(reviews, list) else ())
        if isinstance(review, dict) and isinstance(review.get("verdict"), str)
    ]
    return sum(STRONG if ">>" in each or "<<" in each else 1 for each in said) or 1
