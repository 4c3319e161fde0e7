"""The report's section on reward hacking: curves of the figures, alarms, and answers to fixed prompts side by side."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from typing import Any

from pipelines.monitor import MEANINGS, counts
from pipelines.page import image_html, rows_html
from pipelines.stage import Run, read_jsonl

PANELS = {
    "score, in deviations of iteration 0": ("max_second_drop",),
    "tokens of an answer": ("max_length_ratio", "min_length_ratio"),
    "KL to the SFT model, nats an answer": ("max_kl",),
    "shares": ("max_truncated", "max_repetition", "min_distinct"),
}
"""Titles of the curves, each with the alarms that are marked in it; the RL panel has the curve of the mismatch."""


def monitor_html(run: Run, algorithms: Sequence[str]) -> list[str]:
    """Pieces of the page; none where RL was not watched."""
    watched = [name for name in algorithms if (run.folder / "rl" / name / "alarms.jsonl").is_file()]
    if not watched:
        return []
    pieces = [
        "<h2>Reward hacking</h2><p>A policy that exploits its reward model scores higher without answering better. "
        "Red bands are iterations with an alarm; limits are the settings under rl.monitor.</p>"
    ]
    for name in watched:
        folder = run.folder / "rl" / name
        alarms = list(read_jsonl(folder / "alarms.jsonl"))
        rows = list(read_jsonl(folder / "metrics.jsonl"))
        pieces.append(f"<h3>{name.upper()}</h3>")
        pieces.append(image_html(curves(rows, alarms), f"signs of reward hacking over the iterations of {name}"))
        pieces.append(_alarms(alarms))
        looks = sorted((folder / "fixed").glob("*.jsonl"))
        if looks:
            chosen = sorted({0, len(looks) // 2, len(looks) - 1})
            pieces.append(_answers({int(looks[i].stem): list(read_jsonl(looks[i])) for i in chosen}))
    return pieces


def curves(rows: Sequence[dict[str, Any]], alarms: Sequence[dict[str, Any]]) -> bytes:
    """PNG of an algorithm's figures over the iterations, iterations with an alarm marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    first = rows[0]
    lines = [
        [("reward model", _standardised(rows, "score", first["score_std"]))],
        [("", [row["length"] for row in rows])],
        [("", [row.get("kl", float("nan")) for row in rows])],
        [
            ("different 2-grams", [row["monitor/distinct_2"] for row in rows]),
            ("repeated 4-grams", [row["monitor/repetition"] for row in rows]),
            ("cut answers", [row["monitor/truncated"] for row in rows]),
        ],
    ]
    if "monitor/second_score" in first:
        second = _standardised(rows, "monitor/second_score", first["monitor/second_std"])
        lines[0].append(("second reward model", second))
    steps = [row["step"] for row in rows]
    figure, axes = pyplot.subplots(2, 2, figsize=(6.4, 5.2))
    for axis, (title, names), drawn in zip(axes.flat, PANELS.items(), lines, strict=True):
        for label, values in drawn:
            axis.plot(steps, values, label=label, marker="." if len(steps) < 10 else None)
        for iteration in {alarm["iteration"] for alarm in alarms if alarm["name"] in names}:
            axis.axvspan(iteration - 0.5, iteration + 0.5, color="#d33", alpha=0.15, linewidth=0)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if drawn[0][0]:
            axis.legend(fontsize=9)
    axes[1][1].set_ylim(-0.05, 1.05)
    for axis in axes[1]:
        axis.set_xlabel("iteration")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    pyplot.close(figure)
    return buffer.getvalue()


def _standardised(rows: Sequence[dict[str, Any]], name: str, deviation: float) -> list[float]:
    return [(row[name] - rows[0][name]) / (deviation or 1.0) for row in rows]


def _alarms(alarms: Sequence[dict[str, Any]]) -> str:
    if not alarms:
        return "<p>No alarm.</p>"
    items = []
    for name, of in counts(alarms).items():
        mine = [alarm for alarm in alarms if alarm["name"] == name]
        worst = (max if name.startswith("max") else min)(mine, key=lambda alarm: alarm["value"])
        items.append(
            f"<li><b>{html.escape(name)}</b> in {of['iterations']} iterations ({of['first']} to "
            f"{mine[-1]['iteration']}), limit {worst['limit']:g}, worst: "
            f"{html.escape(MEANINGS[name].format(value=worst['value']))}</li>"
        )
    return f"<p>Alarms:</p><ul>{''.join(items)}</ul>"


def _answers(looks: dict[int, list[dict[str, Any]]]) -> str:
    """Answers to the same prompts at some iterations side by side."""
    rows = []
    for answers in zip(*looks.values(), strict=True):
        cells = [f'<span class="prompt">{html.escape(answers[0]["prompt"])}</span>']
        for row in answers:
            said = {"": row["score"], "second ": row["second"]}
            scores = ", ".join(f"{name}{score:.2f}" for name, score in said.items() if score is not None) or "no score"
            cut = "" if row["finished"] else ", cut"
            text = html.escape(row["answer"])
            cells.append(f'<span class="answer">{text}</span><br><small>{scores}; {row["tokens"]} tokens{cut}</small>')
        rows.append(cells)
    heads = ["prompt", *(f"iteration {iteration}" for iteration in looks)]
    return "<p>Fixed prompts, held out from training:</p>" + rows_html(heads, rows)
