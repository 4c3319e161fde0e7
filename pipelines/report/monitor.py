"""The report's section on reward hacking: curves of the figures, alarms, and answers to fixed
prompts side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from rayward.pipelines.report.page import Panel, draw, render
from rayward.pipelines.rl.alarms import MEANINGS, counts
from rayward.pipelines.run.stage import Run, read_jsonl

PANELS = {
    "score, in deviations of iteration 0": ("max_second_drop",),
    "tokens of an answer": ("max_length_ratio", "min_length_ratio"),
    "KL to the reference, nats an answer": ("max_kl",),
    "shares": ("max_truncated", "max_repetition", "min_distinct"),
}
"""Titles of the curves, each with the alarms that are marked in it; the RL panel has the curve of
the mismatch.
"""


def monitor_html(run: Run, algorithms: Sequence[str]) -> list[Markup]:
    """A piece of the page for each algorithm that was watched."""
    pieces = []
    for name in algorithms:
        folder = run.folder / "rl" / name
        if not (folder / "alarms.jsonl").is_file():
            continue
        alarms = list(read_jsonl(folder / "alarms.jsonl"))
        looks = sorted((folder / "fixed").glob("*.jsonl"))
        chosen = sorted({0, len(looks) // 2, len(looks) - 1}) if looks else []
        pieces.append(
            render(
                "monitor.html",
                name=name,
                curves=curves(list(read_jsonl(folder / "metrics.jsonl")), alarms),
                alarms=_by_name(alarms),
                looks={int(looks[place].stem): list(read_jsonl(looks[place])) for place in chosen},
            )
        )
    return pieces


def curves(rows: Sequence[dict[str, Any]], alarms: Sequence[dict[str, Any]]) -> bytes:
    """PNG of an algorithm's figures over the iterations, iterations with an alarm marked."""
    first, steps = rows[0], [row["step"] for row in rows]
    scores = {"reward model": _standardised(rows, "score", first["score_std"])}
    if "monitor/second_score" in first:
        deviation = first["monitor/second_std"]
        scores["second reward model"] = _standardised(rows, "monitor/second_score", deviation)
    shares = {
        "different 2-grams": "distinct_2",
        "repeated 4-grams": "repetition",
        "cut answers": "truncated",
    }
    lines = [
        scores,
        {"": [row["length"] for row in rows]},
        {"": [row.get("kl", math.nan) for row in rows]},
        {label: [row[f"monitor/{name}"] for row in rows] for label, name in shares.items()},
    ]
    return draw(
        [
            Panel(
                title,
                {label: (steps, values) for label, values in drawn.items()},
                alarms={alarm["iteration"] for alarm in alarms if alarm["name"] in names},
                axes={"ylim": (-0.05, 1.05)} if title == "shares" else {},
            )
            for (title, names), drawn in zip(PANELS.items(), lines, strict=True)
        ],
        size=(3.3, 2.5),
    )


def _standardised(rows: Sequence[dict[str, Any]], name: str, deviation: float) -> list[float]:
    return [(row.get(name, math.nan) - rows[0][name]) / (deviation or 1.0) for row in rows]


def _by_name(alarms: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the page tells of the alarms of each name."""
    found = []
    for name, of in counts(alarms).items():
        mine = [alarm for alarm in alarms if alarm["name"] == name]
        worst = (max if name.startswith("max") else min)(mine, key=lambda alarm: alarm["value"])
        about = {"limit": worst["limit"], "worst": MEANINGS[name].format(value=worst["value"])}
        found.append({"name": name, "last": mine[-1]["iteration"], **of, **about})
    return found
