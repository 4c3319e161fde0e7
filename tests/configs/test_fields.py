"""Every setting says in one sentence what it does, and something reads it."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from rayward.configs.reference import groups
from rayward.configs.schema import Config

ROOT = Path(__file__).parents[2]
SETTINGS = [setting for group in groups() for setting in group.settings]


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
            elif (
                path == ROOT / "pipelines" / "rl" / "alarms.py"
                and isinstance(node, ast.Assign)
                and ast.unparse(node.targets[0]) == "MEANINGS"
            ):
                # It reads the limits by these names.
                names |= set(ast.literal_eval(node.value))
    return names


READ = read_attributes()


def test_names_are_the_dotted_paths_of_all_leaves() -> None:
    names = [setting.name for setting in SETTINGS]
    assert len(names) == len(set(names)) > 100
    assert {"seed", "rl.ppo.clip", "sample.training.optimizer.betas", "data.prompts.path"} <= set(
        names
    )
    assert not {"rl", "rl.ppo", "model.scratch", "data.toyworld", "data.prompts"} & set(names), (
        "sections are no leaves"
    )


@pytest.mark.parametrize(
    "name, sentence", [(setting.name, setting.sentence) for setting in SETTINGS]
)
def test_every_setting_has_one_sentence(name: str, sentence: str) -> None:
    assert sentence.endswith(".") and len(sentence.split()) >= 2, name
    assert "\n" not in sentence and not re.search(r"[.!?] [A-Z]", sentence), (
        f"{name} has more than one sentence"
    )
    assert sentence[0].isupper() or sentence.startswith("vLLM"), name


def test_the_default_shown_is_the_one_that_holds() -> None:
    """`rayward settings` must tell what a config without the setting gets."""
    lists = ("conversations", "preferences", "prompts", "evaluation_prompts")
    sources = (*(f"data.{name}." for name in lists), "scoring.sources.", "evaluate.suites.")
    bare = Config.model_validate(
        {
            "model": {"scratch": {}},
            "data": {"toyworld": {}, "decontaminate": {}},
            "dpo": {},
            "rl": {"lora": {}},
        }
    )
    wrong = {}
    for setting in SETTINGS:
        if not setting.name.startswith(sources):
            value: Any = bare
            for key in setting.name.split("."):
                value = getattr(value, key)
            if value != setting.default or setting.required:
                wrong[setting.name] = f"shown {setting}, holds {value}"
    assert not wrong


@pytest.mark.parametrize("name", sorted({setting.name.rsplit(".", 1)[-1] for setting in SETTINGS}))
def test_every_setting_is_read(name: str) -> None:
    assert name in READ, (
        f"nothing in actors, cluster, pipelines or data reads .{name}: remove the setting or use it"
    )
