"""Online RL through the command line on the real stack: every algorithm, generating ahead, replay,
adapters.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from rayward.data import rollout_file
from rayward.pipelines.run.folder import Run

pytestmark = pytest.mark.timeout(900)
AHEAD = ("rloo",)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_time(path: Path) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "time"} for row in rows_of(path)]


def from_road(road: Path, folder: Path) -> Path:
    """A run folder whose stages before RL are those of the road."""
    folder.mkdir(exist_ok=True)
    for stage in ("prepare", "sft", "reward"):
        (folder / stage).symlink_to(road / stage)
    return folder


@pytest.fixture(scope="module")
def ahead(
    road: Path, tmp_path_factory: pytest.TempPathFactory, rayward: Callable[..., str]
) -> Path:
    """An algorithm without a critic, one step off, on two engines and two policy ranks."""
    folder = from_road(road, tmp_path_factory.mktemp("ahead"))
    settings = (
        "rl.algorithms=[rloo]",
        "rl.mode=one_step_off",
        "resources.rollout.workers=2",
        "resources.policy.workers=2",
        "rl.rloo.kl_target=0.01",
        "rl.rloo.learning_rate=1e-3",
        "rl.rloo.dual_clip=3",
        "rl.rloo.kl_loss=0.01",
        "rl.iterations=3",
    )
    rayward("rl", folder, *(part for setting in settings for part in ("--set", setting)))
    return folder


def test_algorithms_train_with_what_they_need(ahead: Path) -> None:
    for name in AHEAD:
        rows = rows_of(ahead / "rl" / name / "metrics.jsonl")
        assert len(rows) == 3 and all(math.isfinite(row["policy/loss"]) for row in rows)
        assert "explained_variance" not in rows[0] and "critic/loss" not in rows[0]
        assert rows[1]["policy/grad_norm"] > 0 and rows[2]["kl_k3"] > 0
        start, end = (
            ahead / part / "model" / "model.safetensors" for part in ("sft", f"rl/{name}")
        )
        assert start.read_bytes() != end.read_bytes()
    rloo = rows_of(ahead / "rl" / "rloo" / "metrics.jsonl")
    falls = 1 - 0.2 * 32 / 10000
    assert rloo[0]["kl_coef"] == 0.05 and rloo[1]["kl_coef"] == pytest.approx(0.05 * falls), (
        "no KL yet: it falls"
    )
    assert "policy/kl_loss" in rloo[0]


def test_one_step_off_is_one_version_late_and_no_more(ahead: Path) -> None:
    for name in AHEAD:
        rows = rows_of(ahead / "rl" / name / "metrics.jsonl")
        assert [row["staleness"] for row in rows] == [0, 1, 1]
        assert rows[0]["mismatch_max"] < 1e-4 < rows[1]["mismatch_max"], (
            "old weights sampled the second batch"
        )
        assert rows[1]["fixed_mismatch_max"] < 1e-4, (
            "and the weights that just came are the trainer's"
        )
        assert rows[0]["mismatch_factor"] < 1.0001 < rows[1]["mismatch_factor"]
        versions = [
            rollout_file.read(path)[0].weight_version
            for path in sorted((ahead / "rl" / name / "rollouts").iterdir())
        ]
        assert versions == [0, 0, 1]


def test_an_iteration_s_time_is_accounted_for(ahead: Path) -> None:
    for name in AHEAD:
        folder = ahead / "rl" / name
        for row, line in zip(
            rows_of(folder / "metrics.jsonl"), rows_of(folder / "spans.jsonl"), strict=True
        ):
            time = row["time"]
            assert {
                "generate_s",
                "reward_s",
                "reference_s",
                "logprobs_s",
                "policy_update_s",
            } <= time.keys()
            assert time["samples_per_s"] == pytest.approx(32 / time["iteration_s"], rel=0.01)
            assert time["peak_share"] > 0
            assert 0 <= time["overhead_share"] <= 1 and time["outside_s"] <= time["iteration_s"]
            roles = {span["role"] for span in line["spans"]}
            assert {"driver", "rollout", "policy", "reference", "reward"} <= roles
            assert "critic" not in roles
            assert {span["rank"] for span in line["spans"] if span["role"] == "policy"} == {0, 1}
            assert all(span["start"] <= span["end"] for span in line["spans"])
        assert json.loads((folder / "trace.json").read_text())["traceEvents"]


def test_replayed_rollouts_train_the_same_model(
    road: Path, tmp_path: Path, rayward: Callable[..., str]
) -> None:
    folder, made = from_road(road, tmp_path), road / "rl" / "ppo"
    columns = set(pq.read_table(made / "rollouts" / "00001.parquet").column_names)
    assert {
        "prompt_id",
        "response",
        "score",
        "rollout_logprobs",
        "policy_logprobs",
        "values",
        "advantages",
    } <= columns
    rayward("rl", folder, "--set", "rl.algorithms=[ppo]", "--replay", str(made / "rollouts"))
    rows = [without_time(path / "metrics.jsonl") for path in (folder / "rl" / "ppo", made)]
    assert [[row.pop("staleness") for row in of] for of in rows] == [[None, None], [0, 0]]
    checked = [
        [{name: row[name] for name in row if name[:6] != "fixed_"} for row in of] for of in rows
    ]
    assert checked[0] == checked[1] and rows[0][1]["fixed_mismatch_max"] < 1e-4, (
        "a replay asks the fixed prompts"
    )
    model = "model/model.safetensors"
    assert (folder / "rl" / "ppo" / model).read_bytes() == (made / model).read_bytes()


@pytest.mark.parametrize(
    "names",
    [("gspo",), pytest.param(("cispo", "dr_grpo"), marks=pytest.mark.slow)],
    ids=",".join,
)
def test_algorithms_that_compare_answers_train(
    road: Path, tmp_path: Path, rayward: Callable[..., str], names: tuple[str, ...]
) -> None:
    folder = from_road(road, tmp_path)
    rates = (f"rl.{name}.learning_rate=1e-3" for name in names)
    settings = (f"rl.algorithms=[{','.join(names)}]", "rl.iterations=1", *rates)
    rayward("rl", folder, *(part for setting in settings for part in ("--set", setting)))
    for name in names:
        (row,) = rows_of(folder / "rl" / name / "metrics.jsonl")
        assert 0 <= row["equal_groups"] < 1 and row["policy/grad_norm"] > 0
        assert row["policy/ratio_max"] > 1 and 0 <= row["policy/clipfrac"] <= 1
        assert math.isfinite(row["policy/loss"]) and row["mismatch_max"] < 1e-4
        assert not {"explained_variance", "critic/loss", "policy/kl_loss"} & row.keys()
        start, end = (
            folder / part / "model" / "model.safetensors" for part in ("sft", f"rl/{name}")
        )
        assert start.read_bytes() != end.read_bytes()


@pytest.mark.slow
def test_adapters_train_and_are_merged(
    road: Path, tmp_path: Path, rayward: Callable[..., str]
) -> None:
    """The engine's log-probs are the old ones here, so the first step's gap is that of the merged
    weights.
    """
    from safetensors.torch import load_file

    folder = from_road(road, tmp_path)
    settings = (
        "rl.lora={rank: 4}",
        "rl.old_logprobs=rollout",
        "rl.algorithms=[ppo]",
        "rl.ppo.learning_rate=1e-2",
    )
    rayward("rl", folder, *(part for setting in settings for part in ("--set", setting)))
    rows = rows_of(folder / "rl" / "ppo" / "metrics.jsonl")
    assert abs(rows[0]["kl"]) < 1e-4 < abs(rows[1]["kl"]), "without adapters it is the reference"
    assert all(row["mismatch_max"] < 1e-4 for row in rows)
    assert "reference_s" in rows[0]["time"] and "logprobs_s" not in rows[0]["time"]
    start, end = (
        load_file(path / "model" / "model.safetensors")
        for path in (folder / "sft", folder / "rl" / "ppo")
    )
    assert start.keys() == end.keys()
    moved = {name for name in start if not start[name].equal(end[name])}
    assert moved and all("_proj." in name for name in moved), "embeddings and norms stay"


@pytest.mark.slow
def test_rollouts_without_training_can_be_trained_on(
    road: Path, tmp_path: Path, rayward: Callable[..., str]
) -> None:
    folder, made = from_road(road, tmp_path), tmp_path / "drawn"
    rayward("rl", folder, "--rollout-only", str(made))
    assert len(list(made.glob("*.parquet"))) == 2
    settings = ("--set", "rl.algorithms=[awr]", "--set", "rl.awr.learning_rate=1e-3")
    rayward("rl", folder, *settings, "--replay", str(made))
    rows = rows_of(folder / "rl" / "awr" / "metrics.jsonl")
    assert "explained_variance" in rows[0] and "critic/loss" in rows[0]
    assert rows[0]["mismatch_max"] < 1e-4 < rows[1]["mismatch_max"], (
        "the first model's answers, trained on twice"
    )
    assert abs(rows[0]["kl"]) < 1e-4 < abs(rows[1]["kl"]), (
        "of the policy that is trained, not of the one that sampled"
    )


def test_a_replay_is_refused_before_anything_is_lost(road: Path, tmp_path: Path) -> None:
    from rayward.configs.load import ConfigError, load
    from rayward.pipelines.align import align
    from rayward.pipelines.rl.advantages import RewardShaper
    from rayward.pipelines.rl.responses import Replay
    from rayward.pipelines.run.errors import StageError

    config = load(str(road / "config.yaml"), ["rl.algorithms=[ppo]"])
    folder = from_road(road, tmp_path / "run")
    own = folder / "rl" / "ppo" / "rollouts"
    shutil.copytree(road / "rl" / "ppo" / "rollouts", own)
    with pytest.raises(ConfigError, match="lies in rl/ppo, which this command makes anew"):
        align(config, folder, ["rl"], replay=own)
    assert len(list(own.iterdir())) == 2
    with pytest.raises(ConfigError, match="holds the rollouts of 0 iterations, rl.iterations is 2"):
        align(config, folder, ["rl"], replay=tmp_path)
    other = load(str(road / "config.yaml"), ["rl.prompts_per_iteration=4", "rl.samples_per_step=8"])
    actors = SimpleNamespace(config=other, run=Run(road, other))
    with pytest.raises(
        StageError, match=r"00000.parquet holds answers to 8 prompts.*prompts_per_iteration is 4"
    ):
        Replay(road / "rl" / "ppo" / "rollouts", actors).finish(0, RewardShaper.of(other, "ppo"))
