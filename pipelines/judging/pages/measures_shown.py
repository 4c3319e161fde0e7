"""The agreement of judges on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rayward.pipelines.judging.statistics.measures import is_no_better_than_length
from rayward.pipelines.report.judge_words import shown

Rows = Sequence[Mapping[str, Any]]
COMMON = ("same", "kappa", "accuracy")


def tell(report: Mapping[str, Any]) -> None:
    """Print all of it as tables, and which judges are no better than length."""
    print(
        f"{report['labelled']} labelled pairs of {report['prompts']} prompts, "
        f"{report['label_ties']} of them ties"
    )
    _tell_humans(report["humans"])
    _tell_judges(report["judges"])
    _tell_rankings(report["rankings"])


def _tell_humans(rows: Rows) -> None:
    lines = [
        (" and ".join(row["labellers"]), *(shown(row[name]) for name in COMMON), row["n"])
        for row in rows
    ]
    _table("labellers among themselves [95 %]", lines, ("", *COMMON, "n"))


def _tell_judges(rows: Rows) -> None:
    lines = [
        (row["judge"], *(shown(row[name]) for name in COMMON), row["n"], row["missing"])
        for row in rows
    ]
    _table("judges against the labels [95 %]", lines, ("judge", *COMMON, "n", "none"))
    longer, *others = rows
    print(f"the labels prefer the longer answer in {shown(longer['labels_prefer_longer'])}")
    lines = [
        (
            row["judge"],
            shown(row["prefers_longer"]),
            shown(row["beyond_length"]),
            _share(row["conflicts"]),
            _share(row["self_consistency"]),
        )
        for row in others
    ]
    columns = ("judge", "prefers longer", "beyond length", "order conflicts", "with itself")
    _table("length, order, itself", lines, columns)
    for row in others:
        if is_no_better_than_length(row):
            print(f"{row['judge']} is no better than taking the longer answer, by these pairs")


def _tell_rankings(rows: Rows) -> None:
    lines = [
        (row["judge"], shown(row["pairs_in_order"]), shown(row["spearman"]), row["rankings"])
        for row in rows
    ]
    _table("rankings made again", lines, ("judge", "pairs in order", "Spearman", "rankings"))


def _table(title: str, lines: list[tuple[Any, ...]], columns: tuple[str, ...]) -> None:
    from rayward.pipelines.run.metrics import table

    if lines:
        table(title, lines, columns)


def _share(of: Mapping[str, Any]) -> str:
    return "-" if of["mean"] is None else f"{of['mean']:.3f} of {of['n']}"
