"""report.html and curves.png of a run: figures, curves, transcripts and settings on one page that needs no network."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.load import dump
from pipelines import report_rl, report_transcripts
from pipelines.page import image_html, pairs_html, rows_html
from pipelines.report_monitor import monitor_html
from pipelines.report_rl import algorithms, rl_html
from pipelines.stage import Run, StageError, read_json, read_jsonl, versions

EXAMPLES = 8
STYLE = """
:root { color-scheme: light dark; --line: #8884; --accent: #2a7d4f; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
td, th { padding: .3rem .8rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap; } b.best { color: var(--accent); }
img { max-width: 100%; background: #fff; } pre { overflow-x: auto; font-size: 13px; }
.prompt { opacity: .75; }
.answer { display: inline-block; min-width: 9rem; white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def write_report(run: Run) -> Path:
    """Write report.html into the run folder, from what is there, and after evaluation curves.png; the page's path.

    Raises StageError where the run has neither finished a stage nor begun one of RL.
    """
    path, learned = run.folder / "summary.json", algorithms(run)
    if not (path.is_file() or learned):
        raise StageError(
            f"{run.folder} holds neither summary.json nor figures in rl/*/metrics.jsonl: nothing to report"
        )
    summary = read_json(path) if path.is_file() else {}
    body = [f"<h1>{html.escape(run.config.name)}</h1>", f"<p>Seed {run.config.seed}{_totals(summary)}.</p>"]
    if "evaluate" in summary:
        body += _evaluation(run, summary["evaluate"])
    body += rl_html(run, learned)
    body += monitor_html(run, learned)
    if "evaluate" in summary:
        body += ["<h2>Same prompts, every model</h2>", _answers(run, list(summary["evaluate"]["models"]))]
    stages = [name for name in summary if isinstance(summary[name], dict) and name not in ("seconds", "evaluate")]
    if stages:
        body += ["<h2>Stages</h2>", *(_stage(name, summary[name], summary["seconds"].get(name)) for name in stages)]
    body += [
        "<h2>Settings</h2>",
        f"<details><summary>config.yaml</summary><pre>{html.escape(dump(run.config))}</pre></details>",
        pairs_html(versions().items()),
    ]
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,"
        f"initial-scale=1'><title>{html.escape(run.config.name)} - Rayward</title>"
        f"<style>{STYLE}{report_rl.STYLE}{report_transcripts.STYLE}</style>{''.join(body)}</html>\n"
    )
    path = run.folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _totals(summary: dict[str, Any]) -> str:
    if not summary:
        return ", not finished"
    return f", {summary['seconds']['total']:.0f} s in all, peak memory {summary['peak_memory_bytes'] / 2**30:.1f} GiB"


def _evaluation(run: Run, evaluation: dict[str, Any]) -> list[str]:
    png = plot(run)
    (run.folder / "curves.png").write_bytes(png)
    return [
        "<h2>Win rate against SFT</h2>",
        _win_rates(evaluation),
        f"<p>Judge: {html.escape(evaluation['judge'].replace('_', ' '))}; {evaluation['prompts']} held-out prompts, "
        "95 % bootstrap intervals, ties count half. KL is that of the answers to the SFT model, in nats an answer.</p>",
        "<h2>While learning</h2>",
        image_html(png, "reward-model score and judge score over the iterations"),
    ]


def plot(run: Run, kind: str = "png") -> bytes:
    """Picture (png or svg): each algorithm's mean score by reward model and judge, and its KL, over the iterations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = read_json(run.folder / "evaluate" / "curves.json")
    judge = run.manifest("evaluate")["metrics"]["judge"].replace("_", " ")
    names = list(curves)
    figure, axes = pyplot.subplots(1, len(names) + 1, figsize=(4.2 * (len(names) + 1), 3.4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=False):
        steps = [point["iteration"] for point in curves[name]]
        axis.plot(steps, [point["reward"] for point in curves[name]], label="reward model")
        label = "gold judge" if judge == "gold" else "held-out judge"
        axis.plot(steps, [point["judge"] for point in curves[name]], label=label)
        axis.set(title=name.upper(), xlabel="iteration", ylabel="mean score of the answers")
        axis.legend()
    for name in names:
        rows = list(read_jsonl(run.folder / "rl" / name / "metrics.jsonl"))
        axes[0][-1].plot([row["step"] for row in rows], [row["kl"] for row in rows], label=name.upper())
    axes[0][-1].set(title="KL to the SFT model", xlabel="iteration", ylabel="nats an answer")
    if names:
        axes[0][-1].legend()
    for axis in axes[0]:
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else {"Software": None})
    pyplot.close(figure)
    return buffer.getvalue()


def _win_rates(evaluation: dict[str, Any]) -> str:
    rates = evaluation["win_rate"]
    best = max(rates, key=lambda name: rates[name]["mean"], default="")
    rows = []
    for name, about in evaluation["models"].items():
        rate = rates.get(name)
        shown = f"{rate['mean']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]" if rate else "-"
        label = f'<b class="best">{html.escape(name)}</b>' if name == best else html.escape(name)
        rows.append(
            [
                label,
                shown,
                f"{about['judge_mean']:.3f}",
                f"{about['kl']:.2f}",
                f"{about['tokens']:.1f}",
                f"{about['finished']:.1%}",
            ]
        )
    return rows_html(["model", "win rate", "judge's mean", "KL", "tokens", "finished"], rows)


def _answers(run: Run, models: Sequence[str]) -> str:
    answers = {name: list(read_jsonl(run.folder / "evaluate" / f"answers_{name}.jsonl"))[:EXAMPLES] for name in models}
    rows = []
    for index, first in enumerate(answers[models[0]]):
        prompt = "<br>".join(html.escape(turn) for turn in first["prompt"])
        cells = [
            f'<span class="answer">{html.escape(answers[name][index]["answer"])}</span><br>'
            f"<small>{answers[name][index]['judge']:.2f}</small>"
            for name in models
        ]
        rows.append([f'<span class="prompt">{prompt}</span>', *cells])
    return rows_html(["prompt", *models], rows)


def _stage(name: str, metrics: dict[str, Any], seconds: float | None) -> str:
    took = f" ({seconds:.0f} s)" if seconds is not None else ""
    plain = [(key, value) for key, value in metrics.items() if not isinstance(value, dict)]
    nested = [
        (f"{key}.{inner}", value)
        for key, values in metrics.items()
        if isinstance(values, dict)
        for inner, value in values.items()
        if not isinstance(value, dict)
    ]
    return f"<h3>{html.escape(name)}{took}</h3>{pairs_html([*plain, *nested])}"
