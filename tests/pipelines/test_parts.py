"""Any part of the road by itself, on the real stack: given models, given rewards, one stage or
some.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayward.configs.load import load
from rayward.configs.schema import STAGE_SECTIONS, Config
from rayward.configs.stages import STAGES
from rayward.data.record_json import to_json
from rayward.data.templates.jinja import jinja
from rayward.data.templates.template import TEMPLATES
from rayward.data.templates.tokenizer import load_tokenizer, train_tokenizer
from rayward.data.toy.toyworld import demonstrations, prompts, rankings
from rayward.pipelines.align import align
from rayward.pipelines.model_tools.init import init
from rayward.pipelines.report.report import write_report
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.files import read_json, read_jsonl, write_jsonl
from rayward.pipelines.run.folder import Run
from tests.conftest import OPTIMIZER, SHAPE, SMALL, TinyModels

HERE = str(Path(__file__).parent)
RULE = {"sources": [{"kind": "function", "target": "scoring_functions:length"}], "functions": HERE}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of conversations, rankings and prompts."""
    folder = tmp_path_factory.mktemp("rows")
    made = {
        "conversations": demonstrations(64, 1),
        "preferences": rankings(48, 3, 0.0, 1)[0],
        "prompts": prompts(24, 1, "train"),
        "evaluation_prompts": prompts(48, 1, "evaluation"),
    }
    for name, records in made.items():
        write_jsonl(folder / f"{name}.jsonl", [to_json(record) for record in records])
    return folder


