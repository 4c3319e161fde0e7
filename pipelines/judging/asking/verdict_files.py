"""What `rayward judge pairwise` leaves behind: verdicts.jsonl, summary.json and a table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any


def close(
    options: argparse.Namespace, rows: Sequence[dict[str, Any]], account: dict[str, Any]
) -> int:
    """Write the verdicts and their summary, and print it; the status: 1 where some are missing."""
    from rayward.data.formats.files.outputs import open_output
    from rayward.pipelines.judging.asking.account import tell_account
    from rayward.pipelines.run.files import write_json

    summary = summarize(rows, options.seed) | account
    path = options.out / "verdicts.jsonl"
    with open_output(path) as file:  # a killed command leaves the old one whole
        for row in rows:
            file.write(row)
    write_json(options.out / "summary.json", summary)
    _print(summary)
    return max(tell_account(account, path), int(summary["missing"] > 0))


def summarize(rows: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """The figures of a comparison, over all and by category. Rates are in percent.

    Ties count one half; what has no preference is out of the denominators. The conflict rate is of
    the comparisons of which both orders can be read.
    """
    figures = _figures(rows, seed)
    categories = sorted({str(row["category"]) for row in rows})
    by_category = {
        category: _figures([row for row in rows if str(row["category"]) == category], seed)
        for category in categories
    }
    by_turn = {
        turn: _figures([row for row in rows if row["turn"] == turn], seed)
        for turn in sorted({row["turn"] for row in rows})
    }
    first = rows[0]
    return {
        "model": first["generator_2"],
        "baseline": first["generator_1"],
        "annotator": first["annotator"],
        **figures,
        "by_category": by_category,
        "by_turn": by_turn if len(by_turn) > 1 else {},
    }


def _figures(rows: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    from rayward.algorithms.judging.win_rates import win_rate

    preferences = [row["preference"] for row in rows]
    read = [preference for preference in preferences if preference is not None]
    rate = win_rate([float("nan") if p is None else p for p in preferences], seed)
    conflicts = [row["conflict"] for row in rows if row["conflict"] is not None]
    share = 100 * sum(conflicts) / len(conflicts) if conflicts else None
    return {
        "win_rate": rate["win_rate"],
        "low": rate["low"],
        "high": rate["high"],
        "wins": sum(preference > 1.5 for preference in read),
        "ties": sum(preference == 1.5 for preference in read),
        "losses": sum(preference < 1.5 for preference in read),
        "identical": sum(row["identical"] for row in rows),
        "comparisons": len(rows),
        "unreadable": sum(row["preference"] is None and "missing" not in row for row in rows),
        "missing": sum("missing" in row for row in rows),
        "conflict_rate": share,
        "both_orders": len(conflicts),
    }


def _print(summary: dict[str, Any]) -> None:
    from rayward.pipelines.run.metrics import table

    columns = ("", "win rate [95 %]", "wins", "ties", "losses", "no verdict", "conflicts")
    parts = [("all", summary)]
    parts += [(f"turn {turn}", part) for turn, part in summary["by_turn"].items()]
    if len(summary["by_category"]) > 1:
        parts += [(name or "(none)", part) for name, part in summary["by_category"].items()]
    title = f"{summary['model']} against {summary['baseline']}, judged by {summary['annotator']}"
    table(title, [_line(name, part) for name, part in parts], columns)


def _line(name: str, part: dict[str, Any]) -> tuple[Any, ...]:
    rate = "-"
    if part["win_rate"] is not None:
        rate = f"{part['win_rate']:.2f} [{part['low']:.2f}, {part['high']:.2f}]"
    conflicts = "-" if part["conflict_rate"] is None else f"{part['conflict_rate']:.1f} %"
    counts = (part["wins"], part["ties"], part["losses"], part["unreadable"] + part["missing"])
    return (name, rate, *counts, conflicts)
