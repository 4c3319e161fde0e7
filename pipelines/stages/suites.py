"""The suites of an evaluation: each model's answers to a suite's questions, judged.

Each suite is a part `evaluate/NAME` of its own: done when its manifest is there, made again alone,
or where the models are others. What it does are the commands under `rayward judge`, whose caches of
answers and reviews lie in its folder and outlive a new try, so that only what is new is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rayward.configs.decisive import decisive
from rayward.configs.load import fingerprint
from rayward.configs.sections.suites import EvaluationSuite
from rayward.configs.stages import baseline
from rayward.pipelines.judging.suite_commands import (
    answers_command,
    answers_file,
    called,
    judge_command,
    judge_of_suite,
)
from rayward.pipelines.report.judge_words import in_words
from rayward.pipelines.run import given
from rayward.pipelines.run.compared import models_there
from rayward.pipelines.run.files import read_json, write_json
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.given import baseline_file, question_path
from rayward.pipelines.run.stage import PART, Stage
from rayward.pipelines.stages.evaluate import evaluate
from rayward.pipelines.stages.judge_trust import trust_of_suite, warn


def evaluate_all(run: Run) -> dict[str, Any] | None:
    """Do stage evaluate and its suites; None if all was done before."""
    manifests = [evaluate(run)]
    manifests += [make_suite(run, suite) for suite in run.config.evaluate.suites]
    return next((made for made in manifests if made is not None), None)


def make_suite(run: Run, suite: EvaluationSuite) -> dict[str, Any] | None:
    """Make one suite; its manifest, or None if it was done before.

    StageError: it was made with other settings, or not all of it could be made.
    """
    there = models_there(run)
    settings = decisive(run.config, suite.part)
    read = [part for part in there.values() if part]
    if (scorer := judge_of_suite(run, suite)) != suite.judge:
        run.require("reward")
        read.append("reward")
    # Given models by their names: what they hold, `given.digests` knows.
    others = {f"models.{name}": "given" for name, part in there.items() if not part}
    settings["inputs"] = {part: run.manifest(part)["fingerprint"] for part in read} | others
    stage = Stage(
        run, suite.part, fingerprint(settings), settings, given.digests(run.config, suite.part)
    )
    if run.done(suite.part):
        if run.same(suite.part, settings):
            return None
        if run.state(suite.part) != "done":
            raise run.conflict(suite.part, settings)
        print(f"   {suite.part} is made again, as the models are others; answers and reviews stay")
    print(f"-- {suite.part}: {suite.kind}, {suite.suite}, judge: {suite.judge}", flush=True)
    # From here it is not done: a try that ends half-way must not count as the last one.
    (stage.folder / "manifest.json").unlink(missing_ok=True)
    write_json(stage.folder / PART, {"part": suite.part})
    metrics: dict[str, Any] = {
        "kind": suite.kind,
        "suite": suite.suite,
        "judge": suite.judge,
        "limit": suite.limit,
    }
    if suite.kind == "pairwise":
        # First of all: what its win rates are worth.
        trust = trust_of_suite(run, suite, scorer, stage.folder / "labelled")
        warn(trust)
        metrics |= {"rules": suite.rules, "judge_agreement": trust}
    answers = {}
    for name in there:
        out = stage.folder / "answers" / name
        said = called(suite, answers_command(run, suite, name, run.named(name), out))
        answers[name] = answers_file(out)
        if said.get("lacking"):
            metrics.setdefault("not_answered", {})[name] = len(said["lacking"])
    if suite.kind == "pairwise":
        metrics |= _pairwise(run, suite, scorer, answers, stage.folder)
        print(f"judge: {in_words(trust)}", flush=True)
    else:
        out = stage.folder / "ratings"
        files = [str(path) for path in answers.values()]
        questions = question_path(run.config, suite)
        called(suite, judge_command(run, suite, scorer, files, questions, out, suite.limit))
        metrics["models"] = {row["model"]: row for row in read_json(out / "summary.json")["models"]}
    return stage.finish(metrics)


def _pairwise(
    run: Run, suite: EvaluationSuite, scorer: str, answers: dict[str, Path], folder: Path
) -> dict[str, Any]:
    """Each model against the baseline: the baseline, and figures by model."""
    against = suite.baseline or baseline(run.config)
    base = baseline_file(run.config, suite) or answers[against]
    figures = {}
    for name, path in answers.items():
        if name == against:
            continue
        out = folder / "against" / name
        files, questions = [str(path), str(base)], question_path(run.config, suite)
        command = judge_command(run, suite, scorer, files, questions, out, suite.limit)
        found = called(suite, command)
        keys = ("win_rate", "low", "high", "comparisons", "ties", "unreadable", "conflict_rate")
        figures[name] = {key: found[key] for key in (*keys, "missing")}
    return {"baseline": against, "models": figures}
