"""Rayward from Python: `import rayward` and what it reads of a run's folder. Nothing starts Ray."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rayward
from rayward.algorithms import policy
from rayward.configs.load import ConfigError, dump
from rayward.configs.schema import Config
from rayward.pipelines.align import summarize
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.files import write_jsonl
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.stage import begin

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "tiny.yaml"
FIGURES: dict[str, dict[str, Any]] = {
    "prepare": {"conversations": 48},
    "sft": {"loss": 1.5},
    "reward": {"pair_accuracy": 0.8, "judge": {"pair_accuracy": 0.7}},
    "rl/ppo": {"score": 2.0},
    "evaluate": {"win_rate": {"ppo": {"mean": 0.75}}},
}


def make_run(folder: Path, config: Config) -> Path:
    """A folder as a run leaves it where one stage writes a line, and APA is at work."""
    run = Run(folder, config)
    for part, figures in FIGURES.items():
        stage = begin(run, part)
        assert stage is not None
        if part in ("sft", "reward", "rl/ppo"):
            (stage.folder / "model").mkdir()
        stage.finish(figures)
    (folder / "reward" / "judge").mkdir()
    steps = [
        {"step": 0, "score": 1.0, "kl": 0.0, "time": {"iteration_s": 2.5, "idle_s": {"policy": 1}}},
        {"step": 1, "score": 2.0, "time": {"iteration_s": 2.0}},
    ]
    answer = {"prompt": "Which day comes after Monday?", "answer": "Tuesday.", "score": 2.0}
    for name in ("ppo", "apa"):
        place = folder / "rl" / name
        (place / "transcripts").mkdir(parents=True)
        write_jsonl(place / "metrics.jsonl", steps)
        write_jsonl(place / "transcripts" / "00000.jsonl", [answer, answer])
        write_jsonl(place / "transcripts" / "00001.jsonl", [answer])
    (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
    (folder / "report.html").write_text("<html></html>", encoding="utf-8")
    summarize(run, peak_bytes=5)
    return folder


@pytest.fixture
def folder(tmp_path: Path, tiny_config: Callable[..., Config]) -> Path:
    return make_run(tmp_path / "runs" / "mine", tiny_config())


def test_the_import_is_light() -> None:
    """In a process of its own: this one has imported everything."""
    code = """
import sys, time
begun = time.perf_counter()
import rayward
took_s = time.perf_counter() - begun
assert not any(name.startswith("rayward.") for name in sys.modules)
assert not {"numpy", "pydantic", "yaml", "torch", "ray"} & sys.modules.keys()
assert took_s < 0.1, took_s
assert {"Run", "run", "load_config", "__version__"} <= set(dir(rayward))
assert rayward.load_config("quickstart").name == "quickstart" and rayward.Run and rayward.run
heavy = {"torch", "ray", "vllm", "deepspeed", "transformers", "datasets"} & sys.modules.keys()
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert rayward.__version__ == project["version"]


def test_an_attribute_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'rayward' has no attribute 'align'"):
        rayward.align  # noqa: B018
    assert rayward.algorithms.policy.apa is policy.apa


def test_configs_come_from_files_and_presets_with_overrides() -> None:
    assert rayward.load_config(TINY, ["rl.gamma=0.5"]).rl.gamma == 0.5
    assert rayward.load_config("quickstart").name == "quickstart"
    with pytest.raises(ConfigError, match="did you mean 'gamma'"):
        rayward.load_config(TINY, ["rl.gama=0.5"])


def test_a_run_is_read(folder: Path, tiny_config: Callable[..., Config]) -> None:
    run = rayward.Run(folder)
    assert repr(run) == f"rayward.Run({str(folder)!r})" and run.folder == folder
    assert run.done == ("prepare", "sft", "reward", "rl/ppo", "evaluate")
    assert run.config == tiny_config()
    assert run.summary["reward"] == FIGURES["reward"] and run.summary["peak_memory_bytes"] == 5
    assert run.summary["rl"]["ppo"] == {"score": 2.0}
    assert run.report == folder / "report.html"
    # APA's part is not finished: its model may be half written.
    (folder / "rl" / "apa" / "model").mkdir()
    assert run.models == {
        "sft": folder / "sft" / "model",
        "ppo": folder / "rl" / "ppo" / "model",
        "reward": folder / "reward" / "model",
        "judge": folder / "reward" / "judge",
    }


def test_metrics_are_columns(folder: Path) -> None:
    run = rayward.Run(str(folder))
    assert run.metrics("rl/ppo") == {
        "step": [0, 1],
        "score": [1.0, 2.0],
        "kl": [0.0, None],
        "time/iteration_s": [2.5, 2.0],
        "time/idle_s/policy": [1, None],
    }
    assert run.metrics("ppo") == run.metrics("rl/apa"), "also while it is at work"


def test_transcripts_are_rows_with_their_iteration(folder: Path) -> None:
    rows = list(rayward.Run(folder).transcripts("ppo"))
    assert [row["iteration"] for row in rows] == [0, 0, 1]
    assert rows[2]["answer"] == "Tuesday." and list(rayward.Run(folder).transcripts("rl/apa"))


def test_what_a_run_does_not_have_is_told_with_what_it_has(folder: Path) -> None:
    run = rayward.Run(folder)
    with pytest.raises(StageError, match="no metrics of dpo, only of rl/apa, rl/ppo$"):
        run.metrics("dpo")
    with pytest.raises(StageError, match="no transcripts of sft, only of rl/apa, rl/ppo$"):
        run.transcripts("sft")
    with pytest.raises(StageError, match=r"no metrics of \.\./x"):
        run.metrics("../x")
    for name in ("report.html", "summary.json", "config.yaml"):
        (folder / name).unlink()
    with pytest.raises(StageError, match=f"no report.html: rayward report {folder} writes it"):
        run.report  # noqa: B018
    with pytest.raises(StageError, match="no summary.json: .*Done are: prepare, sft, reward"):
        run.summary  # noqa: B018
    with pytest.raises(StageError, match="no config.yaml: "):
        run.config  # noqa: B018


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match=f"{place} is no run folder: "):
            rayward.Run(place)
    assert not (tmp_path / "absent").exists()


def test_a_run_is_made_as_the_command_makes_it(tmp_path: Path) -> None:
    import ray

    was_running = ray.is_initialized()
    run = rayward.run(TINY, tmp_path / "run", stages="prepare")
    assert run.done == ("prepare",) and ray.is_initialized() == was_running
    assert run.summary["prepare"]["evaluation_prompts"] == 24
    assert run.metrics("prepare")["set"][0] == "conversations"
    with pytest.raises(StageError, match="only of nothing so far"):
        run.transcripts("ppo")
    before = (run.folder / "prepare" / "manifest.json").read_bytes()
    rayward.run(run.config, run.folder, stages=["prepare"])
    assert (run.folder / "prepare" / "manifest.json").read_bytes() == before, "done before"
    with pytest.raises(ConfigError, match="unknown stage 'sfft'"):
        rayward.run(TINY, tmp_path / "run", stages=["sfft"])
    with pytest.raises(ConfigError, match="unknown stage 'rl/pp'"):
        rayward.run(TINY, tmp_path / "run", redo="rl/pp")
