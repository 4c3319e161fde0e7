"""Processes that compute at once share the cores; those that take turns have all of them; settings
hold.
"""

from __future__ import annotations

import pytest

from rayward.configs.schema import Config
from rayward.configs.threads import phases, shared_out, with_threads

FUNCTION = {"sources": [{"kind": "function", "target": "rayward.data.rules:exact_number"}]}


def config(**sections) -> Config:
    model = {"scratch": {}, "dtype": "float32"}
    return Config.model_validate(
        {"model": model, "data": {"toyworld": {}}, "evaluate": {"judge": "gold"}} | sections
    )


@pytest.mark.parametrize("stage", ["sft", "reward", "sample", "dpo", "evaluate"])
def test_who_takes_turns_has_all_cores(stage):
    assert set(shared_out(config(), stage, 6).values()) == {6}


def test_who_computes_at_once_in_rl_shares_them():
    assert shared_out(config(), "rl", 2) == {
        "rollout": 2,
        "policy": 1,
        "critic": 1,
        "reference": 1,
        "reward": 1,
    }
    assert shared_out(config(), "rl", 12) == {
        "rollout": 12,
        "policy": 6,
        "critic": 4,
        "reference": 4,
        "reward": 4,
    }
    both = config(evaluate={"judge": "reward_model"})
    assert shared_out(both, "rl", 12)["reward"] == 3, (
        "the second reward model is a process of its own"
    )


def test_without_critic_reward_model_and_reference_the_policy_has_all():
    alone = {"algorithms": ["rloo"], "rloo": {"kl_coef": 0}, "monitor": {"kl": False}}
    assert shared_out(config(rl=alone, scoring=FUNCTION), "rl", 8) == {"rollout": 8, "policy": 8}


def test_engines_that_generate_ahead_leave_the_learners_their_share():
    ahead = shared_out(config(rl={"mode": "one_step_off"}), "rl", 12)
    assert (ahead["rollout"], ahead["policy"], ahead["critic"]) == (4, 3, 3), (
        "the trainer's log-probs are asked, too"
    )


def test_processes_of_a_role_share_and_there_is_always_one():
    resources = {"policy": {"workers": 2}, "rollout": {"workers": 3}, "train": {"workers": 4}}
    many = config(resources=resources)
    assert shared_out(many, "rl", 6)["rollout"] == 2 and shared_out(many, "rl", 6)["policy"] == 2
    assert shared_out(many, "sft", 2)["train"] == 1


def test_a_process_with_a_gpu_takes_no_core_from_others():
    resources = {
        "policy": {"gpus": 1},
        "critic": {"gpus": 1},
        "rollout": {"gpus": 1},
        "reference": {"gpus": 1},
    }
    assert shared_out(config(resources=resources), "rl", 8)["reward"] == 8
    many = config(
        resources={"policy": {"gpus": 1, "workers": 8}, "critic": {"gpus": 1, "workers": 2}}
    )
    assert shared_out(many, "rl", 96)["policy"] == 12 and shared_out(many, "rl", 96)["critic"] == 48


def test_workers_spread_over_nodes_and_replicas_of_the_endpoint_share_too():
    many = config(resources={"train": {"workers": 4}, "policy": {"gpus": 1, "workers": 8}})
    assert (
        shared_out(many, "sft", 8, nodes=4)["train"] == 8
        and shared_out(many, "sft", 8, nodes=3)["train"] == 4
    )
    assert shared_out(many, "rl", 8, nodes=2)["policy"] == 2
    assert shared_out(config(publish={"replicas": 4}), "publish", 8) == {"rollout": 2}


def test_a_setting_holds_and_the_rest_is_filled_in():
    given = config(resources={"policy": {"threads": 5}})
    threads = shared_out(given, "rl", 2)
    assert threads["policy"] == 5 and threads["critic"] == 1
    filled = with_threads(given, {**threads, "policy": 7}).resources
    assert (filled.policy.threads, filled.critic.threads, filled.rollout.threads) == (5, 1, 2)
    assert filled.train.threads is None and filled.train.compute_threads == 1


def test_every_role_is_in_a_phase():
    roles = {
        role for group in (*phases(config(), "sft"), *phases(config(), "rl")) for role in group
    }
    assert roles == {"train", "policy", "critic", "reference", "reward", "rollout"}
