"""What is refused before anything is removed or started, by a command and by its dry run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.exceptions import ActorDiedError, NodeDiedError, RayActorError

from rayward.configs.load import ConfigError, load
from rayward.configs.schema import STAGE_SECTIONS, Config
from rayward.pipelines.align import align, plan_text
from rayward.pipelines.parts import to_make
from rayward.pipelines.preflight import check_models, preflight
from rayward.pipelines.run.errors import StageError, explain
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.stage import begin
from tests.conftest import TinyModels

ROOT = Path(__file__).parents[2]
ROWS = {"conversations": "chat.jsonl", "preferences": "pairs.jsonl", "prompts": "prompts.jsonl"}


@pytest.fixture
def config(tmp_path: Path, tiny_models: TinyModels) -> Any:
    """Of the stages that are given only, on files that are there."""
    for name in ROWS.values():
        (tmp_path / name).write_text("{}\n")

    def made(lists: str, *overrides: str, **sections: Any) -> Config:
        values: dict[str, Any] = {
            "model": {"path": tiny_models.policy, "template": "tokenizer", "context_tokens": 128},
            "data": {"root": str(tmp_path)}
            | {name: [{"path": ROWS[name]}] for name in lists.split()},
            "rollout": {"max_new_tokens": 16},
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values | dict.fromkeys(STAGE_SECTIONS) | sections))
        return load(str(path), overrides)

    return made


def finish(run: Run, *parts: str) -> None:
    from rayward.configs.plan import inputs

    for part in parts:
        stage = begin(run, part, inputs(run.config, part))
        assert stage is not None
        stage.finish({})


def faults(run: Run, *stages: str, redo: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as raised:
        check_models(run, preflight(run, stages, redo))
    return str(raised.value)


def test_nothing_is_removed_where_a_model_is_missing(
    config: Any, tmp_path: Path, tiny_models: TinyModels
) -> None:
    own = shutil.copytree(tiny_models.policy, tmp_path / "own")
    evaluated = {"judge": tiny_models.reward, "models": {"own": str(own)}, "prompts": 16}
    (tmp_path / "prompts.jsonl").rename(tmp_path / "chat2.jsonl")
    made = config("conversations", sft={})
    run = Run(tmp_path / "run", made)
    finish(run, "prepare", "sft")
    shutil.rmtree(own)
    values = yaml.safe_load((tmp_path / "config.yaml").read_text()) | {"evaluate": evaluated}
    values["data"]["evaluation_prompts"] = [{"path": "chat2.jsonl"}]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=r"evaluate\.models\.own .*own: .* holds no model"):
        align(
            load(str(tmp_path / "config.yaml")),
            run.folder,
            ("prepare", "sft", "evaluate"),
            redo=("prepare",),
        )
    assert run.done("sft") and run.done("prepare"), "it stands before it is removed"


def test_a_changed_function_is_another_reward(config: Any, tmp_path: Path) -> None:
    (tmp_path / "lengths.py").write_text(
        "def reward(completions, **_):\n    return [float(len(completions))]\n"
    )
    scoring = {
        "sources": [{"kind": "function", "target": "lengths:reward"}],
        "functions": str(tmp_path),
    }
    run = Run(tmp_path / "run", config("prompts", rl={"algorithms": ["rloo"]}, scoring=scoring))
    finish(run, "prepare", "rl/rloo")
    assert begin(run, "rl/rloo", ("prepare",)) is None and to_make(run, ("rl",)) == set()
    with (tmp_path / "lengths.py").open("a") as file:
        file.write("# another\n")
    told = faults(run, "prepare", "rl")
    assert "rl/rloo was made with other settings: function lengths:reward has changed since" in told
    manifest = json.loads((run.folder / "rl/rloo/manifest.json").read_text())
    del manifest["given"]
    (run.folder / "rl/rloo/manifest.json").write_text(json.dumps(manifest))
    assert begin(run, "rl/rloo", ("prepare",)) is None, (
        "runs of versions that kept no digest are as they were"
    )


def test_a_part_made_of_other_parts_is_told_at_once(config: Any, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", config("conversations preferences", sft={}, dpo={}))
    finish(run, "prepare", "sft", "dpo")
    without = Run(run.folder, config("conversations preferences", dpo={}))
    assert "dpo was made of other parts of the run: sft is none of them now" in faults(
        without, "prepare", "dpo"
    )


def test_a_plan_knows_what_redo_makes_again(config: Any, tmp_path: Path) -> None:
    made = config("conversations preferences", sft={}, dpo={})
    run = Run(tmp_path / "run", made)
    finish(run, "prepare", "sft", "dpo")
    lines = plan_text(made, run.folder, ("prepare", "sft", "dpo"), ("sft",)).splitlines()
    states = {line.split()[0]: line.split()[1] for line in reversed(lines) if line.startswith("  ")}
    assert (states["prepare"], states["sft"], states["dpo"]) == ("done", "again", "again")


def broken(kind: str, folder: Path, models: TinyModels) -> Path:
    source = models.reward if kind in ("reward", "labels") else models.policy
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    if kind == "weights":
        (folder / "model.safetensors").unlink()
    elif kind == "tokenizer":
        for path in folder.glob("tokenizer*"):
            path.unlink()
    elif kind == "shards":
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    elif kind == "index":
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").touch()
    elif kind == "encoder":
        config = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
    elif kind == "adapter":
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text("{}")
    elif kind == "short":
        config["max_position_embeddings"] = 64
    elif kind == "code":
        config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    elif kind == "words":
        (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    elif kind == "labels":
        config |= {"id2label": {str(index): str(index) for index in range(5)}}
    (folder / "config.json").write_text("{" if kind == "json" else json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "kind, told",
    [
        ("weights", r"holds no weights \(no \.safetensors or \.bin file\)"),
        ("tokenizer", "holds no tokenizer"),
        (
            "shards",
            r"lacks 1 of 2 files of weights that model\.safetensors\.index\.json names, first "
            r"model-00002",
        ),
        (
            "index",
            r"cannot be loaded as a model: .*model\.safetensors\.index\.json is no JSON: "
            r"Expecting value",
        ),
        ("encoder", "is a BertForMaskedLM, and a causal language model is needed"),
        ("adapter", r"holds an adapter \(adapter_config\.json\), which has to be merged"),
        ("json", r"config\.json cannot be read"),
        (
            "words",
            "model.template tokenizer: the tokenizer's chat template cannot be trained from: the "
            "chat template leav",
        ),
        (
            "short",
            r"reads 64 tokens at most, and model\.context_tokens is 128: lower it, or "
            r"rayward extend",
        ),
        ("code", r"brings code of its own, which runs only with model\.trust_remote_code: true"),
        ("reward", "is a LlamaForSequenceClassification, and a causal language model is needed"),
    ],
)
def test_a_folder_that_cannot_work_is_refused_with_its_setting(
    kind: str,
    told: str,
    config: Any,
    tmp_path: Path,
    tiny_models: TinyModels,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import re

    folder = broken(kind, tmp_path / "broken", tiny_models)
    run = Run(tmp_path / "run", config("conversations", f"model.path={folder}", sft={}))
    found = faults(run, "prepare", "sft")
    assert found.startswith("model.path") and re.search(told, found), found
    assert "Loading weights" not in capfd.readouterr().err


def test_all_models_that_are_wrong_are_told_at_once(
    config: Any, tmp_path: Path, tiny_models: TinyModels
) -> None:
    labels = broken("labels", tmp_path / "labels", tiny_models)
    scoring = {"sources": [{"paths": [str(labels)]}]}
    rl = {"critic": "polcy", "monitor": {"second": "gpt2"}}
    made = config("prompts", "model.path=/nope/model", rl=rl, scoring=scoring)
    told = faults(Run(tmp_path / "run", made), "prepare", "rl").splitlines()
    assert len(told) == 4, told
    assert (
        told[0].startswith("model.path /nope/model: /nope/model holds no model")
        and "ORG/NAME@REVISION" in told[0]
    )
    assert told[1].endswith("labels has a head of 5 labels, and a reward model has 1")
    assert told[2].startswith("rl.critic polcy: ") and told[2].endswith("did you mean 'policy'?")
    assert told[3].startswith("rl.monitor.second gpt2: ") and "hub name ORG/NAME" in told[3]


def test_a_judge_behind_http_is_told_its_place(
    config: Any, tmp_path: Path, tiny_models: TinyModels
) -> None:
    evaluate = {
        "judge": "gpt-4@http://host/v1",
        "models": {"own": tiny_models.policy},
        "prompts": 16,
    }
    (tmp_path / "held.jsonl").write_text("{}\n")
    made = config("", "data.evaluation_prompts=[{path: held.jsonl}]", evaluate=evaluate)
    assert (
        "evaluate.judge: scoring, and in scoring.sources {kind: judge, target: NAME@http"
        in faults(Run(tmp_path / "run", made), "prepare", "evaluate")
    )


def test_files_that_are_not_there_are_told_together(config: Any, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", config("conversations preferences", sft={}, dpo={}))
    for name in ("chat.jsonl", "pairs.jsonl"):
        (tmp_path / name).unlink()
    told = faults(run, "prepare", "sft", "dpo").splitlines()
    assert [line.split(":")[0] for line in told[:2]] == [
        "data.conversations.0.path",
        "data.preferences.0.path",
    ]
    assert told[2] == f"data.root is {tmp_path}"


def test_an_error_is_told_with_the_stage_and_the_setting() -> None:
    try:
        try:
            raise FileNotFoundError("x.jsonl: no such file or folder")
        except FileNotFoundError as error:
            raise StageError(f"data.conversations: {error}") from error
    except StageError as error:
        assert explain(error) == "data.conversations: x.jsonl: no such file or folder"
    try:
        try:
            raise KeyError("added_tokens")
        except KeyError as error:
            raise ValueError("folder: the tokenizer cannot be read") from error
    except ValueError as error:
        assert explain(error) == "folder: the tokenizer cannot be read"


def test_a_host_that_is_gone_is_told_of_what_comes_of_it_and_beside_all_else() -> None:
    waits: list[float] = []

    def missing(wait_s: float) -> list[str]:
        waits.append(wait_s)
        return ["10.0.0.2"]

    reset = RuntimeError("[/pytorch/third_party/gloo/pair.cc:534] Connection closed by peer")
    for error in (RayActorError(), ActorDiedError(), NodeDiedError("x"), reset):
        assert explain(error, missing).startswith("host 10.0.0.2 is gone: ")
    # Only these wait for Ray to notice.
    assert all(waits) and waits
    waits.clear()
    told = explain(RuntimeError("CUDA out of memory"), missing).splitlines()
    assert told[0] == "RuntimeError: CUDA out of memory" and "10.0.0.2 is gone" in told[-1]
    assert told[1].startswith("less memory on a GPU: the stage's optimizer.micro_batch_tokens")
    assert explain(FileNotFoundError("no x.jsonl"), missing).startswith("no x.jsonl\nhost 10.0.0.2")
    assert explain(TimeoutError("policy 1 is late"), missing).startswith("policy 1 is late\nhost")
    assert not any(waits) and len(waits) == 3
    # What is ours says enough.
    assert explain(StageError("no model"), missing) == "no model" and len(waits) == 3


def test_an_error_is_told_also_where_ray_no_longer_answers() -> None:
    def missing(wait_s: float) -> list[str]:
        raise ConnectionError("no head")

    assert explain(RuntimeError("a worker"), missing).startswith("RuntimeError: a worker\n")
    # And where there is no Ray, or one host.
    assert explain(RayActorError(error_msg="it died")).startswith("RayActorError: it died\n")


def test_a_dry_run_fails_where_the_run_would(config: Any, tmp_path: Path) -> None:
    config("conversations", "model.path=/nope/model", sft={})
    command = [
        sys.executable,
        "-m",
        "rayward.pipelines.cli",
        "align",
        str(tmp_path / "config.yaml"),
        "--dry-run",
    ]
    command += ["--run", str(tmp_path / "run"), "--set", "model.path=/nope/model"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "sft       to do  from /nope/model" in done.stdout
    assert done.stderr.startswith(
        "rayward: model.path /nope/model: /nope/model holds no model (no config.json); "
    )
    kept = subprocess.run(
        [*command, "--redo", "stf"], env=environment, capture_output=True, text=True, check=False
    )
    assert kept.returncode == 2 and "unknown stage 'stf'" in kept.stderr
