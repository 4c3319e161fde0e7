"""Win rates on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def tell(rows: list[dict[str, Any]]) -> None:
    """A table for each baseline and judge, and one of models with several baselines."""
    from rayward.pipelines.run.metrics import table

    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["baseline"], row["annotator"]), []).append(row)
    columns = ("model", "win rate [95 %]", "SE", "discrete", "LC", "n", "none", "chars")
    for (baseline, annotator), of_group in groups.items():
        judge = f", judged by {annotator}" if annotator else ""
        against = f"against {baseline}" if baseline else "by their weights"
        table(f"win rates {against}{judge}, in %", [_shown(row) for row in of_group], columns)
    _tell_baselines(rows)


def _shown(row: dict[str, Any]) -> tuple[Any, ...]:
    """The columns of a model on the terminal."""
    numbers = [
        row[name] for name in ("standard_error", "discrete_win_rate", "length_controlled_winrate")
    ]
    shown = ["-" if number is None else f"{number:.2f}" for number in numbers]
    if "lc_low" in row:
        shown[2] += " [{lc_low:.2f}, {lc_high:.2f}]".format(**row)
    length = "-" if row["avg_length"] is None else row["avg_length"]
    return (row["model"], _rate(row), *shown, row["n_total"], row["n_missing"], length)


def _rate(row: dict[str, Any]) -> str:
    if row["win_rate"] is None:
        return "-"
    return f"{row['win_rate']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _tell_baselines(rows: list[dict[str, Any]]) -> None:
    """Models that were compared with several baselines: a column each, side by side."""
    from rayward.pipelines.run.metrics import table

    of_model: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        key = (row["model"], row["annotator"])
        of_model.setdefault(key, {})[row["baseline"]] = _rate(row)
    several = {key: cells for key, cells in of_model.items() if len(cells) > 1}
    if several:
        baselines = list(dict.fromkeys(name for cells in several.values() for name in cells))
        lines = [
            (*key, *(cells.get(baseline, "-") for baseline in baselines))
            for key, cells in several.items()
        ]
        columns = ("model", "judge", *(f"vs {baseline}" for baseline in baselines))
        table("win rates by baseline, in % [95 %]", lines, columns)


def tell_refit(difficulty: Path | None) -> None:
    """What fitted rates are not."""
    fitted = (
        "LC: weights fitted to these verdicts, without AlpacaEval's data of a baseline that games"
    )
    if difficulty:
        print(f"{fitted}\nlengths: its published rates are others (docs/judging.md says how far)")
    else:
        print(f"{fitted}\nlengths, and by length alone: no figure of AlpacaEval's")
