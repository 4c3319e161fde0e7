"""How far figures are from published ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

COMPARED = (
    "win_rate",
    "standard_error",
    "discrete_win_rate",
    "length_controlled_winrate",
    "lc_standard_error",
    "n_total",
    "avg_length",
)


def compare(rows: Sequence[dict[str, Any]], leaderboard: Path) -> None:
    """Tell the deviations from a leaderboard by figure; each row gets its "published" ones.

    ValueError: the leaderboard has none of the models.
    """
    from rayward.data.judging.tables import by_name
    from rayward.pipelines.run.metrics import table

    published = by_name(leaderboard, COMPARED)
    deviations: dict[str, list[tuple[float, str]]] = {name: [] for name in COMPARED}
    for row in rows:
        if (of_model := published.get(row["model"])) is None:
            continue
        row["published"] = of_model
        for name, value in of_model.items():
            if row[name] is not None and (name != "n_total" or row[name]):
                deviations[name].append((abs(row[name] - value), row["model"]))
    if not any("published" in row for row in rows):
        raise ValueError(f"{leaderboard} has a row of none of the {len(rows)} models")
    lines = []
    for name, of_models in deviations.items():
        if of_models:
            largest, model = max(of_models)
            mean = sum(value for value, _ in of_models) / len(of_models)
            lines.append((name, len(of_models), f"{mean:.2g}", f"{largest:.2g}", model))
    columns = ("figure", "models", "mean deviation", "largest", "of")
    table(f"beside {leaderboard}", lines, columns)
    if absent := [row["model"] for row in rows if "published" not in row]:
        print(f"not in {leaderboard}: {', '.join(absent)}")
