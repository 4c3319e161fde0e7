"""A stage's folder: done, killed, changed, or to do; and the files that say so."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rayward.configs.schema import Config
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.files import read_json, read_jsonl, write_json, write_jsonl
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.metrics import Metrics, flatten, table
from rayward.pipelines.run.stage import Stage, begin, versions

ROOT = Path(__file__).parents[2]


def start(run: Run, name: str = "sft", inputs: tuple[str, ...] = ()) -> Stage | None:
    return begin(run, name, inputs)


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def run(tmp_path: Path, tiny_config: Callable[..., Config]) -> Run:
    return Run(tmp_path / "run", tiny_config())


def finished(run: Run, name: str = "sft", inputs: tuple[str, ...] = ()) -> Stage:
    stage = start(run, name, inputs)
    assert stage is not None
    (stage.folder / "model").mkdir()
    (stage.folder / "model" / "weights").write_bytes(b"\x00\x01")
    stage.finish({"loss": 1.5})
    return stage


# ---- done, or not
# ------------------------------------------------------------------------------------------


def test_a_stage_is_done_once_its_manifest_stands(run: Run) -> None:
    stage = start(run)
    assert stage is not None and stage.folder.is_dir() and not run.done("sft")
    manifest = stage.finish({"loss": 1.5})
    assert run.done("sft") and run.manifest("sft") == manifest == read_json(
        stage.folder / "manifest.json"
    )
    assert manifest["metrics"] == {"loss": 1.5} and manifest["stage"] == "sft"
    assert manifest["seed"] == run.config.seed and manifest["seconds"] >= 0
    assert manifest["settings"]["sft"]["epochs"] == run.config.sft.epochs
    assert (
        manifest["versions"] == versions() and {"torch", "ray", "transformers"} <= versions().keys()
    )
    assert run.model("sft") == str(run.folder / "sft" / "model")


def test_the_same_command_again_skips_it_and_touches_nothing(run: Run) -> None:
    finished(run)
    before = content(run.folder)
    assert start(run) is None
    assert start(Run(run.folder, Config.model_validate(run.config.model_dump()))) is None, (
        "an equal config, read anew"
    )
    assert content(run.folder) == before


def test_what_a_killed_try_left_behind_is_not_used(run: Run) -> None:
    first = start(run)
    assert first is not None
    (first.folder / "model").mkdir()
    (first.folder / "model" / "half").write_text("x")
    (first.folder / ".manifest.json.writing").write_text("{")
    second = start(run)
    assert second is not None and list(second.folder.iterdir()) == []


def test_one_that_goes_on_leaves_nothing_that_a_killed_try_had_half_written(run: Run) -> None:
    first = start(run)
    assert first is not None
    first.part("first", lambda: 1)
    write_json(first.folder / "state.json", {})
    (first.folder / "rows").mkdir()
    (first.folder / ".state.json.123.writing").write_text("{")
    (first.folder / "rows" / ".1.parquet.writing").write_text("")
    second = start(run)
    assert second is not None and second.kept("first")
    second.finish({})
    assert content(run.folder / "sft").keys() == {"manifest.json", "state.json"}


@pytest.mark.parametrize(
    "change, told",
    [
        ({"sft": {"epochs": 4}}, "sft.epochs was 1, now 4"),
        (
            {"sft": {"optimizer": {"learning_rate": 0.5}}},
            "sft.optimizer.learning_rate was 0.001, now 0.5",
        ),
        (
            {"sft": {"optimizer": {"betas": [0.5, 0.95]}}},
            r"sft.optimizer.betas was [0.9, 0.95], now [0.5, 0.95]",
        ),
        ({"seed": 7}, "seed was 0, now 7"),
    ],
)
def test_a_changed_setting_is_told_and_nothing_is_deleted(
    change: dict, told: str, run: Run, tiny_config: Callable[..., Config]
) -> None:
    finished(run)
    before = content(run.folder)
    with pytest.raises(StageError) as caught:
        start(Run(run.folder, tiny_config(**change)))
    assert (
        told in str(caught.value)
        and "--redo sft" in str(caught.value)
        and "--run" in str(caught.value)
    )
    assert str(caught.value).count(", now ") == 1, "only what changed is listed"
    assert content(run.folder) == before


def test_a_setting_of_another_stage_does_not_matter(
    run: Run, tiny_config: Callable[..., Config]
) -> None:
    finished(run)
    assert (
        start(Run(run.folder, tiny_config(rl={"gamma": 0.5}, publish={"model_id": "other"})))
        is None
    )


def test_two_changes_are_both_told(run: Run, tiny_config: Callable[..., Config]) -> None:
    finished(run)
    with pytest.raises(StageError, match="seed was 0, now 3; sft.epochs was 1, now 2"):
        start(Run(run.folder, tiny_config(seed=3, sft={"epochs": 2})))


def test_speed_and_memory_do_not_matter(run: Run, tiny_config: Callable[..., Config]) -> None:
    finished(run)
    faster = {"micro_batch_tokens": 77, "gradient_checkpointing": True}
    assert (
        start(Run(run.folder, tiny_config(sft={"optimizer": faster}, rollout={"max_sequences": 3})))
        is None
    )


def test_a_part_of_a_stage_is_redone_by_its_name(
    run: Run, tiny_config: Callable[..., Config]
) -> None:
    finished(run, "rl/ppo")
    assert run.done("rl/ppo") and not run.done("rl/apa") and not run.done("rl")
    with pytest.raises(StageError, match=r"--redo rl/ppo$"):
        start(Run(run.folder, tiny_config(seed=3)), "rl/ppo")


# ---- begun by an earlier version
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "told"), [("chatml", "writes more after the end token"), ("openchat_3.5", "")]
)
def test_a_reward_model_of_an_earlier_version_is_asked_for_anew_only_where_its_rows_ended_elsewhere(
    template: str, told: str, tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    from rayward.data.templates.template import find
    from rayward.data.templates.tokenizer import train_tokenizer

    run = Run(tmp_path, tiny_config(model={"template": template}))
    finished(run, "prepare")
    tokenizer = train_tokenizer(["Hello there"], 300, find(template).special_tokens, 64)
    tokenizer.save_pretrained(tmp_path / "prepare" / "tokenizer")
    finished(run, "reward", ("prepare",))
    for name in ("prepare", "reward"):
        manifest = run.manifest(name)
        assert manifest.pop("rows") > 0
        write_json(tmp_path / name / "manifest.json", manifest)
    if not told:
        assert (
            start(run, "sample", ("prepare", "reward")) is not None
            and start(run, "reward", ("prepare",)) is None
        )
        return
    for name, inputs in (("sample", ("prepare", "reward")), ("reward", ("prepare",))):
        with pytest.raises(
            StageError, match=f"made by an earlier version: .*chatml {told}.* --redo reward"
        ):
            start(run, name, inputs)


# ---- inputs
# ------------------------------------------------------------------------------------------------


def test_a_missing_input_is_named_with_the_command_that_makes_it(run: Run) -> None:
    with pytest.raises(
        StageError, match=rf"prepare has not run yet .* rayward prepare CONFIG --run {run.folder}"
    ):
        start(run, "sft", inputs=("prepare",))
    with pytest.raises(StageError, match="rl/ppo has not run yet .* rayward rl CONFIG"):
        run.model("rl/ppo")
    assert not run.folder.exists(), "nothing is made for a stage that cannot run"


def test_an_input_made_again_with_other_settings_makes_a_stage_stale(run: Run, tiny_config) -> None:
    first = finished(run, "prepare")
    finished(run, "sft", inputs=("prepare",))
    assert start(run, "sft", inputs=("prepare",)) is None
    (first.folder / "manifest.json").unlink()
    other = finished(Run(run.folder, tiny_config(rollout={"max_new_tokens": 9})), "prepare")
    with pytest.raises(StageError) as caught:
        start(run, "sft", inputs=("prepare",))
    assert "prepare was made with other settings: max_new_tokens was 9, now 24" in str(caught.value)
    with pytest.raises(StageError) as caught:
        start(
            Run(run.folder, tiny_config(rollout={"max_new_tokens": 9})), "sft", inputs=("prepare",)
        )
    assert f"inputs.prepare was {first.fingerprint}, now {other.fingerprint}" in str(caught.value)
    assert (run.folder / "sft" / "model" / "weights").is_file()
    rollout = Run(run.folder, tiny_config(rollout={"max_new_tokens": 9}))
    assert begin(rollout, "sft", ("prepare",), follows_inputs=True) is not None


# ---- files that are whole or not there
# -----------------------------------------------------------------------


def test_a_manifest_that_cannot_be_written_is_not_there(run: Run) -> None:
    stage = start(run)
    assert stage is not None
    with pytest.raises(TypeError):
        stage.finish({"fine": list(range(1000)), "not json": object()})
    assert not (stage.folder / "manifest.json").exists() and not run.done("sft")
    again = start(run)
    assert again is not None
    again.finish({})
    assert [path.name for path in again.folder.iterdir()] == ["manifest.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": [1] * 1000, "bad": {1, 2}})
    assert read_json(path) == {"old": 1}
    write_json(path, {"new": 2})
    assert read_json(path) == {"new": 2} and [file.name for file in tmp_path.iterdir()] == [
        "summary.json"
    ]


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"round": -1, "values": []})
    code = (
        "import sys; from pathlib import Path; from rayward.pipelines.run.files import write_json\n"
        "for n in range(10**6): write_json(Path(sys.argv[1]), {'round': n, 'values': [n] * 20000})"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT)
    try:
        deadline = time.monotonic() + 20
        while read_json(path)["round"] < 3:
            assert time.monotonic() < deadline and writer.poll() is None
            time.sleep(0.01)
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    found = read_json(path)
    assert found["round"] >= 3 and found["values"] == [found["round"]] * 20000


def test_rows_come_back_line_by_line(tmp_path: Path) -> None:
    rows = [
        {"text": text}
        for text in ("", "a\nb", "a\r\nb", "\u2028\u2029\x85\x00", "日本語 😀", '"\\', "\t")
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == rows
    write_jsonl(tmp_path / "lazy.jsonl", iter(rows))
    assert (tmp_path / "lazy.jsonl").read_bytes() == (tmp_path / "rows.jsonl").read_bytes()


# ---- metrics
# -----------------------------------------------------------------------------------------------


def test_flatten_joins_names_and_keeps_order() -> None:
    nested = {"a": 1, "b": {"c": 2, "d": {"e": "x"}, "empty": {}}, "f": [3]}
    assert list(flatten(nested)) == [("a", 1), ("b/c", 2), ("b/d/e", "x"), ("f", [3])]


def test_metrics_go_to_lines_and_to_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged = [
        {"loss": 1 / (step + 1), "set": "x", "time": {"tokens_per_s": 10 * step}}
        for step in range(4)
    ]
    with Metrics(tmp_path / "new" / "folder", "sft", 4, "step") as metrics:
        for step, values in enumerate(logged):
            metrics.log(step, values, ("loss", "absent"))
            lines = (tmp_path / "new" / "folder" / "metrics.jsonl").read_text().splitlines()
            assert len(lines) == step + 1, "a line is there as soon as it is logged"
    folder = tmp_path / "new" / "folder"
    assert list(read_jsonl(folder / "metrics.jsonl")) == [
        {"step": step, **values} for step, values in enumerate(logged)
    ]
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "time/tokens_per_s"}
    assert {e.step: e.value for e in events.Scalars("loss")} == pytest.approx(
        {0: 1.0, 1: 0.5, 2: 1 / 3, 3: 0.25}
    )


def test_metrics_start_afresh_for_a_new_try(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        with Metrics(tmp_path, "sft", 1, "step") as metrics:
            metrics.log(0, {"loss": value})
    assert list(read_jsonl(tmp_path / "metrics.jsonl")) == [{"step": 0, "loss": 2.0}]


def test_metrics_are_kept_when_a_stage_fails(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="^lost$"),
        Metrics(tmp_path, "sft", 2, "step") as metrics,
    ):
        metrics.log(0, {"loss": math.pi})
        raise RuntimeError("lost")
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == math.pi


def test_a_table_shows_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    table("figures", {"loss": 0.123456789, "rows": 12345678})
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("figures", "loss", "0.1235", "12345678"))
    table("models", [("sft", "-", 1.0), ("ppo", "60%", 2.0)], ("model", "wins", "judge"))
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("model", "wins", "judge", "sft", "ppo", "60%"))
