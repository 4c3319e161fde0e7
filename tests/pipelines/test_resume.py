"""A stage that is killed or stopped goes on from its checkpoint, and ends with the same bits."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(600)
TINY = Path(__file__).parents[1] / "tiny.yaml"
STEPS = ("--set", "checkpoint.every_steps=2", "--set", "sft.epochs=6", "--set", "sft.keep=best")
STEPS += ("--set", "sft.validate_every=5")


def command(folder: Path, *options: str) -> list[str]:
    call = [sys.executable, "-m", "rayward.pipelines.cli", "sft", str(TINY)]
    return [*call, "--run", str(folder), *STEPS, *options]


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, *options), capture_output=True, text=True, timeout=300)


def interrupted(folder: Path, number: int, at_least: int) -> tuple[int, str]:
    """Send a signal when there is a checkpoint of so many steps; the status and what was said."""
    made = folder / "sft" / "checkpoints" / "model"
    with subprocess.Popen(
        command(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        deadline = time.monotonic() + 200
        while not any(int(path.name[5:]) >= at_least for path in made.glob("step-*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        said, _ = process.communicate(timeout=200)
    return process.returncode, said


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "sft" / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name != "time"}
        for line in lines
    ]


@pytest.fixture(scope="module")
def prepared(road: Path) -> Path:
    return road / "prepare"


@pytest.fixture(scope="module")
def whole(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the stage that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "prepare").symlink_to(prepared)
    done = run(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_killed_and_stopped_it_goes_on_to_the_same_bits(
    prepared: Path, whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "prepare").symlink_to(prepared)
    status, _ = interrupted(tmp_path, signal.SIGKILL, 10)
    assert status == -signal.SIGKILL
    time.sleep(3)  # Ray's processes end when they see it
    status, said = interrupted(tmp_path, signal.SIGTERM, 30)
    assert status == 130 and "sft: goes on from step " in said
    assert "ends after the step, with a checkpoint" in said and "run the same command again" in said
    refused = run(tmp_path, "--set", "sft.optimizer.learning_rate=0.002")
    assert (
        refused.returncode == 1 and "holds checkpoints that were made with other" in refused.stderr
    )
    assert "learning_rate was 0.003, now 0.002" in refused.stderr
    done = run(tmp_path)
    assert done.returncode == 0 and "sft: goes on from step " in done.stdout, done.stderr
    assert rows(tmp_path) == rows(whole) and len(rows(whole)) > 100
    names = ("model.safetensors", "config.json")
    for name in names:
        ours, theirs = (folder / "sft" / "model" / name for folder in (tmp_path, whole))
        assert ours.read_bytes() == theirs.read_bytes(), name
    ours, theirs = (
        json.loads((folder / "sft" / "manifest.json").read_text()) for folder in (tmp_path, whole)
    )
    assert ours["metrics"] == theirs["metrics"] and ours["fingerprint"] == theirs["fingerprint"]
    assert not (tmp_path / "sft" / "checkpoints").exists()
    ours, theirs = (
        {path.name for path in (folder / "sft" / "model").iterdir()} for folder in (tmp_path, whole)
    )
    assert ours == theirs
