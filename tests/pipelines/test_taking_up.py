"""Which checkpoint a stage goes on from, with what settings, and what it says of missing parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rayward.actors.checkpoints import MANIFEST, Checkpoint, Checkpoints
from rayward.configs.last_bits import of_rl, of_training
from rayward.configs.load import ConfigError
from rayward.configs.schema import Config
from rayward.pipelines.parts import parse_partial
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.stage import Stage, begin
from rayward.pipelines.run.taking_up import TakenUp, take_up

PARTS = ("weights", "optimizer", "random")
FILES = ("weights.json", "weights-0.pt", "weights-1.pt", "optimizer-0.pt", "optimizer-1.pt")


class Runs:
    """Runs of one stage in one folder, each with settings of its own."""

    def __init__(self, folder: Path, tiny_config: Callable[..., Config]) -> None:
        self.folder, self.tiny_config = folder, tiny_config

    def stage(self, *partial: str, name: str = "sft", **settings: object) -> Stage:
        stage = begin(self.run(*partial, **settings), name)
        assert stage is not None
        return stage

    def run(self, *partial: str, **settings: object) -> Run:
        return Run(self.folder, self.tiny_config(**settings), frozenset(partial))

    def made(self, stage: Stage) -> Checkpoints:
        return Checkpoints(stage.checkpoints_of("model"), keep=2)

    def take_up(self, stage: Stage) -> TakenUp:
        config = stage.run.config
        now = {"": of_training(config.resources.train, config.sft.optimizer, config.model.dtype)}
        return take_up(stage, "sft", self.made(stage), PARTS, now, "from step {} of {}", 9)

    def write(self, stage: Stage, taken_up: TakenUp, step: int) -> Checkpoint:
        place = self.made(stage).new(step)
        for name in (*FILES, "random-0.pt", "random-1.pt"):
            (place / name).write_text(f"{name} {step}")
        return self.made(stage).complete(step, taken_up.info)


TWO = {"resources": {"train": {"workers": 2}}}


@pytest.fixture
def runs(tmp_path: Path, tiny_config: Callable[..., Config]) -> Runs:
    return Runs(tmp_path / "run", tiny_config)


def test_a_checkpoint_is_taken_up_with_other_ranks_which_is_told(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    first = runs.stage(**TWO)
    begun = runs.take_up(first)
    assert begun.found is None and not capsys.readouterr().out
    done = runs.write(first, begun, 4)
    again = runs.stage(**TWO)
    assert runs.take_up(again).found == done
    everything = "restored: weights, optimizer, random; missing: none"
    assert capsys.readouterr().out == f"   sft: goes on from step 4 of 9; {everything}\n"
    other = runs.stage(sft={"optimizer": {"micro_batch_tokens": 80}})
    resumed = runs.take_up(other)
    changed = "from 2 ranks, ZeRO 1 with 1 rank, ZeRO 0, micro_batch_tokens was 256, now 80"
    told = f"goes on {changed}: no longer equal to the bit, only within rounding"
    assert capsys.readouterr().out.splitlines()[1] == f"   sft: {told}"
    # A later try finds the checkpoint of this one, and what it came from.
    runs.write(other, resumed, 6)
    last = runs.stage(sft={"optimizer": {"micro_batch_tokens": 80}})
    runs.take_up(last)
    assert "goes on from step 6" in (said := capsys.readouterr().out) and "rounding" not in said
    (last.folder / "model").mkdir()
    assert last.finish({})["resumed"] == {
        "sft": [
            {"step": 4, "changed": changed, "missing": []},
            {"step": 6, "changed": "", "missing": []},
        ]
    }
    assert begin(runs.run(**TWO), "sft") is None, "what is finished holds with any ranks"
    with pytest.raises(StageError, match=r"other settings: sft.epochs was 1, now 3\. Nothing"):
        begin(runs.run(sft={"epochs": 3}, **TWO), "sft")


@pytest.mark.parametrize(
    "settings", [{"seed": 4}, {"sft": {"optimizer": {"learning_rate": 1.0}}}, {"rl": {"epochs": 3}}]
)
def test_other_settings_are_conflicts_as_ever(runs: Runs, settings: dict[str, object]) -> None:
    stage = runs.stage()
    runs.write(stage, runs.take_up(stage), 4)
    if "rl" in settings:  # of another stage
        runs.stage(**settings)
        return
    with pytest.raises(ConfigError, match="holds checkpoints that were made with other settings"):
        runs.stage(**settings)


def test_a_missing_part_refuses_unless_it_is_allowed(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = runs.stage()
    done = runs.write(stage, runs.take_up(stage), 4)
    (done.folder / "optimizer-1.pt").unlink()
    with pytest.raises(StageError) as refused:
        runs.take_up(runs.stage("random"))
    text = str(refused.value)
    lacks = f"{done.folder} lacks optimizer, whole. Nothing was overwritten. Put the files back"
    assert lacks in text
    assert "let it begin anew with --allow-partial optimizer, or" in text and "--redo sft" in text
    assert done.folder.is_dir()
    stage = runs.stage("optimizer", "random")
    found = runs.take_up(stage).found
    assert found and found.missing == {"optimizer"}, "what is there is restored"
    assert capsys.readouterr().out.endswith(
        "from step 4 of 9; restored: weights, random; missing: optimizer (begins anew)\n"
    )
    assert stage.resumed["sft"][-1]["missing"] == ["optimizer"]
    (done.folder / "weights-0.pt").unlink()
    with pytest.raises(StageError, match="lacks weights, whole. .*Without weights nothing can go"):
        runs.take_up(runs.stage("optimizer"))


def test_a_whole_one_goes_before_one_that_lacks_a_part(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = runs.stage()
    begun = runs.take_up(stage)
    runs.write(stage, begun, 4)
    later = runs.write(stage, begun, 6)
    (later.folder / "random-0.pt").write_text("torn")
    found = runs.take_up(runs.stage()).found
    assert found and found.step == 4
    said = capsys.readouterr().out
    assert "a checkpoint is passed over: " in said and "random-0.pt has 4 bytes, not 13" in said
    found = runs.take_up(runs.stage("random")).found
    assert found and found.step == 6 and found.missing == {"random"}


def test_a_checkpoint_of_an_earlier_layout_is_named_and_kept(runs: Runs) -> None:
    stage = runs.stage()
    done = runs.write(stage, runs.take_up(stage), 4)
    manifest = json.loads((done.folder / MANIFEST).read_text())
    for known in manifest["files"].values():
        del known["part"]
    (done.folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(StageError, match=r"lacks optimizer, random, weights, whole\. .*Without"):
        runs.take_up(runs.stage())
    assert done.folder.is_dir()


def test_parts_that_may_be_missing() -> None:
    assert parse_partial(None) == frozenset()
    assert parse_partial("optimizer, critic/weights") == {"optimizer", "critic/weights"}
    for unknown in ("weights", "policy/weights", "adam"):
        with pytest.raises(ConfigError, match=f"--allow-partial '{unknown}': no part .* in_flight"):
            parse_partial(f"random,{unknown}")


def test_the_last_bits_of_rl(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(resources={"critic": {"workers": 2}, "rollout": {"workers": 3}})
    told = of_rl(config, ("policy", "critic"))
    assert [told[name]["ranks"] for name in ("policy", "critic")] == [1, 2]
    assert [told[name]["zero_stage"] for name in ("policy", "critic")] == [0, 1]
    assert told["engines"] == {"number": 3, "threads": 1, "gpus": 0}
    assert told["reference"] == told["reward"] == {"number": 1, "threads": 1, "gpus": 0}
    assert told == json.loads(json.dumps(told)), "as a checkpoint's manifest has it"
