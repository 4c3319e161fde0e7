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
from rayward.pipelines.run.files import read_jsonl
from rayward.pipelines.run.folder import Run

PANELS = {
    "score, in deviations of iteration 0": ("max_second_drop",),
    "tokens of an answer": ("max_length_ratio", "min_length_ratio"),
    "KL to the reference, nats an answer": ("max_kl",),
    "shares": ("max_truncated", "max_repetition", "min_distinct", "max_equal_groups"),
}
"""Titles of the curves, each with the alarms marked in it; the mismatch is in the RL panel."""


def monitor_html(run: Run, algorithms: Sequence[str]) -> list[Markup]:
    """A piece of the page for each algorithm that was watched."""
    pieces = []
    for name in algorithms:
        folder = run.folder / "rl" / name
        if not (folder / "alarms.jsonl").is_file():
            continue
        alarms = list(read_jsonl(folder / "alarms.jsonl"))
        # The first, the middle and the last time that the fixed prompts were answered.
        answer_files = sorted((folder / "fixed").glob("*.jsonl"))
        last = len(answer_files) - 1
        chosen = sorted({0, len(answer_files) // 2, last}) if answer_files else []
        pieces.append(
            render(
                "monitor.html",
                name=name,
                curves=curves(list(read_jsonl(folder / "metrics.jsonl")), alarms),
                alarms=_by_name(alarms),
                looks={
                    int(answer_files[place].stem): list(read_jsonl(answer_files[place]))
                    for place in chosen
                },
            )
        )
    return pieces


def curves(rows: Sequence[dict[str, Any]], alarms: Sequence[dict[str, Any]]) -> bytes:
    """PNG of an algorithm's figures over the iterations, iterations with an alarm marked."""
    first = rows[0]
    steps = [row["step"] for row in rows]
    # In deviations of iteration 0, for two reward models count in scales of their own.
    scores = {"reward model": _standardised(rows, "score", first["score_std"])}
    if "monitor/second_score" in first:
        deviation = first["monitor/second_std"]
        scores["second reward model"] = _standardised(rows, "monitor/second_score", deviation)
    shares = {
        "different 2-grams": "monitor/distinct_2",
        "repeated 4-grams": "monitor/repetition",
        "cut answers": "monitor/truncated",
        "prompts of one reward": "equal_groups",
    }
    # Only some algorithms compare the answers to a prompt.
    shares = {label: name for label, name in shares.items() if name in first}
    # In the order of PANELS. What is measured only now and then has no point elsewhere.
    lines = [
        scores,
        {"": [row["length"] for row in rows]},
        {"": [row.get("kl", math.nan) for row in rows]},
        {label: [row[name] for row in rows] for label, name in shares.items()},
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
    rows = []
    for name, count in counts(alarms).items():
        same = [alarm for alarm in alarms if alarm["name"] == name]
        # Furthest beyond its limit, which may be one from above or from below.
        worst_of = max if name.startswith("max") else min
        worst = worst_of(same, key=lambda alarm: alarm["value"])
        rows.append(
            {
                "name": name,
                "last": same[-1]["iteration"],
                **count,
                "limit": worst["limit"],
                "worst": MEANINGS[name].format(value=worst["value"]),
            }
        )
    return rows
