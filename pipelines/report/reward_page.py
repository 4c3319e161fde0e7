"""The page of `rayward reward-eval`: its figures by source, those of benchmarks, reliability,
accuracy by margin and by rank; no network.
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
    tables = [bench_table(name, of) for name, of in figures["benches"].items()]
    page = render("reward_page.html", title=title, plots=_plots, bench_tables=tables, **figures)
    path.write_text(page, encoding="utf-8")
    return path


def bench_table(
    name: str, figures: dict[str, Any]
) -> tuple[str, list[tuple[Any, ...]], tuple[str, ...]]:
    """The title, rows and columns of the figures of RewardBench 2 or RM-Bench."""

    def shown(of: dict[str, float]) -> str:
        return f"{of['mean']:.3f} [{of['low']:.3f}, {of['high']:.3f}]"

    if "domains" in figures:
        columns = ("hard", "normal", "easy", "mean")
        by_domain = {**figures["domains"], "all domains alike": figures["all"]}
        rows: list[tuple[Any, ...]] = [
            (domain, *(shown(of[column]) for column in columns), of["mean"]["n"])
            for domain, of in by_domain.items()
        ]
        return f"{name}, accuracy [95 %]", rows, ("domain", *columns, "rows")
    mean = f"mean of {len(figures['subsets'])} subsets"
    by_subset = {
        **figures["subsets"],
        **{f"Ties: {part}": of for part, of in figures["ties"].items()},
        mean: figures["mean"],
    }
    rows = [(subset, shown(of), of["n"]) for subset, of in by_subset.items()]
    return f"{name}, score [95 %]", rows, ("subset", "score", "prompts")


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
