"""rl.extra_prompts: which groups of answers are replaced, by hand; a run whose reward is coarse,
and its replay.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rayward.configs.load import load
from rayward.data import rollout_file
from rayward.pipelines.rl.advantages import equal_groups
from rayward.pipelines.rl.extra_prompts import chosen_groups
from rayward.pipelines.rl.responses import PromptStream
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.run.folder import Run

BUDGET = 3


@pytest.mark.parametrize(
    ("equal", "chosen"),
    [
        ([0, 0, 0, 0], [0, 1, 2, 3]),
        ([0, 1, 0, 1], [0, 1, 2, 3]),
        ([0, 1, 0, 1] + [0], [0, 4, 2, 3]),
        ([0, 1, 0, 1] + [1, 0], [0, 5, 2, 3]),
        ([0, 1, 0, 1] + [1, 0, 1, 0], [0, 5, 2, 7]),
        ([1, 1, 1, 1] + [1, 1], [0, 1, 2, 3]),
        ([1, 0, 0, 0] + [0, 0], [4, 1, 2, 3]),
    ],
)
def test_groups_that_differ_take_the_places_of_those_that_do_not(equal, chosen) -> None:
    found = chosen_groups(np.array(equal, bool), 4)
    assert found.tolist() == chosen
    left = max(0, sum(equal[:4]) - (len(equal) - 4 - sum(equal[4:])))
    assert np.array(equal)[found].sum() == left


def test_a_group_is_equal_where_all_its_rewards_are() -> None:
    rewards = np.array([1.0, 1.0, 1.0, 2.0, 0.5, 0.5, 0.5])
    assert equal_groups(rewards, np.array([0, 0, 1, 1, 5, 5, 5])).tolist() == [True, False, True]


def settings(mode: str) -> tuple[str, ...]:
    source = "{kind: function, target: 'scoring_functions:coarse'}"
    return (
        "rl.algorithms=[grpo]",
        f"rl.mode={mode}",
        f"rl.extra_prompts={BUDGET}",
        "rl.grpo.learning_rate=1e-3",
        "rl.iterations=3",
        f"scoring.sources=[{source}]",
        f"scoring.functions={Path(__file__).parent}",
    )


def trained(
    road: Path, folder: Path, rayward: Callable[..., str], mode: str, *options: str
) -> list[dict]:
    """RL in a folder of its own; its figures without those of time."""
    folder.mkdir()
    for stage in ("prepare", "sft", "reward"):
        (folder / stage).symlink_to(road / stage)
    given = (part for setting in settings(mode) for part in ("--set", setting))
    rayward("rl", folder, *given, *options)
    lines = (folder / "rl" / "grpo" / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name != "time"}
        for line in lines
    ]


def check_prompts(road: Path, folder: Path, mode: str, rows: list[dict]) -> None:
    """Every prompt stands where the stream, with what was drawn before, says."""
    run = Run(folder, load(str(road / "config.yaml"), list(settings(mode))))
    stream = PromptStream(run, Renderer.of_run(run))
    for iteration, row in enumerate(rows):
        batch = [prompt.id for prompt in stream.take(8)[0]]
        further = [prompt.id for prompt in stream.take(int(row["extra_prompts"]))[0]]
        path = folder / "rl" / "grpo" / "rollouts" / f"{iteration:05d}.parquet"
        rollouts, ids = rollout_file.read(path)
        assert rollouts.prompt_index.tolist() == np.repeat(np.arange(8), 4).tolist()
        assert rollouts.weight_version == max(0, iteration - (mode == "one_step_off"))
        used = ids[::4]
        replaced = [place for place in range(8) if used[place] != batch[place]]
        assert [used[place] for place in replaced] == [name for name in further if name in used], (
            "in the order in which they were drawn"
        )
        equal = equal_groups(rollouts.scores, rollouts.prompt_index)
        assert row["equal_groups"] == equal.mean() and not equal[replaced].any()
        assert row["equal_groups_before"] * 8 == equal.sum() + len(replaced)
        if row["extra_prompts"] < BUDGET:
            assert not equal.any(), "with budget left nothing stays"


@pytest.fixture(scope="module")
def made(
    road: Path, tmp_path_factory: pytest.TempPathFactory, rayward: Callable[..., str]
) -> tuple[Path, list[dict]]:
    """A run that draws further prompts, and its figures."""
    folder = tmp_path_factory.mktemp("extra") / "made"
    return folder, trained(road, folder, rayward, "sync")


@pytest.mark.timeout(900)
def test_a_run_replaces_them(road: Path, made: tuple[Path, list[dict]]) -> None:
    folder, rows = made
    assert all(0 <= row["extra_prompts"] <= BUDGET for row in rows)
    assert any(row["equal_groups"] < row["equal_groups_before"] for row in rows)
    check_prompts(road, folder, "sync", rows)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_its_replay_trains_the_same(
    road: Path, made: tuple[Path, list[dict]], tmp_path: Path, rayward: Callable[..., str]
) -> None:
    (folder, rows), again = made, tmp_path / "again"
    rollouts = str(folder / "rl" / "grpo" / "rollouts")
    replayed = trained(road, again, rayward, "sync", "--replay", rollouts)
    drawn = ("extra_prompts", "equal_groups_before", "staleness")
    for row, anew in zip(rows, replayed, strict=True):
        same = {name: row[name] for name in row if name not in drawn and name[:6] != "fixed_"}
        assert same == {name: anew[name] for name in same}
    model = Path("rl") / "grpo" / "model" / "model.safetensors"
    assert (folder / model).read_bytes() == (again / model).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_generating_ahead_replaces_them_by_the_same_weights_and_again_the_same(
    road: Path, tmp_path: Path, rayward: Callable[..., str]
) -> None:
    rows = [trained(road, tmp_path / name, rayward, "one_step_off") for name in ("a", "b")]
    assert rows[0] == rows[1] and sum(row["extra_prompts"] for row in rows[0])
    check_prompts(road, tmp_path / "a", "one_step_off", rows[0])
