"""The page of `rayward reward-eval`: its figures by source, reliability, accuracy by margin and by
rank; no network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from rayward.pipelines.report.page import picture, render


def write_page(path: Path, figures: dict[str, Any]) -> Path:
    """Write the page of what `rayward reward-eval` measured; its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    title = Path(figures["model"]).name
    page = render("reward_page.html", title=title, plots=_plots, **figures)
    path.write_text(page, encoding="utf-8")
    return path


def _plots(measures: dict[str, Any]) -> Markup:
    """Reliability, accuracy by the size of the score difference, accuracy by the difference in
    rank, as SVG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4))
    reliability, margin, rank = figure.subplots(1, 3)
    bins = measures["calibration"]["bins"]
    # A calibrated model lies on the diagonal.
    reliability.plot([0.5, 1], [0.5, 1], color="#999", linestyle="--")
    reliability.plot([row["value"] for row in bins], [row["accuracy"] for row in bins], marker="o")
    reliability.set(
        title="reliability", xlabel="sigmoid of the score difference", ylabel="share that is right"
    )
    for axis, rows, label in (
        (margin, measures["by_margin"], "score difference"),
        (rank, measures["by_rank"], "difference in rank"),
    ):
        axis.axhline(0.5, color="#999", linestyle="--")
        axis.plot([row["value"] for row in rows], [row["accuracy"] for row in rows], marker="o")
        axis.set(title=f"accuracy by {label}", xlabel=label, ylabel="pair accuracy")
    for axis in (reliability, margin, rank):
        axis.set_ylim(0, 1.02)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    # HTML takes the element without the XML declaration before it.
    svg = picture(figure, "svg").decode()
    return Markup(svg[svg.index("<svg") :])
