"""Whether the suites of an evaluation can be made, looked at before anything of a run begins."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from rayward.configs.sections.suites import RUN_JUDGES, EvaluationSuite
from rayward.configs.stages import compared
from rayward.pipelines.judging.suite_commands import (
    answers_command,
    judge_command,
    judge_of_suite,
    parsed,
)
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.given import baseline_file, question_path


def check(run: Run, suite: EvaluationSuite) -> None:
    """StageError for options, questions, a judge or a baseline that are not there, or are none."""
    for look in (_questions, _judge, _baseline, _options):
        try:
            look(run, suite)
        except (ValueError, OSError) as error:
            raise StageError(f"evaluate.suites {suite.name}: {error}") from error


def _questions(run: Run, suite: EvaluationSuite) -> None:
    from rayward.data.judging.questions import read_questions

    path = question_path(run.config, suite)
    if str(path).startswith("hf:"):
        return
    if not Path(path).exists():
        raise ValueError(f"suite: {path}: no such file")
    read_questions(path, [])


def _judge(run: Run, suite: EvaluationSuite) -> None:
    from rayward.configs.sections.scoring import RewardSource
    from rayward.data.model_files.hub_models import is_hub_name
    from rayward.pipelines.data_tools.endpoint import AT_URL
    from rayward.pipelines.judging.asking.scorers import is_function, is_reward_model

    judge = judge_of_suite(run, suite)
    if judge != suite.judge or is_hub_name(judge):
        return
    scores = is_function(judge)
    if scores:
        from rayward.actors.scoring.sources import function_source

        source = RewardSource(kind="function", target=judge, name=f"judge of {suite.name}")
        try:
            function_source(source, str(Path.cwd()))
        except Exception as error:  # whatever the user's module raises as it is imported
            raise ValueError(f"judge {judge}: {error}") from error
    elif (Path(judge) / "config.json").is_file():
        scores = is_reward_model(judge)
    elif not re.fullmatch(rf".+{AT_URL}.*", judge):
        raise ValueError(
            f"judge {judge}: neither NAME@http://HOST/v1, nor a model's folder, MODULE:FUNCTION, "
            f"or {' or '.join(RUN_JUDGES)}"
        )
    if scores and suite.kind == "single":
        raise ValueError(
            f"judge {judge} scores answers and gives no ratings; kind single wants a language model"
        )


def _baseline(run: Run, suite: EvaluationSuite) -> None:
    from rayward.data.judging.answers import read_answers

    path = baseline_file(run.config, suite)
    if path is None:
        return
    if not path.is_file():
        names = ", ".join(compared(run.config))
        raise ValueError(f"baseline {path}: neither a file of answers nor one of {names}")
    try:
        read_answers(path, [])
    except ValueError as error:
        raise ValueError(f"baseline: {error}") from error


def _options(run: Run, suite: EvaluationSuite) -> None:
    """Options that are none, that cannot be, or that the suite's own settings say."""
    path, judge, out = question_path(run.config, suite), judge_of_suite(run, suite), Path("out")

    def answers(of: EvaluationSuite) -> argparse.Namespace:
        return parsed(of, answers_command(run, of, "model", "model", out))

    def judging(of: EvaluationSuite) -> argparse.Namespace:
        return parsed(of, judge_command(run, of, judge, ["a", "b"], path, out))

    plain = suite.model_copy(update={"answer_options": (), "judge_options": ()})
    _look_at(answers, suite, plain, "answer_options", "model")
    _look_at(judging, suite, plain, "judge_options", "judge")


SETTLED = (
    "out",
    "judge",
    "model",
    "answers",
    "questions",
    "suite",
    "data",
    "name",
    "first",
    "rules",
)
"""Of the command line, what the suite itself says."""


def _look_at(
    command: Callable[[EvaluationSuite], argparse.Namespace],
    suite: EvaluationSuite,
    plain: EvaluationSuite,
    setting: str,
    role: str,
) -> None:
    from rayward.pipelines.data_tools.feedback import check_models
    from rayward.pipelines.judging.asking.budget import Budget

    options, own = vars(command(suite)), vars(command(plain))
    for name in SETTLED:
        if name in own and options[name] != own[name]:
            raise ValueError(f"{setting} has --{name}, which the suite's own settings say")
    for name in ("prompts", "references"):
        if options.get(name) and not Path(options[name]).exists():
            raise ValueError(f"{setting}: --{name} {options[name]}: no such file")
    check_models(argparse.Namespace(**options))
    Budget(options["budget"], options[f"{role}_price"], role)
