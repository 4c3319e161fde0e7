"""The RL algorithms by name: each has its numbers and its recipe, and what does not go together is
refused.
"""

from __future__ import annotations

from typing import get_args

import pytest

from rayward.configs.load import ConfigError, load
from rayward.configs.plan import wants_reference
from rayward.configs.sections.algorithms import (
    IN_GROUPS,
    RECIPES,
    WITH_CRITIC,
    Algorithm,
    AlgorithmName,
    Whitened,
)
from rayward.configs.sections.rl import Rl


def test_names_numbers_and_recipes_are_the_same_ones() -> None:
    assert tuple(RECIPES) == get_args(AlgorithmName)
    sections = {name for name in Rl.model_fields if isinstance(getattr(Rl(), name), Algorithm)}
    assert sections == set(RECIPES)
    for name in RECIPES:
        assert load("quickstart", [f"rl.algorithms=[{name}]"]).rl.algorithms == (name,)


def test_who_has_a_critic_and_who_compares() -> None:
    assert WITH_CRITIC == ("ppo", "apa", "awr")
    assert IN_GROUPS == ("rloo", "grpo", "gspo", "cispo", "dr_grpo")


@pytest.mark.parametrize("name", RECIPES)
def test_who_compares_is_scaled_by_its_group_alone(name: str) -> None:
    assert not (name in IN_GROUPS and isinstance(getattr(Rl(), name), Whitened))


def test_defaults_are_the_papers() -> None:
    rl = load("quickstart").rl
    assert (rl.gspo.clip, rl.gspo.clip_high) == (3e-4, 4e-4)
    assert rl.gspo.divide_by_std and rl.cispo.divide_by_std
    assert rl.cispo.clip_high > 1 and rl.dr_grpo.answer_tokens is None
    assert (rl.dr_grpo.clip, rl.dr_grpo.clip_high, rl.dr_grpo.dual_clip) == (0.2, None, None)


@pytest.mark.parametrize("name", ["gspo", "cispo", "dr_grpo"])
def test_the_reference_is_asked_only_where_something_needs_it(name: str) -> None:
    plain = [f"rl.algorithms=[{name}]", "rl.monitor.kl=false"]
    assert not wants_reference(load("quickstart", plain), name)
    for own in ("kl_coef", "kl_loss"):
        assert wants_reference(load("quickstart", [*plain, f"rl.{name}.{own}=0.1"]), name)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["rl.gspo.dual_clip=3"], "unknown key 'rl.gspo.dual_clip'"),
        (["rl.gspo.clip_hihg=1"], "did you mean 'clip_high'"),
        (["rl.cispo.clip=0.2"], "unknown key 'rl.cispo.clip'; did you mean 'clip_high'"),
        (["rl.dr_grpo.divide_by_std=true"], "unknown key 'rl.dr_grpo.divide_by_std'"),
        (["rl.gspo.clip_high=null"], "rl.gspo.clip_high is None"),
        (["rl.algorithms=[gsop]"], "rl.algorithms.0 is 'gsop'"),
        (
            ["rl.dr_grpo={kl_target: 6}"],
            "rl.dr_grpo.kl_target steers kl_coef, which is 0",
        ),
        (
            ["rl.algorithms=[cispo]", "rl.samples_per_prompt=1", "rl.samples_per_step=1"],
            "rl.algorithms cispo compares the answers of a prompt, and rl.samples_per_prompt is 1",
        ),
        (
            ["rl.algorithms=[grpo, ppo]", "rl.extra_prompts=8"],
            "rl.extra_prompts 8 replaces prompts whose answers, compared with each other, teach "
            "nothing, and ppo does not compare them; set it to 0",
        ),
        (["rl.algorithms=[grpo]", "rl.extra_prompts=-1"], "rl.extra_prompts is -1"),
        (
            ["rl.algorithms=[gspo]", "rl.critic_warm_gate=1"],
            "critic_warm_gate has no effect on gspo, which have no critic",
        ),
        (
            ["rl.algorithms=[rloo, gspo]", "rl.sequence_parallel=2", "resources.policy.workers=2"],
            "rl.sequence_parallel 2 leaves each rank a slice of an answer's tokens, and the loss "
            "of gspo needs whole answers; set it to 1",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("quickstart", overrides)
    assert told in str(caught.value)


def test_other_losses_take_slices_and_engine_logprobs() -> None:
    shared = ["rl.algorithms=[cispo, dr_grpo]", "rl.sequence_parallel=2"]
    load("quickstart", [*shared, "resources.policy.workers=2"])
    load("quickstart", ["rl.algorithms=[gspo, cispo, dr_grpo]", "rl.old_logprobs=rollout"])