@pytest.fixture
def part(
    rows: Path, tiny_models: TinyModels, local_ray: None, tmp_path: Path
) -> Callable[..., Any]:
    """`part("prompts", rl={...})`: a run of these stages only from the tiny chat model; its folder
    and summary.
    """

    def run(lists: str, **sections: Any) -> tuple[Path, dict[str, Any]]:
        data = {"root": str(rows), "heldout_fraction": 0.3, "sft_heldout_fraction": 0.2}
        data |= {name: [{"path": f"{name}.jsonl"}] for name in lists.split()}
        values = {
            name: SMALL[name] for name in ("cluster", "resources", "rollout")
        } | dict.fromkeys(STAGE_SECTIONS)
        model = {
            "path": tiny_models.policy,
            "template": "tokenizer",
            "context_tokens": 128,
            "dtype": "float32",
        }
        config = Config.model_validate(values | {"model": model, "data": data} | sections)
        align(config, tmp_path / "run", STAGES)
        return tmp_path / "run", read_json(tmp_path / "run" / "summary.json")

    return run


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reward model with a tokenizer and a chat template of its own."""
    from rayward.actors.models.load import build_from_scratch, load_scalar, save_model
    from rayward.configs.sections.model import Scratch

    texts = [turn.content for row in demonstrations(100, seed=9) for turn in row.turns]
    template = TEMPLATES["chatml"]
    tokenizer = train_tokenizer(texts, 340, template.special_tokens, 256)
    tokenizer.chat_template = jinja(template, tokenizer)
    folder = tmp_path_factory.mktemp("stranger")
    lm = build_from_scratch(Scratch(**{**SHAPE, "vocab_size": 340}), tokenizer, 256, seed=3)
    save_model(lm, lm.state_dict(), tokenizer, folder / "lm")
    scalar = load_scalar(str(folder / "lm"), "float32", seed=4).classifier
    save_model(scalar, scalar.state_dict(), tokenizer, folder / "reward")
    return str(folder / "reward")


def figures(run: Path, name: str) -> list[dict[str, Any]]:
    return list(read_jsonl(run / name / "metrics.jsonl"))


@pytest.fixture
def started(tiny_models: TinyModels, local_ray: None, tmp_path: Path) -> Callable[..., Any]:
    """`started("sft", "sft.epochs=1")`: a run of the config that `rayward init` writes; its folder
    and summary.
    """

    def run(name: str, *overrides: str, model: str = "") -> tuple[Path, dict[str, Any]]:
        path = init(tmp_path / "mine", name, model or tiny_models.policy)
        align(load(str(path), [*overrides, "model.context_tokens=128"]), tmp_path / "run", STAGES)
        return tmp_path / "run", read_json(tmp_path / "run" / "summary.json")

    return run


def test_sft_alone_keeps_the_best_state(started: Callable[..., Any]) -> None:
    worse = ["sft.optimizer.learning_rate=3", "sft.optimizer.schedule=constant"]  # far too high
    run, summary = started("sft", *worse)
    assert {path.name for path in run.iterdir() if path.is_dir()} == {"prepare", "sft"}
    looked = {
        row["step"]: row["heldout_loss"] for row in figures(run, "sft") if "heldout_loss" in row
    }
    steps = summary["sft"]["optimizer_steps"]
    assert list(looked) == [step for step in range(1, steps + 1) if step % 2 == 0 or step == steps]
    best = min(looked, key=lambda step: looked[step])
    assert (summary["sft"]["kept_step"], summary["sft"]["heldout_loss"]) == (best, looked[best])
    assert looked[best] < looked[max(looked)], "what is kept is not the last"


@pytest.mark.slow
def test_a_reward_model_alone(started: Callable[..., Any]) -> None:
    run, summary = started("rm", "reward.optimizer.learning_rate=0.001")
    looked = {
        row["step"]: row["heldout_accuracy"]
        for row in figures(run, "reward")
        if "heldout_accuracy" in row
    }
    best = max(looked, key=lambda step: looked[step])
    assert len(looked) > 1 and summary["reward"]["kept_step"] == best
    assert summary["reward"]["pair_accuracy"] == pytest.approx(looked[best])
    assert "judge" not in summary["reward"] and not (run / "sft").exists()
    page = write_report(Run(run, load(str(run / "config.yaml")))).read_text()
    assert "loss and held-out figures of reward" in page


def test_dpo_alone_from_a_model_by_its_hub_name(
    started: Callable[..., Any],
    tiny_models: TinyModels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    commit = "c" * 40
    shutil.copytree(
        tiny_models.policy, tmp_path / "hub" / "models--org--tiny" / "snapshots" / commit
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    run, summary = started("dpo", model=f"org/tiny@{commit}")
    assert summary["dpo"]["optimizer_steps"] > 1 and summary["dpo"]["heldout_rankings"] > 1
    assert read_json(run / "models.json") == {f"org/tiny@{commit}": commit}


@pytest.mark.slow
def test_rloo_with_a_function_as_its_whole_reward(started: Callable[..., Any]) -> None:
    run, summary = started("rl", "rl.iterations=2")
    rows = list(read_jsonl(run / "rl" / "rloo" / "transcripts" / "00000.jsonl"))
    assert summary["rl"]["rloo"]["iterations"] == 2 and len(rows) == 32
    assert (
        not (run / "reward").exists() and len(list((run / "rl" / "rloo" / "fixed").iterdir())) == 2
    )
    for row in rows:
        assert row["score"] == pytest.approx(float(row["finished"]) - len(row["answer"]) / 1000)


def test_sampling_with_a_reward_model_of_another_family(
    part: Callable[..., Any], stranger: str
) -> None:
    """The scores are those of the folder's own template, whatever the policy's tokens are."""
    from rayward.actors.models.load import load_scalar
    from rayward.data.records import Turn
    from rayward.data.templates.scored import scored
    from rayward.data.templates.template import find

    training = {"epochs": 1, "samples_per_step": 4, "optimizer": OPTIMIZER}
    run, summary = part(
        "prompts",
        sample={"prompts": 8, "samples_per_prompt": 3, "training": training},
        scoring={"sources": [{"paths": [stranger]}]},
    )
    assert (
        summary["sample"]["heldout_conversations"] == 0 and "heldout_loss" not in summary["sample"]
    )
    import torch

    module, tokenizer = load_scalar(stranger, "float32").eval(), load_tokenizer(stranger)
    for row in list(read_jsonl(run / "sample" / "samples.jsonl"))[:3]:
        for answer, ended, said in zip(row["answers"], row["ended"], row["scores"], strict=True):
            turns = (Turn("user", row["prompt"][0]), Turn("assistant", answer))
            ids = torch.tensor([scored(find("tokenizer"), turns, tokenizer, ended).ids])
            chosen = torch.zeros_like(ids, dtype=torch.bool)
            chosen[0, -1] = True
            with torch.no_grad():
                assert float(module(ids, chosen)) == pytest.approx(said, abs=2e-5)


RL = {name: SMALL["rl"][name] for name in SMALL["rl"]}


@pytest.mark.slow
def test_ppo_and_apa_with_given_reward_models(
    part: Callable[..., Any], tiny_models: TinyModels, stranger: str
) -> None:
    given = {"sources": [{"paths": [tiny_models.reward]}]}
    run, summary = part(
        "prompts", rl=RL | {"iterations": 1, "monitor": {"second": stranger}}, scoring=given
    )
    assert set(summary["rl"]) == {"ppo", "apa"}
    first = figures(run, "rl/ppo")[0]
    assert "monitor/second_score" in first and first["critic/loss"] > 0


def test_a_critic_of_another_family_is_refused_before_anything_trains(
    part: Callable[..., Any], stranger: str
) -> None:
    with pytest.raises(
        StageError, match=r"where the critic starts\) has another tokenizer .* rl\.critic: policy"
    ):
        part("prompts", rl=RL, scoring={"sources": [{"paths": [stranger]}]})


@pytest.mark.slow
def test_ppo_with_a_critic_from_the_policy(part: Callable[..., Any], stranger: str) -> None:
    rl = RL | {"algorithms": ["ppo"], "critic": "policy", "iterations": 1}
    run, summary = part("prompts", rl=rl, scoring={"sources": [{"paths": [stranger]}]})
    assert summary["rl"]["ppo"]["iterations"] == 1 and figures(run, "rl/ppo")[0]["critic/loss"] > 0


def test_given_folders_are_judged(
    part: Callable[..., Any], tiny_models: TinyModels, stranger: str
) -> None:
    evaluate = {
        "judge": stranger,
        "models": {"again": tiny_models.policy},
        "prompts": 16,
        "bootstrap_samples": 200,
    }
    _, summary = part("evaluation_prompts", evaluate=evaluate, scoring=RULE)
    found = summary["evaluate"]
    assert found["against"] == "start" and set(found["models"]) == {"start", "again"}
    assert found["models"]["again"]["kl"] == pytest.approx(0, abs=1e-4), "the same model"


@pytest.mark.slow
def test_a_given_folder_is_served(part: Callable[..., Any]) -> None:
    run, summary = part("", publish={"port": 0})
    assert summary["publish"]["model"] == "start" and summary["publish"]["answer"]
    assert (run / "publish" / "model" / "model.safetensors").is_symlink()
