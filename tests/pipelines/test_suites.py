"""Suites of an evaluation as parts of their own: what they are made of, kept, made again, told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rayward.configs.decisive import decisive
from rayward.configs.load import ConfigError
from rayward.configs.schema import Config
from rayward.configs.stages import STAGES, suite_parts
from rayward.pipelines.align import forget, plan_text, summarize
from rayward.pipelines.cluster_tools.kube import outside
from rayward.pipelines.cluster_tools.submit import not_there
from rayward.pipelines.judging.suite_commands import (
    answers_command,
    judge_command,
    parsed,
)
from rayward.pipelines.parts import check_stages, parse_redo, to_make
from rayward.pipelines.preflight import check_labelled, check_suites
from rayward.pipelines.report.report import suite_table
from rayward.pipelines.run import given
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.given import baseline_file, question_path
from rayward.pipelines.run.stage import PART, Stage, aside_of
from tests.pipelines.test_align import finish

QUESTIONS = [{"question_id": n, "turns": [f"What is {n} plus {n}?"]} for n in range(3)]
PARTS = ("prepare", "sft", "reward", "sample", "rl/ppo", "rl/apa", "evaluate", "publish")


def suite(folder: Path, **more: Any) -> dict[str, Any]:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS), encoding="utf-8")
    return {"name": "sums", "suite": str(path), "judge": "m@http://127.0.0.1:9/v1", **more}


@pytest.fixture
def run(tmp_path: Path, tiny_config: Callable[..., Config]) -> Run:
    suites = [suite(tmp_path), suite(tmp_path, name="rated", kind="single", limit=2)]
    return Run(tmp_path, tiny_config(evaluate={"suites": suites}))


def made(run: Run, part: str) -> None:
    """A suite as it stands when it is finished, with a cache."""
    settings = decisive(run.config, part)
    models = ("sft", "sample", "rl/ppo", "rl/apa")
    settings["inputs"] = {name: run.manifest(name)["fingerprint"] for name in models}
    stage = Stage(run, part, "mark", settings, {})
    (stage.folder / "answers").mkdir(parents=True)
    (stage.folder / PART).write_text("{}")
    (stage.folder / "answers" / "cache.jsonl").write_text("paid for\n")
    stage.finish({"kind": "pairwise", "models": {}})


def test_each_suite_is_a_part_and_what_is_done_is_kept(run: Run) -> None:
    assert suite_parts(run.config) == ("evaluate/sums", "evaluate/rated")
    finish(run, *PARTS)
    assert to_make(run, STAGES) == {"evaluate/sums", "evaluate/rated"}
    made(run, "evaluate/sums")
    assert to_make(run, STAGES) == {"evaluate/rated"}
    assert run.state("evaluate/sums") == "done"
    plan = plan_text(run.config, run.folder, STAGES)
    assert f"  evaluate/sums done   {QUESTIONS and run.config.evaluate.suites[0].suite}" in plan
    assert "evaluate/rated to do" in plan and "first 2 questions: single" in plan


def test_a_suite_of_other_settings_is_told_and_evaluate_itself_is_as_before(
    run: Run, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    finish(run, *PARTS)
    made(run, "evaluate/sums")
    other = Run(run.folder, tiny_config(evaluate={"suites": [suite(tmp_path, limit=1)]}))
    assert other.state("evaluate") == run.state("evaluate") == "done"
    with pytest.raises(StageError, match=r"suite\.limit was None, now 1.*--redo evaluate/sums"):
        check_suites(other, STAGES, to_make(other, STAGES))
    # Also where another model would have it made again anyway.
    with pytest.raises(StageError, match=r"suite\.limit was None, now 1"):
        check_suites(other, STAGES, to_make(other, STAGES, parse_redo("rl/apa")))
    assert to_make(other, STAGES, parse_redo("evaluate/sums")) == {"evaluate/sums"}


def test_evaluate_made_again_leaves_suites_and_their_caches(run: Run) -> None:
    finish(run, *PARTS)
    made(run, "evaluate/sums")
    cache = run.folder / "evaluate" / "sums" / "answers" / "cache.jsonl"
    (run.folder / "evaluate" / "answers_sft.jsonl").write_text("{}")
    forget(run, parse_redo("evaluate"))
    assert not run.done("evaluate") and run.done("evaluate/sums") and cache.is_file()
    aside = run.folder / ".before" / "evaluate"
    assert (aside / "answers_sft.jsonl").is_file() and (aside / "manifest.json").is_file()
    finish(run, "evaluate")
    assert run.done("evaluate") and run.done("evaluate/sums") and cache.is_file()
    assert not aside.exists() and not (run.folder / "evaluate" / "answers_sft.jsonl").exists()


def test_a_suite_that_is_set_aside_outlives_a_new_evaluate(run: Run) -> None:
    """Its reviews are paid for, and the new ones may not come."""
    finish(run, *PARTS)
    made(run, "evaluate/sums")
    forget(run, parse_redo("evaluate,evaluate/sums"))
    kept = aside_of(run.folder, "evaluate/sums") / "answers" / "cache.jsonl"
    assert kept.is_file() and not run.done("evaluate/sums")
    finish(run, "evaluate")
    assert kept.is_file()


def test_redo_of_one_suite_takes_that_one_away_alone(run: Run) -> None:
    finish(run, *PARTS)
    made(run, "evaluate/sums")
    made(run, "evaluate/rated")
    redo = parse_redo("evaluate/rated")
    check_stages(run, STAGES, redo)
    forget(run, redo)
    assert not run.done("evaluate/rated") and not (run.folder / "evaluate" / "rated").exists()
    assert all(run.done(part) for part in (*PARTS, "evaluate/sums"))
    with pytest.raises(ConfigError, match="evaluate/summs: no suite .* evaluate/sums, evaluate/r"):
        check_stages(run, STAGES, parse_redo("evaluate/summs"))
    with pytest.raises(ConfigError, match="no suite that this command makes"):
        check_stages(run, ("sft",), parse_redo("evaluate/sums"))


def test_another_model_makes_a_suite_again(run: Run) -> None:
    finish(run, *PARTS)
    made(run, "evaluate/sums")
    made(run, "evaluate/rated")
    again = to_make(run, STAGES, parse_redo("rl/apa"))
    assert {"rl/apa", "evaluate/sums", "evaluate/rated"} <= again


def test_summary_and_report_have_the_suites(run: Run) -> None:
    finish(run, *PARTS)
    made(run, "evaluate/sums")
    summarize(run, 0)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["suites"] == {"sums": {"kind": "pairwise", "models": {}}}
    assert "evaluate/sums" in summary["seconds"]
    figures = {"win_rate": 61.25, "low": 50.0, "high": 72.5, "comparisons": 40}
    table = suite_table(
        "sums",
        {
            "kind": "pairwise",
            "baseline": "sft",
            "models": {"apa": figures | {"conflict_rate": None}},
            "judge_agreement": {"not_measured": "nobody asked"},
        },
    )
    assert table["rows"] == {"apa": ["61.2 [50.0, 72.5]", "40", "-"]}
    assert table["trust"] == "not measured: nobody asked"
    rated = {"first": 7.0, "second": None, "average": 7.0}
    table = suite_table("rated", {"kind": "single", "models": {"apa": rated}})
    assert table["rows"] == {"apa": ["7.00", "-", "7.00"]}


def test_the_commands_of_a_suite_are_those_of_rayward_judge(run: Run) -> None:
    sums, rated = run.config.evaluate.suites
    options = parsed(sums, answers_command(run, sums, "apa", "folder", Path("out")))
    assert (options.model, options.name, options.first) == ("folder", "apa", None)
    assert options.suite == sums.suite and options.seed == run.config.seed
    assert options.template == run.config.model.template
    judged = parsed(
        rated, judge_command(run, rated, rated.judge, ["a", "b"], "q.jsonl", Path("out"), 2)
    )
    assert (judged.answers, judged.questions, judged.first) == (["a", "b"], "q.jsonl", 2)


def test_relative_files_lie_in_the_root_of_the_data(
    run: Run, tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    root = tmp_path / "root"
    (root / "alpaca_eval").mkdir(parents=True)
    (root / "alpaca_eval" / "instructions.jsonl").write_text('{"instruction": "Hi."}\n')
    (root / "days.jsonl").write_text('{"question_id": 1, "turns": ["Hi."]}\n')
    (root / "theirs.json").write_text('[{"instruction": "Hi.", "output": "Hello."}]')
    (root / "labelled.jsonl").write_text(
        '{"prompt": "Hi.", "chosen": "Hello.", "rejected": "No."}\n'
    )
    named = {"name": "alpaca", "suite": "alpaca", "judge": "m@http://127.0.0.1:9/v1"}
    own = named | {"name": "days", "suite": "days.jsonl", "baseline": "theirs.json"}
    evaluate = {"suites": [named, own], "labelled": "labelled.jsonl"}
    config = tiny_config(data={"root": str(root)}, evaluate=evaluate)
    rooted = Run(tmp_path, config)
    check_suites(rooted, STAGES, {"evaluate/alpaca", "evaluate/days"})
    check_labelled(config, {"evaluate"})
    alpaca, days = config.evaluate.suites
    assert question_path(config, alpaca) == root / "alpaca_eval" / "instructions.jsonl"
    assert question_path(config, days) == str(root / "days.jsonl")
    assert baseline_file(config, days) == root / "theirs.json"
    words = answers_command(rooted, days, "apa", "folder", Path("out"))
    assert str(root / "days.jsonl") in words and "--data" not in words
    assert {*given.digests(config, "evaluate/days")} == {"suite", "baseline", "evaluate.labelled"}
    assert {*given.digests(config, "evaluate/alpaca")} == {"suite", "evaluate.labelled"}
    # A cluster gets only the config.
    relative = tiny_config(data={"root": "here"}, evaluate=evaluate)
    with pytest.raises(ConfigError, match=r"^data\.root is here: a path of this machine"):
        not_there(relative)
    not_there(config)
    assert [line for line in outside(config) if line.startswith("data.root is")]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"suite": "gone.jsonl"}, "suite: gone.jsonl: no such file"),
        ({"suite": "empty.jsonl"}, "fit no known format"),
        ({"judge": "nomod:fn"}, "judge nomod:fn: "),
        ({"judge": "rayward.data.rules:nosuch"}, "judge rayward.data.rules:nosuch: "),
        ({"judge": "@http://x/v1"}, "judge @http://x/v1: neither NAME@http"),
        ({"judge": "rayward.data.rules:length", "kind": "single"}, "gives no ratings"),
        ({"baseline": "empty.jsonl"}, "baseline: "),
        ({"judge_options": ["--budget", "5"]}, "--budget needs the prices of tokens"),
        ({"judge_options": ["--concurrency", "0"]}, "--concurrency must be at least 1"),
        ({"judge_options": ["--out", "there"]}, "judge_options has --out, which the suite's own"),
        ({"judge_options": ["--judge", "x@http://y/v1"]}, "judge_options has --judge"),
        ({"answer_options": ["--out", "there"]}, "answer_options has --out"),
        ({"judge_options": ["--references", "none.jsonl"]}, "--references none.jsonl: no such"),
        ({"suite": "mt_bench"}, "no questions of mt_bench; looked for mt_bench/question.jsonl"),
        ({"judge": "./nowhere"}, "judge ./nowhere: neither NAME@http"),
        ({"baseline": "gpt4"}, "baseline gpt4: neither a file of answers nor one of sft"),
        ({"judge_options": ["--bugdet", "3"]}, "unrecognized arguments: --bugdet 3"),
        ({"answer_options": ["--concurrency", "many"]}, "invalid int value: 'many'"),
    ],
)
def test_what_a_suite_cannot_begin_with_is_told_before_anything_starts(
    more: dict[str, Any],
    told: str,
    tmp_path: Path,
    tiny_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text('{"a": 1}\n')
    run = Run(tmp_path, tiny_config(evaluate={"suites": [suite(tmp_path) | more]}))
    with pytest.raises(StageError, match="evaluate.suites sums: ") as error:
        check_suites(run, STAGES, {"evaluate/sums"})
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"name": "a/b"}, "match pattern"),
        ({"name": "checkpoints"}, "is a folder of stage evaluate"),
        ({"kind": "single", "judge": "reward"}, "gives no ratings"),
        ({"kind": "single", "baseline": "sft"}, "compares with none"),
        ({"limit": 0}, "greater than or equal to 1"),
        ({"judge": "reward_model"}, "second reward model"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    more: dict[str, Any], told: str, tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    with pytest.raises((ValidationError, ValueError), match=told):
        tiny_config(evaluate={"suites": [suite(tmp_path) | more]})
    with pytest.raises(ValidationError, match="two suites have the name 'sums'"):
        tiny_config(evaluate={"suites": [suite(tmp_path), suite(tmp_path)]})
