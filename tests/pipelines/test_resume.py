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

pytestmark = pytest.mark.timeout(1800)
TINY = Path(__file__).parents[1] / "tiny.yaml"

SFT = ("sft.epochs=6", "sft.keep=best", "sft.validate_every=5", "checkpoint.every_steps=2")
RL = (
    "rl.iterations=5",
    "rl.monitor.every=1",
    "rl.save_rollouts=true",
    "rl.reward_scaling=std_then_clip",
    "checkpoint.every_steps=1",
)
CASES = {
    "sft": ("sft", SFT, "model", (10, 30)),
    "ppo": ("rl", ("rl.algorithms=[ppo]", "rl.ppo.kl_target=0.01", *RL), "training", (1, 2)),
    "ahead": (
        "rl",
        (
            "rl.algorithms=[rloo]",
            "rl.mode=one_step_off",
            "resources.rollout.workers=2",
            "resources.policy.workers=2",
            *RL,
        ),
        "training",
        (1, 3),
    ),
}
FOLDER = {"sft": "sft", "ppo": "rl/ppo", "ahead": "rl/rloo"}


class Case:
    """A stage with its settings, run in folders whose earlier stages are the same."""

    def __init__(self, name: str, base: Path) -> None:
        self.stage, self.settings, training, self.at = CASES[name]
        self.folder, self.base = FOLDER[name], base
        self.made = f"{self.folder}/checkpoints/{training}"

    def start(self, run: Path) -> Path:
        """A run folder with what comes before."""
        run.mkdir(exist_ok=True)
        for stage in ("prepare", "sft", "reward"):
            if stage != self.stage and (self.base / stage).is_dir():
                (run / stage).symlink_to(self.base / stage)
        return run

    def command(self, run: Path, *options: str) -> list[str]:
        settings = [part for setting in self.settings for part in ("--set", setting)]
        call = [sys.executable, "-m", "rayward.pipelines.cli", self.stage, str(TINY)]
        return [*call, "--run", str(run), *settings, *options]

    def run(self, run: Path, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(run, *options), capture_output=True, text=True, timeout=800
        )

    def interrupted(self, run: Path, number: int, at_least: int, *options: str) -> tuple[int, str]:
        """Send a signal when there is a new checkpoint, of so many steps; the status, what was
        said.
        """
        # The ranks of a killed driver may write one more before they see that it is gone.
        at_least = max(at_least, self.last(run) + 1)
        with subprocess.Popen(
            self.command(run, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            deadline = time.monotonic() + 600
            while not any(
                int(path.name[5:]) >= at_least for path in (run / self.made).glob("step-*")
            ):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(number)
            said, _ = process.communicate(timeout=600)
        return process.returncode, said

    def last(self, run: Path) -> int:
        """The step of the last checkpoint; 0 where there is none."""
        return max((int(p.name[5:]) for p in (run / self.made).glob("step-*")), default=0)

    def rows(self, run: Path) -> list[dict[str, Any]]:
        lines = (run / self.folder / "metrics.jsonl").read_text().splitlines()
        return [
            {name: value for name, value in json.loads(line).items() if name != "time"}
            for line in lines
        ]

    def files(self, run: Path) -> dict[str, bytes]:
        """All that the stage leaves, but what the clock decides."""
        folder = run / self.folder
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
            and path.parts[len(folder.parts)] not in ("ray", "tensorboard")
            and path.name
            not in ("metrics.jsonl", "spans.jsonl", "trace.json", "manifest.json", "README.md")
        }


@pytest.mark.slow  # in every run: six faults and a killed driver in RL (test_chaos.py)
@pytest.mark.parametrize("name", CASES)
def test_killed_and_stopped_it_goes_on_to_the_same_bits(
    name: str, road: Path, tmp_path: Path
) -> None:
    case = Case(name, road)
    whole, torn = case.start(tmp_path / "whole"), case.start(tmp_path / "torn")
    done = case.run(whole)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = case.at
    status, said = case.interrupted(torn, signal.SIGKILL, first)
    assert status == -signal.SIGKILL, said
    time.sleep(3)  # Ray's processes end when they see it
    status, said = case.interrupted(torn, signal.SIGTERM, second)
    assert status == 130 and ": goes on " in said, said
    assert "with a checkpoint" in said and "run the same command again" in said
    if name == "sft":
        refused = case.run(torn, "--set", "sft.optimizer.learning_rate=0.002")
        assert refused.returncode == 2
        assert "holds checkpoints that were made with other" in refused.stderr
        assert "learning_rate was 0.003, now 0.002" in refused.stderr
        # Of a try that was killed before it granted it.
        (torn / case.made).with_name("asked").write_text("stop")
    done = case.run(torn)
    assert done.returncode == 0 and ": goes on " in done.stdout, done.stdout + done.stderr
    assert case.rows(torn) == case.rows(whole)
    ours, theirs = case.files(torn), case.files(whole)
    assert ours.keys() == theirs.keys()
    assert [path for path in ours if ours[path] != theirs[path]] == []
    assert any(path.endswith("model.safetensors") for path in ours)
    ours, theirs = (
        json.loads((run / case.folder / "manifest.json").read_text()) for run in (torn, whole)
    )
    assert ours["fingerprint"] == theirs["fingerprint"]
    assert not (torn / case.folder / "checkpoints").exists()


RANKS = {
    "sft": (
        ("resources.train.workers=2", "sft.optimizer.zero_stage=2"),
        ("sft.optimizer.micro_batch_tokens=300",),
        ("from 2 ranks, ZeRO 2 with 1 rank, ZeRO 0, micro_batch_tokens was",),
    ),
    "ppo": (
        ("resources.policy.workers=2", "resources.rollout.workers=2"),
        ("resources.critic.workers=2", "rl.optimizer.zero_stage=3"),
        (
            "critic from 1 rank, ZeRO 0 with 2 ranks, ZeRO 3",
            "engines number was 2, now 1",
            "policy from 2 ranks, ZeRO 1 with 1 rank, ZeRO 3",
        ),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RANKS)
def test_it_goes_on_with_other_ranks_within_rounding(name: str, road: Path, tmp_path: Path) -> None:
    case = Case(name, road)
    *settings, told = RANKS[name]
    before, after = ([part for one in of for part in ("--set", one)] for of in settings)
    whole, torn = case.start(tmp_path / "whole"), case.start(tmp_path / "torn")
    done = case.run(whole)
    assert done.returncode == 0, done.stdout + done.stderr
    status, said = case.interrupted(torn, signal.SIGTERM, case.at[0], *before)
    assert status == 130, said
    place = sorted((torn / case.made).glob("step-*"))[-1]
    gone = next(place.rglob("optimizer-1.pt"))
    gone.rename(tmp_path / "aside")
    refused = case.run(torn, *after)
    part = "optimizer" if name == "sft" else "policy/optimizer"
    assert refused.returncode == 1 and f"--allow-partial {part}, or" in refused.stderr
    (tmp_path / "aside").rename(gone)
    done = case.run(torn, *after)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "; missing: none" in done.stdout
    assert "no longer equal to the bit, only within rounding" in done.stdout
    assert all(words in done.stdout for words in told), done.stdout
    ours, theirs = case.rows(torn), case.rows(whole)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        figures = {"loss", "grad_norm", "score", "policy/loss", "critic/grad_norm"} & other.keys()
        assert len(figures) > 1
        for figure in figures:
            assert row[figure] == pytest.approx(other[figure], rel=1e-3, abs=1e-5), figure
    manifest = json.loads((torn / case.folder / "manifest.json").read_text())
    ((resumed,),) = manifest["resumed"].values()
    assert resumed["step"] == int(place.name[5:]) and not resumed["missing"]
    assert all(words in resumed["changed"] for words in told)
    assert case.run(torn).returncode == 0, "finished, it holds with any ranks"


GONE = {
    "sft": {"optimizer": "optimizer-*.pt", "validation": "validation-*", "metrics": "metrics*"},
    "ppo": {"critic/weights": "critic/weights-0*", "driver": "driver.json", "metrics": "metrics*"},
    "ahead": {"in_flight": "in_flight.pkl", "policy/optimizer": "policy/optimizer-1.pt"},
}
"""Parts that a checkpoint lacks, and files of them."""


@pytest.mark.slow
@pytest.mark.parametrize("name", GONE)
def test_a_missing_part_that_may_be_begins_anew(name: str, road: Path, tmp_path: Path) -> None:
    case, parts = Case(name, road), ",".join(GONE[name])
    run = case.start(tmp_path / "run")
    status, said = case.interrupted(run, signal.SIGTERM, case.at[0])
    assert status == 130, said
    place = sorted((run / case.made).glob("step-*"))[-1]
    for pattern in GONE[name].values():
        assert [path.unlink() for path in place.glob(pattern)], pattern
    done = case.run(run, "--allow-partial", parts)
    assert done.returncode == 0, done.stdout + done.stderr
    gone = set(GONE[name])
    if "critic/weights" in gone:  # with all that was of them
        gone |= {"critic/optimizer", "critic/random"}
    missing = ", ".join(sorted(gone))
    assert f"; missing: {missing} (begins anew)\n" in done.stdout, done.stdout
    step, first = int(place.name[5:]), "metrics" in GONE[name]
    steps = [row["step"] for row in case.rows(run)]
    begins = (step + (name == "sft")) if first else 0
    assert steps == list(range(begins, begins + len(steps))) and len(steps) > 1
    manifest = json.loads((run / case.folder / "manifest.json").read_text())
    ((resumed,),) = manifest["resumed"].values()
    assert resumed == {"step": step, "changed": "", "missing": sorted(gone)}
