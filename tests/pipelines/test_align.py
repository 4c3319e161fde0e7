"""The road as a whole: which stages, in which order, what is made again, and the summary."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from rayward.configs.decisive import decisive
from rayward.configs.load import ConfigError, dump, load
from rayward.configs.plan import inputs
from rayward.configs.schema import Config
from rayward.configs.stages import STAGES
from rayward.pipelines.align import align, forget, plan_text, summarize
from rayward.pipelines.parts import parse_redo, parse_stages
from rayward.pipelines.preflight import check_names
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.files import read_json
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.stage import aside_of, begin

PARTS = ("prepare", "sft", "reward", "sample", "rl/ppo", "rl/apa", "evaluate", "publish")


def finish(run: Run, *names: str) -> None:
    for name in names:
        stage = begin(run, name, tuple(part for part in inputs(run.config, name) if run.done(part)))
        assert stage is not None
        stage.started_at -= 10 * (1 + PARTS.index(name))  # as if it had taken so long
        stage.finish({"figure": PARTS.index(name)})


@pytest.fixture
def run(tmp_path: Path, tiny_config: Callable[..., Config]) -> Run:
    return Run(tmp_path, tiny_config())


def test_stages_are_run_in_the_order_of_the_road() -> None:
    rng = random.Random(0)
    assert parse_stages(None) == STAGES
    for count in range(1, len(STAGES) + 1):
        for names in itertools.combinations(STAGES, count):
            said = [*names, rng.choice(names)]
            rng.shuffle(said)
            assert parse_stages(rng.choice((",", " , ", ",,")).join(said)) == names


@pytest.mark.parametrize("text", ["stf", "sft,reword", "rl/ppo", "SFT"])
def test_an_unknown_stage_lists_the_known_ones(text: str) -> None:
    told = f"unknown stage '{text.split(',')[-1]}'; stages: {', '.join(STAGES)}"
    with pytest.raises(ConfigError, match=told):
        parse_stages(text)


@pytest.mark.parametrize(("text", "left"), [
    ("prepare", ()),
    ("reward", ("prepare", "sft")),
    ("rl", ("prepare", "sft", "reward", "sample")),
    ("rl/apa", ("prepare", "sft", "reward", "sample", "rl/ppo")),
    ("sample", ("prepare", "sft", "reward", "rl/ppo", "rl/apa")),
    ("publish", PARTS[:-1]),
    ("evaluate, sample", ("prepare", "sft", "reward", "rl/ppo", "rl/apa")),
])  # fmt: skip
def test_redo_removes_that_stage_and_what_follows_from_it(
    text: str, left: tuple[str, ...], run: Run
) -> None:
    finish(run, *PARTS)
    for name in ("config.yaml", "summary.json", "notes.txt"):
        (run.folder / name).write_text("{}")
    forget(run, parse_redo(text))
    assert tuple(name for name in PARTS if (run.folder / name).exists()) == left
    assert all(
        (run.folder / name).is_file() for name in ("config.yaml", "summary.json", "notes.txt")
    )
    gone = {name for name in PARTS if name not in left}
    assert {
        name for name in PARTS if (aside_of(run.folder, name) / "manifest.json").is_file()
    } == gone
    forget(run, parse_redo(text))  # what is gone already is no error
    again = sorted(gone)[0]
    finish(run, again)
    assert run.done(again) and not aside_of(run.folder, again).exists()


def test_redo_of_what_the_command_does_not_make_again_is_refused(run: Run) -> None:
    finish(run, *PARTS)
    for stages, redo in (
        (("sft",), ("sft",)),
        (("evaluate", "publish"), ("sft",)),
        (("rl",), ("rl/ppo",)),
    ):
        with pytest.raises(
            ConfigError,
            match=r"would remove .*, which this command does not make again; use rayward",
        ):
            align(run.config, run.folder, stages, redo)
    assert all(run.done(part) for part in PARTS)


def test_a_stage_with_other_settings_stops_the_command_before_it_starts(
    run: Run, tiny_config: Callable[..., Config]
) -> None:
    finish(run, "prepare", "sft", "reward", "evaluate")
    for change, stages in (
        ({"evaluate": {"bootstrap_samples": 300}}, STAGES),
        ({"sft": {"epochs": 3}}, ("sample",)),
    ):
        with pytest.raises((ConfigError, StageError), match="was made with other settings: .*"):
            align(tiny_config(**change), run.folder, stages)
    assert not (run.folder / "sample").exists()


def test_keep_without_publish_is_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match="publish is not among the stages to run"):
        align(run.config, run.folder, ("prepare",), keep=True)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"model": {"template": "vicuna"}},
            "model.template is 'vicuna', which is unknown; did you mean 'vicuna_v1.1'?",
        ),
        (
            {"model": {"template": "???"}},
            "model.template is '\\?\\?\\?', which is unknown; known: vicuna_v1.1, ",
        ),
        (
            {
                "data": {
                    "toyworld": None,
                    "conversations": [{"path": "a", "format": "shargpt"}],
                    **{
                        name: [{"path": "a"}]
                        for name in ("preferences", "prompts", "evaluation_prompts")
                    },
                },
                "evaluate": {"judge": "reward_model"},
            },
            "data.conversations.0.format is 'shargpt', .* mean 'sharegpt'",
        ),
    ],
)
def test_a_name_that_does_not_exist_is_answered_with_the_nearest(
    changed: dict, told: str, tiny_config: Callable[..., Config]
) -> None:
    with pytest.raises(ConfigError, match=told):
        check_names(tiny_config(**changed))


def test_without_redo_nothing_is_removed(run: Run) -> None:
    finish(run, *PARTS)
    forget(run, ())
    assert all(run.done(part) for part in PARTS)


def test_the_summary_has_each_stage_that_is_done(run: Run) -> None:
    finish(run, "prepare", "sft", "rl/apa")
    summarize(run, peak_bytes=100)
    summary = read_json(run.folder / "summary.json")
    assert set(summary) == {"name", "seed", "prepare", "sft", "rl", "seconds", "peak_memory_bytes"}
    assert (summary["name"], summary["seed"]) == (run.config.name, run.config.seed)
    assert summary["sft"] == {"figure": 1} and summary["rl"] == {"apa": {"figure": 5}}
    finish(run, "rl/ppo", "evaluate")
    summarize(run, peak_bytes=100)
    summary = read_json(run.folder / "summary.json")
    assert summary["rl"] == {"ppo": {"figure": 4}, "apa": {"figure": 5}} and summary[
        "evaluate"
    ] == {"figure": 6}
    seconds = summary["seconds"]
    assert set(seconds) == {"prepare", "sft", "rl", "evaluate", "total"}
    assert seconds["prepare"] == pytest.approx(10, abs=1) and seconds["rl"] == pytest.approx(
        50 + 60, abs=2
    )
    assert seconds["total"] == pytest.approx(
        sum(value for name, value in seconds.items() if name != "total"), abs=0.01
    )


def test_the_summary_keeps_the_highest_peak_of_all_commands(run: Run) -> None:
    finish(run, "prepare")
    for peak, kept in ((100, 100), (50, 100), (170, 170), (0, 170)):
        summarize(run, peak)
        assert read_json(run.folder / "summary.json")["peak_memory_bytes"] == kept


def test_the_plan_tells_what_is_done(run: Run) -> None:
    def states() -> dict[str, bool]:
        lines = plan_text(run.config, run.folder, STAGES).split("actors")[0].splitlines()
        return {
            name: " done " in line
            for name in STAGES
            for line in lines
            if line.split()[:1] == [name]
        }

    assert states() == dict.fromkeys(STAGES, False)
    finish(run, "prepare", "rl/ppo")
    assert states() == dict.fromkeys(STAGES, False) | {"prepare": True}, (
        "rl is done when both algorithms are"
    )
    finish(run, "rl/apa")
    assert states() == dict.fromkeys(STAGES, False) | {"prepare": True, "rl": True}


@pytest.mark.parametrize(
    ("changed", "stale"),
    [
        ({"reward": {"epochs": 2}}, {"reward"}),
        ({"rl": {"apa": {"lam": 3.0}}}, {"rl"}),
        ({"seed": 9}, {"prepare", "sft", "reward", "sample", "rl", "evaluate"}),
        ({"cluster": {"call_timeout_s": 9}, "resources": {"policy": {"threads": 2}}}, set()),
    ],
)
def test_the_plan_tells_what_was_done_with_other_settings(
    changed: dict, stale: set[str], run: Run, tiny_config: Callable[..., Config]
) -> None:
    finish(run, *PARTS)
    lines = plan_text(tiny_config(**changed), run.folder, STAGES).split("actors")[0].splitlines()
    assert {line.split()[0] for line in lines if "done with other settings" in line} == stale


def test_every_setting_that_a_stage_depends_on_is_in_its_manifest(run: Run) -> None:
    finish(run, *PARTS)
    assert all(
        run.manifest(part)["settings"].keys() >= decisive(run.config, part).keys() for part in PARTS
    )


def test_the_plan_shows_only_the_stages_asked_for(
    run: Run, tiny_config: Callable[..., Config]
) -> None:
    text = plan_text(tiny_config(resources={"train": {"workers": 3}}), run.folder, ("sft",))
    assert (
        "3 x 0.1 CPU" in text
        and "policy" not in text
        and "batch arithmetic" not in text
        and "publish" not in text
    )
    assert "batch arithmetic" in plan_text(run.config, run.folder, ("rl",))


def test_a_refused_command_leaves_the_run_as_it_was(
    tmp_path: Path, tiny_config: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its config.yaml too: it tells what the stages were made with, and `rayward report` reads
    it.
    """
    config = tiny_config(data={"toyworld": {"demonstrations": 600}})
    align(config, tmp_path, ("prepare",))
    assert load(str(tmp_path / "config.yaml")) == config
    assert read_json(tmp_path / "summary.json")["prepare"]["evaluation_prompts"] == 16
    capsys.readouterr()
    align(config, tmp_path, ("prepare",))
    assert "done before, nothing to do" in capsys.readouterr().out
    # As a command leaves it that is killed right after the stage.
    whole = read_json(tmp_path / "summary.json")
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "summary.json").unlink()
    align(config, tmp_path, ("prepare",))
    assert (tmp_path / "config.yaml").read_text() == dump(config)
    assert whole.keys() == read_json(tmp_path / "summary.json").keys()
    # One where nothing is missing writes nothing.
    other = config.model_copy(update={"rl": config.rl.model_copy(update={"iterations": 77})})
    align(other, tmp_path, ("prepare",))
    with pytest.raises(ConfigError, match="seed was 0, now 9"):
        align(config.model_copy(update={"seed": 9}), tmp_path, ("prepare",))
    assert (tmp_path / "config.yaml").read_text() == dump(config)
