"""Every setting says in one sentence what it does, and something reads it."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from rayward.configs.load import fields
from rayward.configs.schema import Config

ROOT = Path(__file__).parents[2]
LEAVES = fields()


def read_attributes() -> set[str]:
    """Names that the program reads as `.name`, or for its alarms, outside of the schema. Comments
    do not count.
    """
    files = [
        path
        for folder in ("actors", "cluster", "pipelines", "data")
        for path in (ROOT / folder).rglob("*.py")
    ]
    names = set()
    for path in [*files, ROOT / "configs" / "plan.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MEANINGS":
                # Pipelines/rl/alarms.py reads the limits by these names.
                names |= set(ast.literal_eval(node.value))
    return names


READ = read_attributes()


def test_names_are_the_dotted_paths_of_all_leaves() -> None:
    names = [name for name, *_ in LEAVES]
    assert len(names) == len(set(names)) > 100
    assert {"seed", "rl.ppo.clip", "sample.training.optimizer.betas", "data.prompts.path"} <= set(
        names
    )
    assert not {"rl", "rl.ppo", "model.scratch", "data.toyworld", "data.prompts"} & set(names), (
        "sections are no leaves"
    )


@pytest.mark.parametrize("name, sentence", [(name, sentence) for name, sentence, _ in LEAVES])
def test_every_setting_has_one_sentence(name: str, sentence: str) -> None:
    assert sentence.endswith(".") and len(sentence.split()) >= 2, name
    assert "\n" not in sentence and not re.search(r"[.!?] [A-Z]", sentence), (
        f"{name} has more than one sentence"
    )
    assert sentence[0].isupper() or sentence.startswith("vLLM"), name


def test_the_default_shown_is_the_one_that_holds() -> None:
    """`rayward settings` must tell what a config without the setting gets."""
    lists = ("conversations", "preferences", "prompts", "evaluation_prompts")
    sources = (*(f"data.{name}." for name in lists), "scoring.sources.")
    given = {name for name, *_ in LEAVES if name.startswith(sources)}
    bare = Config.model_validate(
        {"model": {"scratch": {}}, "data": {"toyworld": {}}, "dpo": {}, "rl": {"lora": {}}}
    )
    wrong = {}
    for name, _, default in LEAVES:
        if name not in given:
            value: Any = bare
            for key in name.split("."):
                value = getattr(value, key)
            if value != default:
                wrong[name] = f"shown {default}, holds {value}"
    assert not wrong


@pytest.mark.parametrize("name", sorted({name.rsplit(".", 1)[-1] for name, *_ in LEAVES}))
def test_every_setting_is_read(name: str) -> None:
    assert name in READ, (
        f"nothing in actors, cluster, pipelines or data reads .{name}: remove the setting or use it"
    )
