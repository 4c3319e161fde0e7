"""The commands under `rayward judge` that make a suite of a run, as their own command lines.

A suite is made by the very functions of the commands, so that what a run has can be made by hand,
and gone on with.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from pathlib import Path
from typing import Any

from rayward.configs.sections.suites import RUN_JUDGES, EvaluationSuite
from rayward.pipelines.judging import answers, pairwise, single
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.files import read_json
from rayward.pipelines.run.folder import Run

MODULES = (answers, pairwise, single)


def parsed(suite: EvaluationSuite, words: list[str]) -> argparse.Namespace:
    """The options of a command. StageError: they cannot be read."""
    parser = argparse.ArgumentParser(prog="rayward judge")
    actions = parser.add_subparsers(required=True)
    for module in MODULES:
        module.add(actions)
    said = io.StringIO()
    try:
        # What argparse says goes into the error: it would end the process.
        with contextlib.redirect_stderr(said):
            return parser.parse_args(words)
    except SystemExit:
        last = said.getvalue().strip().splitlines()[-1:]
        why = last[0] if last else "no option of the command"
        raise StageError(f"evaluate.suites {suite.name}: {why}") from None


def called(suite: EvaluationSuite, words: list[str]) -> dict[str, Any]:
    """Do a command; its summary. StageError where it has not asked for all that it wants, and may
    yet: what can never be answered is left out, and counted there.
    """
    options = parsed(suite, words)
    status = options.run_command(options)
    path = options.out / "summary.json"
    summary: dict[str, Any] = read_json(path) if path.is_file() else {}
    asked = summary.get("asked") or {}
    is_open = summary.get("stopped") or asked.get("replies", 0) < asked.get("wanted", 0)
    if status and (is_open or not summary):
        raise StageError(
            f"{suite.part}: not all of it is there (see above). What was asked is kept; the same "
            "command goes on from it"
        )
    return summary


def judge_of_suite(run: Run, suite: EvaluationSuite) -> str:
    """The judge as the commands take it: of the run's own reward models the folder."""
    if suite.judge not in RUN_JUDGES:
        return suite.judge
    return str(run.folder / "reward" / ("model" if suite.judge == "reward" else "judge"))


def answers_command(
    run: Run, suite: EvaluationSuite, name: str, folder: str, out: Path
) -> list[str]:
    """`rayward judge answers` for a model of the run, which lies in `folder`."""
    from rayward.data.judging.suites import SUITES

    config = run.config
    data = config.data
    questions = suite.suite if suite.suite in SUITES else data.at(suite.suite)
    words = ["answers", folder, "--suite", questions, "--name", name]
    words += ["--data", data.at(suite.data or "")] if suite.suite in SUITES else []
    words += ["--template", config.model.template, "--seed", str(config.seed), "--out", str(out)]
    words += ["--context-tokens", str(config.model.context_tokens)]
    words += ["--first", str(suite.limit)] if suite.limit else []
    return [*words, *suite.answer_options]


def judge_command(
    run: Run,
    suite: EvaluationSuite,
    judge: str,
    files: list[str],
    questions: str | Path,
    out: Path,
    first: int | None = None,
) -> list[str]:
    """`rayward judge pairwise` or `single` on files of answers to the `first` questions."""
    words = [suite.kind, *files, "--questions", str(questions), "--judge", judge]
    words += ["--rules", suite.rules] if suite.kind == "pairwise" else []
    # A reward model of the run reads conversations as the run writes them.
    words += ["--template", run.config.model.template] if judge != suite.judge else []
    words += ["--seed", str(run.config.seed), "--out", str(out)]
    words += ["--first", str(first)] if first else []
    return [*words, *suite.judge_options]


def answers_file(folder: Path) -> Path:
    """The file of answers that `rayward judge answers` left in a folder."""
    (file,) = (
        path
        for path in folder.iterdir()
        if path.suffix in (".json", ".jsonl") and path.name not in ("cache.jsonl", "summary.json")
    )
    return file
