"""`rayward judge winrate FILE...`: numbers of AlpacaEval, from its annotations or from ours."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from rayward.pipelines.judging.options import add_json, add_seed, tell_left_out, write_result

if TYPE_CHECKING:
    from rayward.data.judging.annotations import Verdict
    from rayward.pipelines.rows.left_out import LeftOut

Key = tuple[str, str, str]  # model, baseline, annotator


def add(actions: argparse._SubParsersAction) -> None:
    """Declare the command."""
    parser = actions.add_parser(
        "winrate", help="win rates of AlpacaEval from files of verdicts, with intervals"
    )
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="annotations.json of AlpacaEval, verdicts of judge pairwise, or a row a model with "
        "lists of preferences; folders of these",
    )
    add_seed(parser)
    add_json(parser)
    parser.set_defaults(run_command=_run)


def _run(options: argparse.Namespace) -> int:
    from rayward.pipelines.rows.left_out import LeftOut
    from rayward.pipelines.run.metrics import table

    left_out = LeftOut()
    of_all = read(options.files, left_out)
    rows = [figures(key, of_one, options.seed) for key, of_one in of_all.items()]
    columns = ("model", "baseline", "win rate [95 %]", "SE", "discrete", "n", "missing", "length")
    table("win rates, in %", [_shown(row) for row in rows], columns)
    tell_left_out(left_out)
    write_result(options.json, rows)
    return 0


def read(files: list[str], left_out: LeftOut) -> dict[Key, list[Verdict]]:
    """The verdicts of files by model, baseline and annotator, in the order of the files.

    What is none is in `left_out`. ValueError: there is no verdict in them.
    """
    from rayward.data.judging.annotations import BadRow, verdicts

    of_all: dict[Key, list[Verdict]] = {}
    for path in files:
        for verdict in verdicts(path):
            if isinstance(verdict, BadRow):
                error = verdict.error
                where = f"{verdict.file}:{verdict.line}: {error.field}"
                left_out.add(where, error.reason, error.found, error.expected)
                continue
            key = (verdict.model, verdict.baseline, verdict.annotator)
            of_all.setdefault(key, []).append(verdict)
    if not of_all:
        raise ValueError(f"{', '.join(map(str, files))}: no verdict in it; {left_out.rows[:1]}")
    return of_all


def figures(key: Key, verdicts: list[Verdict], seed: int) -> dict[str, Any]:
    """What AlpacaEval's leaderboard says of a model, with the interval of its win rate."""
    from rayward.algorithms.judging.win_rates import win_rate

    model, baseline, annotator = key
    preferences = [
        float("nan") if verdict.preference is None else verdict.preference for verdict in verdicts
    ]
    rate = win_rate(preferences, seed)
    # An answer that is missing has no length.
    lengths = [verdict.length_2 for verdict in verdicts if verdict.length_2 is not None]
    return {
        "model": model,
        "win_rate": rate["win_rate"],
        "standard_error": rate["standard_error"],
        "discrete_win_rate": rate["discrete_win_rate"],
        "length_controlled_winrate": None,
        "n_total": rate["n_total"],
        "avg_length": int(sum(lengths) / len(lengths)) if lengths else None,
        "low": rate["low"],
        "high": rate["high"],
        "baseline": baseline,
        "annotator": annotator,
        "n_missing": len(verdicts) - rate["n_total"],
    }


def _shown(row: dict[str, Any]) -> tuple[Any, ...]:
    """The columns of a model on the terminal."""
    rate = "-"
    if row["win_rate"] is not None:
        rate = f"{row['win_rate']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    numbers = [row["standard_error"], row["discrete_win_rate"]]
    shown = ["-" if number is None else f"{number:.2f}" for number in numbers]
    length = "-" if row["avg_length"] is None else row["avg_length"]
    return (row["model"], row["baseline"], rate, *shown, row["n_total"], row["n_missing"], length)
