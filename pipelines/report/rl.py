"""The report's section on RL: curves of its figures, where the seconds of an iteration go, a
timeline, transcripts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from markupsafe import Markup

from rayward.pipelines.report.page import Panel, draw, render
from rayward.pipelines.report.timeline import timeline_png
from rayward.pipelines.report.transcripts import transcripts_html
from rayward.pipelines.rl.trace import write_trace
from rayward.pipelines.run.files import read_jsonl
from rayward.pipelines.run.folder import Run

PANELS: tuple[tuple[str, dict[str, str]], ...] = (
    ("reward of an answer", {"score": "as scored", "reward": "shaped, less KL"}),
    ("KL k1 to reference, nats an answer", {"kl": ""}),
    ("KL k3 to reference, nats a token", {"kl_k3": ""}),
    ("entropy, nats a token", {"entropy": ""}),
    ("share of tokens clipped", {"policy/clipfrac": ""}),
    ("KL to the policy that sampled, nats", {"policy/approx_kl": ""}),
    (
        "largest ratio of a token",
        {"policy/ratio_max": "new / old", "policy/inverse_ratio_max": "old / new"},
    ),
    ("explained variance of the critic", {"explained_variance": ""}),
    (
        "advantages",
        {
            "advantage_mean": "mean",
            "advantage_std": "deviation",
            "advantage_max": "highest",
            "advantage_min": "lowest",
        },
    ),
    (
        "share of prompts with one reward for all answers",
        {"equal_groups": "trained", "equal_groups_before": "before extra prompts"},
    ),
    ("tokens of an answer", {"length": "mean", "length_max": "longest"}),
    ("share of answers that end (EOS)", {"finished": ""}),
    (
        "log-prob gap engine - trainer, nats",
        {"mismatch_max": "max", "mismatch_mean": "mean", "mismatch_k3": "k3"},
    ),
    ("gap multiplied over tokens", {"mismatch_factor": ""}),
)
"""Titles of the curves, each with its figures in metrics.jsonl and their labels."""
RATES = {
    "samples_per_s": "{:,.1f} samples/s",
    "generated_tokens_per_s": "{:,.0f} generated tokens/s",
    "training_tokens_per_s": "{:,.0f} training tokens/s",
    "peak_share": "{:.1%} of the peak FLOP/s",
    "overhead_share": "{:.1%} outside generation, scoring and training",
}


def algorithms(run: Run) -> list[str]:
    """The algorithms that left figures in rl/, finished or not, those of the config first."""
    # An empty file is that of a stage which stopped before its first iteration.
    learned = sorted(
        path.parent.name for path in run.folder.glob("rl/*/metrics.jsonl") if path.stat().st_size
    )
    configured = [str(name) for name in run.config.rl.algorithms]
    others = [name for name in learned if name not in configured]
    return [name for name in configured if name in learned] + others


def rl_html(run: Run, names: Sequence[str]) -> list[Markup]:
    """A piece of the page for each of these algorithms. Writes rl/NAME/trace.json where there are
    spans.
    """
    pieces = []
    for name in names:
        folder = run.folder / "rl" / name
        rows = list(read_jsonl(folder / "metrics.jsonl"))
        spans = folder / "spans.jsonl"
        lines = list(read_jsonl(spans)) if spans.is_file() else []
        if lines:
            # Again, for a stage that is not finished has written none.
            write_trace(folder)
            # The middle one is the median iteration, whose timeline is shown.
            lines.sort(key=lambda line: line["ended"] - line["begun"])
        pieces.append(
            render(
                "rl.html",
                name=name,
                curves=curves_png(rows),
                phases=phases_html([row["time"] for row in rows if row.get("time")]),
                middle=lines[(len(lines) - 1) // 2] if lines else None,
                timeline=timeline_png,
                transcripts=transcripts_html(folder / "transcripts"),
            )
        )
    return pieces


def panels(rows: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, list[float]]]]:
    """The curves that these lines of metrics have: titles, each with labels and values; NaN where a
    line has none.
    """
    panels_with_curves = []
    for title, figures in PANELS:
        curves = {}
        for name, label in figures.items():
            # The KL, for one, may be measured every few iterations only.
            values = [math.nan if row.get(name) is None else float(row[name]) for row in rows]
            if any(map(math.isfinite, values)):
                curves[label] = values
        if curves:
            panels_with_curves.append((title, curves))
    return panels_with_curves


def curves_png(rows: Sequence[dict[str, Any]]) -> bytes:
    """Picture of an algorithm's figures over the iterations, two panels a line."""
    steps = [row["step"] for row in rows]
    drawn = []
    for title, curves in panels(rows):
        # A gap of exactly 0 has no logarithm, and where all are there is nothing to scale.
        log = title.startswith("log-prob gap") and any(
            value > 0 for values in curves.values() for value in values
        )
        lines = {label: (steps, values) for label, values in curves.items()}
        drawn.append(Panel(title, lines, axes={"yscale": "log"} if log else {}))
    return draw(drawn)


def phases_html(times: Sequence[dict[str, Any]]) -> str:
    """Medians of the "time" of the lines of metrics, with their shares of the median iteration.

    "" where there is none. Phases overlap where actors work at the same time, so the shares may
    add up to more than all.
    """
    if not times:
        return ""
    # In the order of their first line; not every line has all of them.
    names = dict.fromkeys(name for time in times for name in time)
    seconds = {name: _median(times, name) for name in names}
    rates = [
        text.format(seconds[name]) for name, text in RATES.items() if seconds.get(name) is not None
    ]
    phases = {
        name.removesuffix("_s").replace("_", " "): value
        for name, value in seconds.items()
        if value is not None
        and name.endswith("_s")
        and not name.endswith(("_per_s", "iteration_s", "outside_s"))
    }
    whole = seconds.get("iteration_s") or sum(phases.values())
    outside_s = seconds.get("outside_s")
    if outside_s is not None:
        phases["no actor at work"] = outside_s
    idle = [time["idle_s"] for time in times if "idle_s" in time]
    for role in dict.fromkeys(role for idle_s in idle for role in idle_s):
        idle_s_of_role = _median(idle, role)
        # Of each of these roles some line has seconds.
        assert idle_s_of_role is not None
        phases[f"idle: {role}"] = idle_s_of_role
    return render("phases.html", whole=whole, rates=rates, phases=phases)


def _median(times: Sequence[dict[str, Any]], name: str) -> float | None:
    values = [time[name] for time in times if isinstance(time.get(name), int | float)]
    return float(median(values)) if values else None
