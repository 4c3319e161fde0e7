"""The page of `rayward reward-eval`: its figures by source, reliability, accuracy by margin and by rank; no network."""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import Any

from pipelines.report import STYLE


def write_page(path: Path, found: dict[str, Any]) -> Path:
    """Write the page; its path."""
    rows = "".join(f"<tr><td>{html.escape(name)}</td>{_cells(of)}</tr>" for name, of in found["sources"].items())
    names = "source rankings pairs accuracy [95&nbsp;%] chance longer matched tau top-1 ECE score-length agreement"
    heads = "".join(f"<th>{name}</th>" for name in names.split())
    title = html.escape(Path(found["model"]).name)
    body = [
        f"<h1>{title}</h1><p>Reward model on {html.escape(', '.join(found['data']))}. Equal scores count one half; "
        "intervals are of the bootstrap over prompts. <i>longer</i>: accuracy of preferring the longer answer; "
        "<i>matched</i>: accuracy on pairs whose lengths differ by 10&nbsp;% at most; <i>score-length</i>: mean "
        "rank correlation of score and length of the answers to a prompt.</p>",
        f'<div class="wide"><table><tr>{heads}</tr>{rows}</table></div>',
    ]
    if found["sections"]:
        cells = "".join(f"<tr><td>{name}</td><td>{value:.3f}</td></tr>" for name, value in found["sections"].items())
        body.append(f"<h2>RewardBench</h2><table>{cells}</table>")
    for name, of in found["sources"].items():
        body.append(f"<h2>{html.escape(name)}</h2><div class='plot'>{_plots(of)}</div>")
    if found["left_out"]:
        listed = "".join(f"<li>{html.escape(why)}: {count}</li>" for why, count in found["left_out"].items())
        body.append(f"<h2>Left out</h2><ul>{listed}</ul>")
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,"
        f"initial-scale=1'><title>{title} - Rayward</title><style>{STYLE} .plot {{ background: #fff; }} "
        f".plot svg {{ max-width: 100%; height: auto; }}</style>{''.join(body)}</html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _cells(of: dict[str, Any]) -> str:
    accuracy = of["accuracy"]
    texts = [str(of["rankings"]), str(accuracy["pairs"]), f"<b>{accuracy['mean']:.3f}</b>"]
    texts.append(f"[{accuracy['low']:.3f}, {accuracy['high']:.3f}]")
    numbers = [of["chance"], accuracy["length_baseline"], of["length_matched"]["mean"], of["kendall_tau"], of["top_1"]]
    numbers += [of["calibration"]["error"], of["length_correlation"], of.get("agreement")]
    texts += ["-" if number is None else f"{number:.3f}" for number in numbers]
    return "".join(f'<td class="n">{text}</td>' for text in texts)


def _plots(of: dict[str, Any]) -> str:
    """Reliability, accuracy by the size of the score difference, accuracy by the difference in rank, as SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (reliability, margin, rank) = pyplot.subplots(1, 3, figsize=(12, 3.4))
    bins = of["calibration"]["bins"]
    reliability.plot([0.5, 1], [0.5, 1], color="#999", linestyle="--")
    reliability.plot([row["value"] for row in bins], [row["accuracy"] for row in bins], marker="o")
    reliability.set(title="reliability", xlabel="sigmoid of the score difference", ylabel="share that is right")
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
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return buffer.getvalue().partition("<svg")[1] + buffer.getvalue().partition("<svg")[2]
