"""report.html and curves.png of a run: figures, curves, transcripts and settings on one page that
needs no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from rayward.configs.load import dump
from rayward.pipelines.report.judge_words import in_words
from rayward.pipelines.report.monitor import monitor_html
from rayward.pipelines.report.page import Panel, draw, render
from rayward.pipelines.report.rl import algorithms, rl_html
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.files import read_json, read_jsonl
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.stage import versions

EXAMPLES = 8  # held-out prompts whose answers stand on the page
TRAINING: tuple[tuple[str, dict[str, str]], ...] = (
    ("loss", {"loss": "training", "heldout_loss": "held out"}),
    (
        "share of pairs in their order",
        {"pair_accuracy": "training", "heldout_accuracy": "held out"},
    ),
    ("parts of ORPO's loss", {"sft_loss": "SFT", "odds_loss": "odds ratio"}),
    ("reward of labelled answers", {"reward_good": "good", "reward_bad": "bad"}),
    ("area under the ROC curve, good against bad", {"heldout_auc": "held out"}),
)
"""Titles of the curves of training stages, each with its figures in metrics.jsonl, labelled."""


def write_report(run: Run) -> Path:
    """Write report.html into the run folder, from what is there, and after RL and evaluation
    curves.png; its path.

    Raises StageError where the run has neither finished a stage nor begun one of RL.
    """
    summary_path, learned = run.folder / "summary.json", algorithms(run)
    if not (summary_path.is_file() or learned):
        raise StageError(
            f"{run.folder} holds neither summary.json nor figures in rl/*/metrics.jsonl: nothing "
            "to report"
        )
    # There is none while the first RL runs, whose figures are worth a look already.
    summary = read_json(summary_path) if summary_path.is_file() else {}
    evaluation = summary.get("evaluate")
    stages = {
        name: metrics
        for name, metrics in summary.items()
        if isinstance(metrics, dict) and name not in ("seconds", "evaluate", "suites")
    }
    pictures = {name: training_png(run, name) for name in summary}
    page = render(
        "report.html",
        title=run.config.name,
        seed=run.config.seed,
        summary=summary,
        evaluation=evaluation,
        **(_evaluated(run, evaluation) if evaluation else {}),
        suites=[suite_table(name, of) for name, of in summary.get("suites", {}).items()],
        learned=rl_html(run, learned),
        watched=monitor_html(run, learned),
        stages=stages,
        curves_of={name: png for name, png in pictures.items() if png},
        config=dump(run.config),
        versions=versions(),
    )
    path = run.folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def suite_table(name: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A suite's figures by model, as the page shows them, and what its judge is worth."""
    if metrics["kind"] == "single":
        columns = ("first", "second", "average")
        rows = {
            model: ["-" if of[column] is None else f"{of[column]:.2f}" for column in columns]
            for model, of in metrics["models"].items()
        }
        return {"name": name, "of": metrics, "columns": columns, "rows": rows, "trust": ""}
    shown = "{win_rate:.1f} [{low:.1f}, {high:.1f}]"
    rows = {
        model: [
            "-" if of["win_rate"] is None else shown.format(**of),
            str(of["comparisons"]),
            "-" if of["conflict_rate"] is None else f"{of['conflict_rate']:.1f}",
        ]
        for model, of in metrics["models"].items()
    }
    columns = (f"win rate against {metrics['baseline']}, %", "comparisons", "order conflicts, %")
    trust = in_words(metrics["judge_agreement"])
    return {"name": name, "of": metrics, "columns": columns, "rows": rows, "trust": trust}


def _evaluated(run: Run, evaluation: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of the evaluation; writes curves.png where RL left points for it."""
    folder, rates = run.folder / "evaluate", evaluation["win_rate"]
    curves = plot(run) if read_json(folder / "curves.json") else b""
    if curves:
        (run.folder / "curves.png").write_bytes(curves)
    # Left out where it is the SFT model.
    against = evaluation.get("against", "sft")
    return {
        "best": max(rates, key=lambda name: rates[name]["mean"], default=""),
        "against": "SFT" if against == "sft" else against,
        "trust": in_words(evaluation.get("judge_agreement")),
        "curves": curves,
        "answers": {
            name: list(islice(read_jsonl(folder / f"answers_{name}.jsonl"), EXAMPLES))
            for name in evaluation["models"]
        },
    }


def plot(run: Run, kind: str = "png") -> bytes:
    """Picture (png or svg): each algorithm's mean score by reward model and judge, and its KL, over
    the iterations.
    """
    gold = run.manifest("evaluate")["metrics"]["judge"] == "gold"
    judge = "gold judge" if gold else "held-out judge"
    panels, kl = [], {}
    for name, points in read_json(run.folder / "evaluate" / "curves.json").items():
        steps = [point["iteration"] for point in points]
        scores = {
            label: (steps, [point[key] for point in points])
            for label, key in (("reward model", "reward"), (judge, "judge"))
        }
        panels.append(Panel(f"{name.upper()}: mean score of the answers", scores))
        # Iterations without the reference model have none.
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
    # Keys of summary.json that are no training stage have no such lines.
    rows = [row for row in read_jsonl(path) if "loss" in row] if path.is_file() else []
    panels = []
    for title, figures in TRAINING:
        curves: dict[str, tuple[list[int], list[float]]] = {}
        for name, label in figures.items():
            # Held-out figures come every so many steps only.
            if points := [(row["step"], row[name]) for row in rows if name in row]:
                curves[label] = ([step for step, _ in points], [value for _, value in points])
        # One point is no curve.
        if any(len(steps) > 1 for steps, _ in curves.values()):
            panels.append(Panel(title, curves))
    return draw(panels, across="optimizer step") if panels else b""
