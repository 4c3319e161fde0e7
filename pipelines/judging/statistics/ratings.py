"""Ratings of single answers, as MT-Bench has them: by model, turn and category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayward.data.judging.judgments import Id, Rating


def ratings(found: Sequence[Rating], categories: Mapping[Id, str], seed: int) -> list[dict]:
    """A row for each model and judge, in the order of the files.

    Of several ratings of a turn the last one counts, as with FastChat; one without a number counts
    as "unratable", and in no mean. `categories`: by question, of rows that do not say theirs.
    """
    groups: dict[tuple[str, str], list[Rating]] = {}
    for each in found:
        groups.setdefault((each.model, each.judge), []).append(each)
    return [_row(*key, of_one, categories, seed) for key, of_one in groups.items()]


def _row(
    model: str, judge: str, found: Sequence[Rating], categories: Mapping[Id, str], seed: int
) -> dict[str, Any]:
    last = {(each.question, each.turn): each for each in found}
    kept = list(last.values())
    rated = [each for each in kept if each.score is not None]
    turns = sorted({each.turn for each in kept})
    by_category: dict[str, list[Rating]] = {}
    for each in rated:
        category = each.category or categories.get(each.question, "")
        by_category.setdefault(category, []).append(each)
    unlike = [each for each in found if each.score != each.parsed]
    return {
        "model": model,
        "judge": judge,
        **_mean(rated, seed),
        "turns": {turn: _mean([each for each in rated if each.turn == turn], seed)
                  for turn in turns},
        "categories": {
            category: {
                **_mean(of_one, seed),
                "turns": {turn: _mean([each for each in of_one if each.turn == turn], seed)
                          for turn in turns},
            }
            for category, of_one in sorted(by_category.items())
        },
        "unratable": len(kept) - len(rated),
        "repeated": len(found) - len(kept),
        "parser": {
            "equal": len(found) - len(unlike),
            "other": [
                {"question_id": each.question, "turn": each.turn, "score": each.score,
                 "parsed": each.parsed}
                for each in unlike
            ],
        },
    }  # fmt: skip


def _mean(found: Sequence[Rating], seed: int) -> dict[str, Any]:
    from rayward.algorithms.judging.ratings import mean_rating

    scores = [each.score for each in found if each.score is not None]
    return mean_rating(scores, [each.question for each in found], seed)


def tell_ratings(rows: Sequence[dict[str, Any]]) -> None:
    """Print them: by turn, and by category where there are some."""
    from rayward.pipelines.run.metrics import table

    if not rows:
        return
    turns = sorted({turn for row in rows for turn in row["turns"]})
    columns = ("model", "judge", *(f"turn {turn}" for turn in turns), "mean [95 %]")
    columns += ("n", "unratable", "repeated", "parser")
    lines = [
        (
            row["model"],
            row["judge"],
            *(_shown(row["turns"].get(turn)) for turn in turns),
            _with_interval(row),
            row["n"],
            row["unratable"],
            row["repeated"],
            f"{row['parser']['equal']}/{row['parser']['equal'] + len(row['parser']['other'])}",
        )
        for row in rows
    ]
    table("mean ratings", lines, columns)
    names = sorted({name for row in rows for name in row["categories"]} - {""})
    if names:
        lines = [
            (row["model"], *(_shown(row["categories"].get(name)) for name in names)) for row in rows
        ]
        table("mean ratings by category", lines, ("model", *names))
    for row in rows:
        for other in row["parser"]["other"][:3]:
            print(
                "{model}, question {question_id}, turn {turn}: the row says {score}, its text "
                "{parsed}".format(model=row["model"], **other)
            )


def _shown(figures: dict[str, Any] | None) -> str:
    return "-" if not figures or figures["mean"] is None else f"{figures['mean']:.4f}"


def _with_interval(figures: dict[str, Any]) -> str:
    if figures["mean"] is None:
        return "-"
    return f"{figures['mean']:.4f} [{figures['low']:.2f}, {figures['high']:.2f}]"
