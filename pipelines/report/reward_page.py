"""The page of `rayward reward-eval`: its figures by source, reliability, accuracy by margin and by
rank; no network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from rayward.pipelines.report.page import picture, render


def write_page(path: Path, found: dict[str, Any]) -> Path:
    """Write the page; its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        render("reward_page.html", title=Path(found["model"]).name, plots=_plots, **found),
        encoding="utf-8",
    )
    return path


def _plots(of: dict[str, Any]) -> Markup:
    """Reliability, accuracy by the size of the score difference, accuracy by the difference in
    rank, as SVG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4))
    reliability, margin, rank = figure.subplots(1, 3)
    bins = of["calibration"]["bins"]
    reliability.plot([0.5, 1], [0.5, 1], color="#999", linestyle="--")
    reliability.plot([row["value"] for row in bins], [row["accuracy"] for row in bins], marker="o")
    reliability.set(
        title="reliability", xlabel="sigmoid of the score difference", ylabel="share that is right"
    )
    for axis, rows, label in (
        (margin, of["by_margin"], "score difference"),
        (rank, of["by_rank"], "difference in rank"),
    ):
        axis.axhline(0.5, color="#999", linestyle="--")
        axis.plot([row["value"] for row in rows], [row["accuracy"] for row in rows], marker="o")
        axis.set(title=f"accuracy by {label}", xlabel=label, ylabel="pair accuracy")
    for axis in (reliability, margin, rank):
        axis.set_ylim(0, 1.02)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    svg = picture(figure, "svg").decode()
    return Markup(svg[svg.index("<svg") :])
