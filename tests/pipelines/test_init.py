"""`rayward init`: a config for each part, with the sections that it needs, that loads as it is."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayward.configs.load import load
from rayward.configs.plan import roles
from rayward.configs.schema import STAGE_SECTIONS
from rayward.configs.stages import has
from rayward.data.templates.tokenizer import load_tokenizer
from rayward.pipelines.model_tools import init as starter
from rayward.pipelines.model_tools.init import LISTS, PARTS, init
from tests.pipelines import commands

STAGES = {
    "sft": {"sft"},
    "rm": {"reward"},
    "dpo": {"dpo"},
    "rl": {"rl"},
    "road": {"sft", "reward", "sample", "rl", "evaluate", "publish"},
}


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return commands.rayward(*arguments, cwd=cwd)


def test_what_it_prints_is_what_can_be_run(tiny_models: Any, tmp_path: Path) -> None:
    done = command("init", "mine", "--from", "rl", "--model", tiny_models.policy, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = next(
        line for line in done.stdout.splitlines() if line.startswith("what it will do:")
    ).split()[-3:]
    told = command(*plan, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert (
        f"from {tiny_models.policy}: rloo: 4 iterations, sync; reward: function rewards:reward"
        in told.stdout
    )
    again = command("init", "mine", "--from", "rl", "--model", tiny_models.policy, cwd=tmp_path)
    assert again.returncode == 2 and "mine is there already; choose another name" in again.stderr


@pytest.mark.parametrize("gpus", [0, 1, 2, 3, 4, 8])
@pytest.mark.parametrize("part", PARTS)
def test_every_part_loads_as_it_is(
    part: str, gpus: int, tiny_models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starter, "_gpus", lambda: gpus)
    path = init(tmp_path / "mine", part, tiny_models.policy)
    config = load(str(path))
    assert {stage for stage in STAGE_SECTIONS if has(config, stage)} == STAGES[part]
    assert config.model.context_tokens <= 448, "the model holds no more"
    files = {file.stem: file.read_text().splitlines() for file in (path.parent / "rows").iterdir()}
    assert set(files) == set(LISTS[part])
    assert all(json.loads(line) for lines in files.values() for line in lines)
    for stage in STAGES[part]:
        at_once = {
            name: role
            for name, role in roles(config, stage).items()
            if stage != "sample" or name != "train"
        }
        asked = {name: role.workers * role.gpus for name, role in at_once.items()}
        waits = (
            config.resources.policy.gpus
            if config.rl.mode == "colocate" and stage in ("sample", "evaluate")
            else 0
        )
        assert sum(asked.values()) + waits <= gpus, (
            f"{stage}: {asked}, and what an engine's slot keeps for the policy"
        )
    text = path.read_text()
    assert yaml.safe_load(text)["name"] == "mine" and text.count("#") > 10
    assert ("\nscoring:" in text) == (part == "rl"), "no section that nothing reads"


def test_a_model_that_is_none(tiny_models: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no model \(no config.json\)"):
        init(tmp_path / "mine", "sft", str(tmp_path / "empty"))
    assert not (tmp_path / "mine").exists()


def test_a_model_without_a_chat_template_gets_one_that_its_tokens_know(
    tiny_models: Any, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(tiny_models.policy, tmp_path / "base")
    tokenizer = load_tokenizer(tmp_path / "base")
    tokenizer.chat_template = None
    for file in (tmp_path / "base").glob("chat_template*"):
        file.unlink()
    tokenizer.save_pretrained(tmp_path / "base")
    assert load(
        str(init(tmp_path / "mine", "sft", str(tmp_path / "base")))
    ).model.template.startswith("openchat")
