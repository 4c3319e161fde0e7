"""report.html and curves.png of a run: figures, curves, transcripts and settings on one page that
needs no network.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from rayward.configs.load import dump
from rayward.pipelines.report.monitor import monitor_html
from rayward.pipelines.report.page import Panel, draw, render
from rayward.pipelines.report.rl import algorithms, rl_html
from rayward.pipelines.run.stage import Run, StageError, read_json, read_jsonl, versions

EXAMPLES = 8


def write_report(run: Run) -> Path:
    """Write report.html into the run folder, from what is there, and after RL and evaluation
    curves.png; its path.

    Raises StageError where the run has neither finished a stage nor begun one of RL.
    """
    path, learned = run.folder / "summary.json", algorithms(run)
    if not (path.is_file() or learned):
        raise StageError(
            f"{run.folder} holds neither summary.json nor figures in rl/*/metrics.jsonl: nothing "
            "to report"
        )
    summary = read_json(path) if path.is_file() else {}
    evaluated = {}
    if evaluation := summary.get("evaluate"):
        rates = evaluation["win_rate"]
        evaluated = {
            "best": max(rates, key=lambda name: rates[name]["mean"], default=""),
            "against": "SFT" if (against := evaluation.get("against", "sft")) == "sft" else against,
            "curves": plot(run) if read_json(run.folder / "evaluate" / "curves.json") else b"",
            "answers": {
                name: list(
                    islice(read_jsonl(run.folder / "evaluate" / f"answers_{name}.jsonl"), EXAMPLES)
                )
                for name in evaluation["models"]
            },
        }
        if evaluated["curves"]:
            (run.folder / "curves.png").write_bytes(evaluated["curves"])
    page = render(
        "report.html",
        title=run.config.name,
        seed=run.config.seed,
        summary=summary,
        evaluation=evaluation,
        **evaluated,
        learned=rl_html(run, learned),
        watched=monitor_html(run, learned),
        stages={
            name: metrics
            for name, metrics in summary.items()
            if isinstance(metrics, dict) and name not in ("seconds", "evaluate")
        },
        curves_of={name: png for name in summary if (png := training_png(run, name))},
        config=dump(run.config),
        versions=versions(),
    )
    path = run.folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def plot(run: Run, kind: str = "png") -> bytes:
    """Picture (png or svg): each algorithm's mean score by reward model and judge, and its KL, over
    the iterations.
    """
    judge = (
        "gold judge" if run.manifest("evaluate")["metrics"]["judge"] == "gold" else "held-out judge"
    )
    panels, kl = [], {}
    for name, points in read_json(run.folder / "evaluate" / "curves.json").items():
        steps = [point["iteration"] for point in points]
        scores = {
            label: (steps, [point[of] for point in points])
            for label, of in (("reward model", "reward"), (judge, "judge"))
        }
        panels.append(Panel(f"{name.upper()}: mean score of the answers", scores))
        rows = [
            row for row in read_jsonl(run.folder / "rl" / name / "metrics.jsonl") if "kl" in row
        ]
        kl[name.upper()] = ([row["step"] for row in rows], [row["kl"] for row in rows])
    panels.append(Panel("KL to the reference, nats an answer", kl))
    return draw(panels, columns=len(panels), size=(4.2, 3.2), kind=kind)


def training_png(run: Run, stage: str) -> bytes:
    """Loss and held-out figures of a training stage over its steps; b"" where it has no figures of
    several steps.
    """
    path = run.folder / stage / "metrics.jsonl"
    rows = [row for row in read_jsonl(path) if "loss" in row] if path.is_file() else []
    panels = []
    for title, figures in TRAINING:
        curves: dict[str, tuple[list[int], list[float]]] = {}
        for name, label in figures.items():
            if points := [(row["step"], row[name]) for row in rows if name in row]:
                curves[label] = ([step for step, _ in points], [value for _, value in points])
        if any(len(steps) > 1 for steps, _ in curves.values()):
            panels.append(Panel(title, curves))
    return draw(panels, across="optimizer step") if panels else b""


TRAINING: tuple[tuple[str, dict[str, str]], ...] = (
    ("loss", {"loss": "training", "heldout_loss": "held out"}),
    (
        "share of pairs in their order",
        {"pair_accuracy": "training", "heldout_accuracy": "held out"},
    ),
)
"""Titles of the curves of training stages, each with its figures in metrics.jsonl and their
labels.
"""
