"""Whatever a user writes into a config or a data file: an answer in words, never a traceback."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rayward.configs.reference import groups
from tests.pipelines.commands import rayward

TINY = Path(__file__).parents[1] / "tiny.yaml"
PLAIN = yaml.safe_load(TINY.read_text())
NAMES = sorted(setting.name for group in groups() for setting in group.settings)
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 1000, 10**20, 0.5, -0.5, 1e-30, 1e30, "", " ", "auto",
    "none", "gold", "../..", "/", "a/b", "a b", "\u00e9\u4e2d", "x" * 300, "1e400", "nan", [], [1],
    ["ppo"], ["ppo", "ppo"], [None], {}, {"a": 1}, {"path": "x"}, [{"path": "nowhere.jsonl"}],
)  # fmt: skip
KEYS = (
    "messages", "conversations", "prompt", "response", "chosen", "rejected", "instruction", "input",
    "output", "role", "content", "from", "value", "answers", "rank", "score", "label", "text", "id",
    "question", "answer", "weight", "system", "tools",
)  # fmt: skip
CASES = settings(max_examples=150)
MANY = settings(max_examples=5000)

leaf = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["user", "assistant", "human", "gpt", "system", "hello", ""])
)
values = st.recursive(
    leaf,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), inner, max_size=5)
    ),
    max_leaves=12,
)
rows = st.lists(
    st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), values, max_size=6) | values,
    min_size=1,
    max_size=6,
)


def put(config: Any, path: list[str], value: Any) -> None:
    """Set a value, whatever stands on the way there."""
    for name in path[:-1]:
        if not isinstance(config.get(name), dict):
            config[name] = {}
        config = config[name]
    config[path[-1]] = value


def answered(done: Any, *statuses: int) -> None:
    assert done.returncode in statuses, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert "Traceback" not in said and "RAYWARD_TRACEBACK" not in said, said
    if done.returncode:
        assert done.stderr.startswith(("rayward: ", "usage: ")), done.stderr


def try_config(seed: int, folder: Path) -> None:
    random_ = random.Random(seed)
    config = json.loads(json.dumps(PLAIN))
    for _ in range(random_.randint(1, 4)):
        put(config, random_.choice(NAMES).split("."), random_.choice(ODD))
    text = yaml.safe_dump(config, allow_unicode=True)
    if random_.random() < 0.2:  # as a slip of the hand leaves a file
        place = random_.randrange(len(text))
        text = text[:place] + random_.choice("{}[]:\t\"'&*!%@`\0") + text[place:]
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    answered(rayward("align", path, "--dry-run", cwd=folder), 0, 2)
    assert sorted(one.name for one in folder.iterdir()) == ["config.yaml"]


def try_rows(many: list[Any], folder: Path) -> None:
    path, out = folder / "in.jsonl", folder / "out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in many), encoding="utf-8")
    out.unlink(missing_ok=True)
    done = rayward("data", "convert", path, "--out", out, cwd=folder)
    answered(done, 0, 1, 2)
    # Nothing half: a file only where there are rows, each of which is whole.
    assert out.exists() == (done.returncode == 0)
    if out.exists():
        assert all(isinstance(json.loads(line), dict) for line in out.read_text().splitlines())


@CASES
@given(seed=st.integers(0, 2**32))
def test_a_config_is_answered(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    try_config(seed, tmp_path_factory.mktemp("fuzz"))


@CASES
@given(many=rows)
def test_rows_are_answered(many: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    try_rows(many, tmp_path_factory.mktemp("fuzz"))


@pytest.mark.slow
@MANY
@given(seed=st.integers(0, 2**32))
def test_many_configs_are_answered(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    try_config(seed, tmp_path_factory.mktemp("fuzz"))


@pytest.mark.slow
@MANY
@given(many=rows)
def test_many_rows_are_answered(many: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    try_rows(many, tmp_path_factory.mktemp("fuzz"))
