"""The command line: quick, quiet about its insides, and clear about mistakes. No command here
starts Ray.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayward.configs.load import PRESETS, load
from rayward.configs.plan import rl_arithmetic
from rayward.configs.reference import groups
from rayward.configs.stages import STAGES

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "tiny.yaml"


def rayward(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rayward.pipelines.cli", *map(str, arguments)],
        cwd=cwd,
        timeout=60,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_help_answers_within_a_second(tmp_path: Path) -> None:
    took = []
    for _ in range(3):
        begun = time.perf_counter()
        done = rayward("--help", cwd=tmp_path)
        took.append(time.perf_counter() - begun)
        assert done.returncode == 0 and all(
            name in done.stdout for name in ("align", "chat", "presets", *STAGES)
        )
    assert min(took) < 1.0, took


def test_nothing_heavy_is_imported_to_help_check_or_explain(tmp_path: Path) -> None:
    code = """
import sys
import rayward.configs.load, rayward.configs.plan, rayward.pipelines.cli
dry_run = "align quickstart --dry-run"
for arguments in ("presets", "settings", "align quickstart --set seed=x", dry_run):
    rayward.pipelines.cli.main(arguments.split())
heavy = {"torch", "ray", "vllm", "deepspeed", "transformers", "datasets"} & sys.modules.keys()
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_dry_run_prints_the_plan_and_leaves_nothing(tmp_path: Path) -> None:
    done = rayward("align", TINY, "--dry-run", "--set", "rl.iterations=7", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    for stage in STAGES:
        assert any(line.split()[:3] == [stage, "to", "do"] for line in done.stdout.splitlines()), (
            stage
        )
    for name in ("rollout", "reference", "critic", "policy", "serve"):
        assert name in done.stdout
    numbers = rl_arithmetic(load(str(TINY), ["rl.iterations=7"]))
    assert (
        f"{numbers.answers} answers" in done.stdout
        and f"{numbers.policy_steps} policy steps" in done.stdout
    )
    assert "runs/tiny" in done.stdout
    assert list(tmp_path.iterdir()) == []
    done = rayward("sft", TINY, "--dry-run", "--run", tmp_path / "here", cwd=tmp_path)
    assert (
        done.returncode == 0
        and str(tmp_path / "here") in done.stdout
        and "policy" not in done.stdout
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "overrides, told",
    [
        (
            ["rl.itertions=3"],
            "--set rl.itertions=3: unknown key 'rl.itertions'; did you mean 'iterations'?",
        ),
        (["rl.gamma=2"], "--set rl.gamma=2: rl.gamma is 2"),
        (["rl.iterations"], "expected key=value"),
        (["rl.samples_per_step=7"], "rl.samples_per_step 7 does not divide"),
        (["name=[a"], "not valid YAML"),
    ],
)
def test_a_mistake_in_a_setting_exits_2_and_says_where(
    overrides: list[str], told: str, tmp_path: Path
) -> None:
    flags = [part for override in overrides for part in ("--set", override)]
    done = rayward("align", TINY, *flags, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("rayward: ") and told in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == "" and list(tmp_path.iterdir()) == []


def test_a_mistake_in_a_file_exits_2_and_names_its_line(tmp_path: Path) -> None:
    text = TINY.read_text()
    number = 1 + next(
        i for i, line in enumerate(text.splitlines()) if line.strip().startswith("iterations:")
    )
    (tmp_path / "mine.yaml").write_text(text.replace("  iterations:", "  iteration:"))
    done = rayward("rl", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        f"mine.yaml:{number}: unknown key 'rl.iteration'; did you mean 'iterations'?" in done.stderr
    )
    done = rayward("rl", "absent.yaml", cwd=tmp_path)
    assert (
        done.returncode == 2
        and "absent.yaml: no such file, and no such preset; presets:" in done.stderr
    )


@pytest.mark.parametrize("flag", ["--stages", "--redo"])
def test_an_unknown_stage_exits_2_and_lists_the_stages(flag: str, tmp_path: Path) -> None:
    done = rayward("align", TINY, flag, "sfft", cwd=tmp_path)
    assert done.returncode == 2, "a mistake on the command line"
    assert (
        f"unknown stage 'sfft'; stages: {', '.join(STAGES)}" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_command_exits_2(tmp_path: Path) -> None:
    done = rayward("trian", cwd=tmp_path)
    assert done.returncode == 2 and "trian" in done.stderr and "Traceback" not in done.stderr


def test_presets_and_settings_are_listed(tmp_path: Path) -> None:
    done = rayward("presets", cwd=tmp_path)
    names = [path.stem for path in sorted(PRESETS.glob("*.yaml"))]
    assert done.returncode == 0 and [line.split()[0] for line in done.stdout.splitlines()] == names
    assert all(len(line.split()) > 4 for line in done.stdout.splitlines()), "each with a sentence"
    done = rayward("settings", cwd=tmp_path)
    settings = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")][::2]
    assert done.returncode == 0 and "Undefined" not in done.stdout
    assert settings == [setting.name for group in groups() for setting in group.settings]
    done = rayward("settings", "rl.apa.lam", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("  rl.apa.lam (number above 0; default 0.1)\n      Lambda: ")
    done = rayward("settings", "rl.ap", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "rayward: unknown setting 'rl.ap'; did you mean rl.apa?\n"


@pytest.mark.parametrize(
    "command",
    [
        "settings",
        "presets",
        "--help",
        f"align {TINY} --dry-run",
        "data render --template vicuna_v1.1 rows.jsonl",
        "settings rl.ap",
    ],
)
def test_a_closed_pipe_ends_a_command_quietly(command: str, tmp_path: Path) -> None:
    row = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    reading, writing = os.pipe()
    os.close(reading)
    is_mistake = command == "settings rl.ap"
    done = subprocess.run(
        [sys.executable, "-m", "rayward.pipelines.cli", *command.split()],
        cwd=tmp_path,
        timeout=60,
        stdout=writing,
        # `2>&1 |`: a mistake is told there.
        stderr=writing if is_mistake else subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},
    )
    os.close(writing)
    assert done.returncode == 128 + signal.SIGPIPE, done.stderr
    assert is_mistake or done.stderr == b""


def test_a_report_of_what_never_ran_is_an_error_in_one_line(tmp_path: Path) -> None:
    done = rayward("report", tmp_path, cwd=tmp_path)
    assert (
        done.returncode in (1, 2)
        and "config.yaml" in done.stderr
        and "Traceback" not in done.stderr
    )


@pytest.mark.parametrize(
    "stage, told",
    [
        ("sft", "prepare has not run yet .*: rayward prepare"),
        ("reward", "prepare has not run yet .*: rayward prepare"),
        ("sample", "prepare has not run yet .*: rayward prepare"),
        ("rl", "prepare has not run yet .*: rayward prepare"),
        (
            "evaluate",
            "compares rejection, .* with sft: run sft and at least one of the others first",
        ),
        ("publish", "evaluate has not run yet .*: rayward evaluate"),
    ],
)
def test_a_stage_before_its_time_says_what_to_run_first(
    stage: str,
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In this process, so that it shows whether Ray was started for nothing."""
    import ray

    from rayward.pipelines.cli import main

    monkeypatch.setenv("RAYWARD_WORKER_LOGS", "1")  # leaves this process's environment as it is
    was_running = ray.is_initialized()
    assert main([stage, str(TINY), "--run", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("rayward: ") and re.search(told, said) and "Traceback" not in said
    assert str(tmp_path / "run") in said
    assert ray.is_initialized() == was_running
    assert not (tmp_path / "run" / stage / "manifest.json").exists()


def test_a_person_who_asks_sees_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rayward.pipelines.cli", "report", str(tmp_path / "none")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAYWARD_TRACEBACK": "1"}
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.yaml").write_text(TINY.read_text())
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "Traceback" in done.stderr
    quiet = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment | {"RAYWARD_TRACEBACK": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (
        quiet.returncode == 1 and "summary.json" in quiet.stderr and "Traceback" not in quiet.stderr
    )


def test_a_terminal_without_a_character_ends_no_command(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "日本 → ?"}, {"role": "assistant", "content": "Ja."}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}, ensure_ascii=False))
    done = subprocess.run(
        [sys.executable, "-m", "rayward.pipelines.cli", "data", "check", "rows.jsonl"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert b"?? ? ?" in done.stdout
