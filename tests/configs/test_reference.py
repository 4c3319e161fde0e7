"""What `rayward settings` says of a setting: what it takes, its default, or the nearest name."""

from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError

from rayward.configs.load import ConfigError, load
from rayward.configs.reference import explain_settings, groups
from rayward.configs.schema import Config
from rayward.configs.sections.algorithms import RECIPES

GROUPS = {group.name: group for group in groups()}
SETTINGS = {setting.name: setting for group in GROUPS.values() for setting in group.settings}


def test_every_setting_stands_once_below_its_section() -> None:
    text = explain_settings()
    assert text.count("; default ") + text.count("; required)") == len(SETTINGS)
    for group in GROUPS.values():
        for setting in group.settings:
            assert text.count(f"  {setting.name} (") == 1
            assert setting.name.rpartition(".")[0] == group.name
    assert "Undefined" not in text and "Section" not in text


@pytest.mark.parametrize(
    ("name", "takes", "default"),
    [
        ("seed", "integer at least 0 and below 2147483648", "0"),
        ("rl.apa.lam", "number above 0", "0.1"),
        ("dpo.objective", "dpo | ipo | kto | simpo | orpo", "dpo"),
        ("dpo.simpo.gamma", "number at least 0", "1.0"),
        ("rl.gamma", "number at least 0 and at most 1", "1.0"),
        ("rl.mode", "sync | one_step_off | colocate", "sync"),
        ("rl.ppo.dual_clip", "number above 1 | null", "null"),
        (
            "rl.algorithms",
            f"list of {' | '.join(RECIPES)}, not empty",
            "[ppo, apa]",
        ),
        ("rl.lora.targets", "text | list of text", "all-linear"),
        ("rl.save_rollouts", "true | false", "true"),
        (
            "reward.optimizer.betas",
            "list of 2, each number at least 0 and at most 1",
            "[0.9, 0.95]",
        ),
        ("reward.optimizer.learning_rate", "number above 0", "1.0e-05"),
        ("sft.quality.conditions", "table from names to text, not empty", "{sub_optimal: GPT3}"),
        ("evaluate.judge", "text, not empty", "reward_model"),
        ("publish.port", "integer at least 0 and at most 65535", "8000"),
    ],
)
def test_types_bounds_choices_and_defaults(name: str, takes: str, default: str) -> None:
    assert f"  {name} ({takes}; default {default})\n" in explain_settings(name)


def test_how_a_config_has_a_section() -> None:
    given = {
        name: GROUPS[name].given for name in ("model", "model.scratch", "dpo", "sft", "rl.apa")
    }
    assert given == {
        "model": "required",
        "model.scratch": "default null",
        "dpo": "default null",
        "sft": "null leaves it out",
        "rl.apa": "",
    }
    assert GROUPS["data.prompts"].given == GROUPS["scoring.sources"].given == "a list"
    assert SETTINGS["data.prompts.path"].required and "required)" in explain_settings(
        "data.prompts"
    )


def test_the_bounds_shown_are_those_that_hold() -> None:
    for name, setting in SETTINGS.items():
        section, _, key = name.rpartition(".")
        if "at least " not in setting.takes or section not in ("rl", "rl.monitor", "rollout"):
            continue
        least = float(setting.takes.partition("at least ")[2].split()[0])
        values = {key: least - 1}
        for part in reversed(section.split(".")):
            values = {part: values}
        with pytest.raises(ValidationError, match=f"greater than or equal to {least:g}"):
            Config.model_validate({"model": {"scratch": {}}, "data": {"toyworld": {}}, **values})


def test_defaults_can_be_pasted_into_a_config() -> None:
    config = load("quickstart")
    for name in ("rl.algorithms", "sft.optimizer.eps", "sft.quality.classes", "rl.monitor.second"):
        shown = explain_settings(name).splitlines()[0].partition("default ")[2].removesuffix(")")
        assert load("quickstart", [f"{name}={shown}"]) and yaml.safe_load(shown) != ""
    assert load("quickstart", [f"rl.gamma={config.rl.gamma}"]) == config


def test_a_section_is_told_with_those_in_it() -> None:
    text = explain_settings("rl.monitor")
    assert text.startswith(
        "rl.monitor: Signs of reward hacking.\n  rl.monitor.second (text | null;"
    )
    assert "rl.apa" not in text
    sections = [line for line in explain_settings("rl").splitlines() if line.startswith("rl")]
    assert len(sections) == len([name for name in GROUPS if f"{name}.".startswith("rl.")])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("rl.ap", "did you mean rl.apa?"),
        ("rl.apa.lamb", "did you mean rl.apa.lam?"),
        ("rollout.temprature", "did you mean rollout.temperature?"),
        ("max_length_ratio", "did you mean rl.monitor.max_length_ratio?"),
        (
            "temprature",
            "did you mean data.temperature, rollout.temperature, sample.temperature, "
            "evaluate.temperature?",
        ),
        ("?", "sections: model, data, cluster"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        explain_settings(name)
    assert str(caught.value).startswith(f"unknown setting {name!r}; {told}")
