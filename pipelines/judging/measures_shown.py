"""The agreement of judges on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def tell(report: Mapping[str, Any]) -> None:
    """Print all of it as tables, and which judges are no better than length."""
    from rayward.pipelines.run.metrics import table

    print(
        f"{report['labelled']} labelled pairs of {report['prompts']} prompts, "
        f"{report['label_ties']} of them ties"
    )
    if report["humans"]:
        lines = [
            (" and ".join(row["labellers"]), _shown(row["same"]), _shown(row["kappa"]),
             _shown(row["accuracy"]), row["n"])
            for row in report["humans"]
        ]  # fmt: skip
        table("labellers among themselves", lines, ("", "same", "kappa", "accuracy", "n"))
    columns = ("judge", "same", "kappa", "accuracy", "n", "none")
    lines = [
        (row["judge"], _shown(row["same"]), _shown(row["kappa"]), _shown(row["accuracy"]),
         row["n"], row["missing"])
        for row in report["judges"]
    ]  # fmt: skip
    table("judges against the labels [95 %]", lines, columns)
    longer, *others = report["judges"]
    print(f"the labels prefer the longer answer in {_shown(longer['labels_prefer_longer'])}")
    columns = ("judge", "prefers longer", "beyond length", "order conflicts", "with itself")
    lines = [
        (row["judge"], _shown(row["prefers_longer"]), _shown(row["beyond_length"]),
         _share(row["conflicts"]), _share(row["self_consistency"]))
        for row in others
    ]  # fmt: skip
    if lines:
        table("length, order, itself", lines, columns)
    for row in others:
        low = row["beyond_length"]["low"]
        if low is None or low <= 0:
            print(f"{row['judge']} is no better than taking the longer answer, by these pairs")
    if report["rankings"]:
        columns = ("judge", "pairs in order", "Spearman", "rankings")
        lines = [
            (row["judge"], _shown(row["pairs_in_order"]), _shown(row["spearman"]), row["rankings"])
            for row in report["rankings"]
        ]
        table("rankings made again", lines, columns)


def _shown(of: Mapping[str, Any]) -> str:
    if of["mean"] is None:
        return "-"
    if of["low"] is None:
        return f"{of['mean']:.3f}"
    return f"{of['mean']:.3f} [{of['low']:.3f}, {of['high']:.3f}]"


def _share(of: Mapping[str, Any]) -> str:
    return "-" if of["mean"] is None else f"{of['mean']:.3f} of {of['n']}"
