"""A config names what its stages read, and no more; all that is missing is told at once, with what
to add.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayward.configs.decisive import decisive
from rayward.configs.labels import no_preferences
from rayward.configs.load import ConfigError, dump, load
from rayward.configs.named import named_models
from rayward.configs.needs import few_rows, least_rows
from rayward.configs.plan import critic_start, inputs, roles
from rayward.configs.schema import STAGE_SECTIONS
from rayward.configs.stages import compared, first_model, has, models, parts
from rayward.configs.summary import stage_summary

LISTS = ("conversations", "preferences", "prompts", "evaluation_prompts")
FILES = {name: [{"path": f"{name}.jsonl"}] for name in LISTS}
RULE = {"sources": [{"kind": "function", "target": "rules:short"}]}
GIVEN = {"sources": [{"paths": ["/models/reward"]}]}


def config(tmp_path: Path, lists: str = "", **sections: Any) -> Any:
    """Of the stages in `sections` only, with these lists of data."""
    data = {name: FILES[name] for name in lists.split()}
    values = (
        {"model": {"path": "/models/chat"}, "data": data} | dict.fromkeys(STAGE_SECTIONS) | sections
    )
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return load(str(path))


PART = {
    "sft": ("conversations", {"sft": {}}),
    "reward model": ("preferences", {"reward": {}}),
    "dpo": ("preferences", {"dpo": {}}),
    "kto": ("preferences", {"dpo": {"objective": "kto", "kto": {"desirable_weight": 1.2}}}),
    "orpo": ("preferences", {"dpo": {"objective": "orpo", "start": "base"}}),
    "sampling with a given reward model": ("prompts", {"sample": {}, "scoring": GIVEN}),
    "rloo with a function": ("prompts", {"rl": {"algorithms": ["rloo"]}, "scoring": RULE}),
    "ppo with a given reward model": (
        "prompts",
        {"rl": {"algorithms": ["ppo", "apa"]}, "scoring": GIVEN},
    ),
    "evaluation of a folder": (
        "evaluation_prompts",
        {"evaluate": {"judge": "/judge", "models": {"own": "/own"}}},
    ),
    "publishing": ("", {"publish": {}}),
}


@pytest.mark.parametrize("name", PART)
def test_any_part_of_the_road_is_a_config_and_comes_back_equal(name: str, tmp_path: Path) -> None:
    lists, sections = PART[name]
    made = config(tmp_path, lists, **sections)
    (tmp_path / "again.yaml").write_text(dump(made))
    assert load(str(tmp_path / "again.yaml")) == made
    stages = [stage for stage in STAGE_SECTIONS if has(made, stage)]
    assert stages == [stage for stage in sections if stage != "scoring"]
    for stage in STAGE_SECTIONS:
        assert bool(parts(made, stage)) == (stage in stages)
    assert "left out" in stage_summary(made, "sft") or name == "sft"
    read = [
        part
        for stage in stages
        if stage not in ("evaluate", "publish")
        for part in parts(made, stage)
    ]
    assert all(inputs(made, part) == ("prepare",) for part in read)


@pytest.mark.parametrize("name", [name for name in PART if name != "publishing"])
def test_what_a_part_reads_is_asked_for_with_the_line_to_add(name: str, tmp_path: Path) -> None:
    lists, sections = PART[name]
    told = rf"data\.{lists} lists no source, .*add `{lists}: \[{{path: FILE}}\]` to data"
    with pytest.raises(ConfigError, match=told):
        config(tmp_path, **sections)


def test_all_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        config(
            tmp_path,
            sft={},
            sample={},
            dpo={"data": "samples"},
            rl={},
            evaluate={},
            publish={"model": "nobody"},
        )
    for line, told in zip(
        str(raised.value).splitlines(),
        (
            r"data\.conversations lists no source, and sft reads it",
            r"data\.prompts .* and sample and rl read it: add",
            r"data\.evaluation_prompts",
            r"sample and rl want a reward, .*add `scoring: \{sources: \[\{kind: model",
            r"evaluate\.judge reward_model is a second reward model .* add `judge: DIR`",
            r"publish\.model is nobody, but the models are start, sft, rejection, dpo, ppo, apa",
        ),
        strict=True,
    ):
        assert re.search(told, line), line


@pytest.mark.parametrize(
    "lists, sections, told",
    [
        ("preferences", {"dpo": {"start": "sample"}}, r"dpo takes what stage sample makes"),
        (
            "evaluation_prompts",
            {"evaluate": {"judge": "/judge"}},
            r"nothing to compare with start: add `models: ",
        ),
        (
            "evaluation_prompts",
            {"evaluate": {"judge": "gold", "models": {"own": "/x"}}},
            r"judge gold exists only in",
        ),
        (
            "evaluation_prompts",
            {"evaluate": {"judge": "scoring", "models": {"own": "/x"}}},
            r"judge scoring asks scoring",
        ),
        (
            "evaluation_prompts",
            {"evaluate": {"judge": "/j", "models": {"ppo": "/x"}}},
            r"calls one 'ppo', which is",
        ),
        (
            "evaluation_prompts",
            {"evaluate": {"judge": "/j", "models": {"own": "/x"}, "against": "sft"}},
            "against is sft",
        ),
        (
            "",
            {"publish": {"model": "dpo"}},
            r"publish\.model is dpo, which this config does not train; give a dpo section",
        ),
        (
            "conversations",
            {"sft": {}, "publish": {"model": "apa"}},
            r"is apa, which this config does not train; give a rl",
        ),
    ],
)
def test_what_does_not_fit(lists: str, sections: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        config(tmp_path, lists, **sections)


def test_who_starts_where(tmp_path: Path) -> None:
    rloo = config(tmp_path, "prompts", rl={"algorithms": ["rloo"]}, scoring=RULE)
    assert (first_model(rloo), critic_start(rloo)) == ("start", "policy")
    told = stage_summary(rloo, "rl")
    assert "from /models/chat: rloo" in told and "function rules:short" in told
    assert not {"critic", "second", "reward"} & set(roles(rloo, "rl"))
    ppo = config(tmp_path, "prompts", rl={"algorithms": ["ppo"]}, scoring=GIVEN)
    assert critic_start(ppo) == "/models/reward" and "critic from /models/reward" in stage_summary(
        ppo, "rl"
    )
    assert {"critic", "reward"} <= set(roles(ppo, "rl"))
    sft = config(
        tmp_path, "conversations prompts", sft={}, rl={"algorithms": ["rloo"]}, scoring=RULE
    )
    assert first_model(sft) == "sft" and "from sft: rloo" in stage_summary(sft, "rl")
    assert inputs(sft, "rl/rloo") == ("prepare", "sft") and list(models(sft)) == ["sft", "rloo"]
    own = {"judge": "/judge", "models": {"own": "/own"}, "against": "own"}
    assert compared(config(tmp_path, "evaluation_prompts", evaluate=own)) == ("own", "start")


def test_the_fewest_rows_are_those_that_a_stage_needs(tmp_path: Path) -> None:
    judge = {"judge": "/judge", "models": {"own": "/own"}}
    least = least_rows(config(tmp_path, "conversations", sft={}))
    assert {name for name, rows in least.items() if rows} == {"conversations"}
    looks = config(tmp_path, "conversations", sft={"validate_every": 5})
    assert least_rows(looks)["sft_heldout"] == 1
    assert least_rows(config(tmp_path, "preferences", dpo={}))["heldout"] == 0
    assert least_rows(config(tmp_path, "preferences", reward={}))["heldout"] == 1
    # A number that is given is meant; the default is as many as there are.
    for section, rows in ((judge, 1), (judge | {"prompts": 3}, 3)):
        given = config(tmp_path, "evaluation_prompts", evaluate=section)
        assert least_rows(given)["evaluation_prompts"] == rows


def test_few_rows_are_told(tmp_path: Path) -> None:
    rows = dict.fromkeys(("conversations", "sft_heldout", "heldout", "evaluation_prompts"), 40)
    made = config(tmp_path, "conversations", sft={})
    assert not list(few_rows(made, rows))
    (told,) = few_rows(made, rows | {"sft_heldout": 0})
    assert told.startswith("data.conversations: no row is held out, so sft will not say")
    judge = {"judge": "/judge", "models": {"own": "/own"}}
    made = config(tmp_path, "evaluation_prompts", evaluate=judge)
    fewer, little = few_rows(made, rows | {"evaluation_prompts": 9})
    assert fewer.startswith("evaluate answers the 9 prompts") and "on 9 prompts" in little


@pytest.mark.parametrize(
    "settings, told",
    [
        (
            {"objective": "kto", "loss": "plackett_luce"},
            r"dpo\.loss plackett_luce has no effect on ",
        ),
        ({"objective": "ipo", "loss": "plackett_luce"}, r"dpo\.objective ipo; only dpo reads it"),
        (
            {"objective": "kto", "ties": "average"},
            r"dpo\.ties average .* only dpo, ipo, simpo, orpo",
        ),
        (
            {"objective": "kto", "shared_prompts": True},
            r"dpo\.shared_prompts True has no effect on",
        ),
        ({"objective": "ipo", "margin": 0.5}, r"dpo\.margin 0\.5 has no effect on dpo\.objective"),
        (
            {"objective": "simpo", "beta": 0.5},
            r"dpo\.beta 0\.5 .*; its own number is dpo\.simpo\.beta",
        ),
        ({"objective": "orpo", "beta": 0.5}, r"its own number is dpo\.orpo\.lam"),
        ({"simpo": {"gamma": 0.5}}, r"dpo\.simpo has no effect on dpo\.objective dpo; only simpo"),
        ({"objective": "dpop"}, r"dpo\.objective is 'dpop'"),
    ],
)
def test_a_setting_of_another_objective_is_refused(
    settings: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        config(tmp_path, "preferences", dpo=settings)


def test_objectives_leave_finished_runs_as_they_are(tmp_path: Path) -> None:
    """What decides a DPO that does not name an objective is what did before there were any."""
    before = decisive(config(tmp_path, "preferences", dpo={}), "dpo")["dpo"]
    assert before.keys() == {
        *("epochs", "rankings_per_step", "loss", "ties", "margin", "optimizer"),
        *("data", "answers_per_prompt", "start", "beta"),
    }
    for objective in ("ipo", "kto", "simpo", "orpo"):
        made = config(tmp_path, "preferences", dpo={"objective": objective})
        assert decisive(made, "dpo")["dpo"] == before | {"objective": objective}
        assert made.dpo.needs_reference == (objective in ("ipo", "kto"))
        assert f": {objective}, " in stage_summary(made, "dpo")


def test_orpo_may_start_from_the_base_model(tmp_path: Path) -> None:
    sections = {"sft": {}, "dpo": {"objective": "orpo", "start": "base"}}
    made = config(tmp_path, "conversations preferences", **sections)
    assert inputs(made, "dpo") == ("prepare",) and first_model(made) == "sft"
    assert "from /models/chat: orpo, lambda 0.1" in stage_summary(made, "dpo")
    assert ("dpo", "/models/chat") in {(named.stage, named.model) for named in named_models(made)}
    sections["dpo"] = {"objective": "orpo"}
    made = config(tmp_path, "conversations preferences", **sections)
    assert inputs(made, "dpo") == ("prepare", "sft")
    assert "from sft: orpo" in stage_summary(made, "dpo")


def test_who_learns_from_labelled_answers(tmp_path: Path) -> None:
    rows = dict.fromkeys(("rankings", "heldout", "labelled", "labelled_heldout"), 0)
    rows |= {"evaluation_prompts": 0, "sft_heldout": 0}
    labels = rows | {"labelled": 8, "labelled_heldout": 2}
    kto = config(tmp_path, "preferences", dpo={"objective": "kto", "validate_every": 2})
    assert not any(least_rows(kto).values()) and not [*no_preferences(kto, labels, 1)]
    assert not [*few_rows(kto, labels)]
    nothing, unmeasured = no_preferences(kto, rows)
    assert "no labelled answer and no ranking is left" in nothing and "held-out" in unmeasured
    assert not [*no_preferences(kto, rows | {"rankings": 9, "heldout": 1})]
    for good, lacking in ((0, "no good one is"), (2, "no bad one is")):
        (told,) = no_preferences(kto, labels, good)
        assert lacking in told
    sections: dict[str, Any] = {"sample": {}, "scoring": GIVEN}
    sections["dpo"] = {"objective": "kto", "data": "samples", "validate_every": 2}
    sampled = config(tmp_path, "prompts preferences", **sections)
    (told,) = no_preferences(sampled, rows)
    assert "no good one and no bad one is held out" in told
    assert not [*no_preferences(sampled, labels, 1)]
    both = config(tmp_path, "preferences", reward={}, dpo={"objective": "kto"})
    (told,) = no_preferences(both, labels)
    assert "10 labelled answers and no ranking" in told and "do not train a reward model" in told
    assert least_rows(both)["rankings"] == 1
    dpo = config(tmp_path, "preferences", dpo={})
    (told,) = no_preferences(dpo, labels)
    assert "use `dpo.objective: kto`, which learns from labels" in told
    assert not [*no_preferences(dpo, labels | {"rankings": 1})]
