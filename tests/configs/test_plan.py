"""Batch arithmetic worked out by hand, and the plan of every preset."""

from __future__ import annotations

import random
import re

import pytest

from rayward.configs.load import PRESETS, load
from rayward.configs.plan import optimizer_steps, rl_arithmetic, roles
from rayward.configs.schema import Config
from rayward.configs.stages import STAGES
from rayward.configs.summary import arithmetic_lines, stage_summary

NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))


def shaped(
    iterations: int, prompts: int, samples: int, step: int, epochs: int, warmup: int
) -> Config:
    return load(
        "quickstart",
        [
            f"rl.iterations={iterations}",
            f"rl.prompts_per_iteration={prompts}",
            f"rl.samples_per_prompt={samples}",
            f"rl.samples_per_step={step}",
            f"rl.epochs={epochs}",
            f"rl.critic_warmup_iterations={warmup}",
        ],
    )


def test_arithmetic_by_hand() -> None:
    numbers = rl_arithmetic(
        shaped(iterations=10, prompts=48, samples=4, step=64, epochs=2, warmup=3)
    )
    assert numbers.answers_per_iteration == 192  # 48 x 4
    assert numbers.steps_per_epoch == 3  # 192 / 64
    assert numbers.steps_per_iteration == 6  # twice
    assert numbers.policy_steps == 42  # in 7 of 10 iterations
    assert numbers.critic_steps == 60  # in all
    config = shaped(iterations=10, prompts=48, samples=4, step=64, epochs=2, warmup=3)
    assert rl_arithmetic(config, "rloo").policy_steps == 60, "without a critic there is no warm-up"
    assert numbers.answers == 1920


def test_arithmetic_counts_what_a_loop_would_do() -> None:
    rng = random.Random(1)
    for _ in range(20):
        step, per_epoch, iterations, epochs = (rng.randint(1, 6) for _ in range(4))
        warmup = rng.randrange(iterations)
        config = shaped(iterations, step * per_epoch, 2, 2 * step, epochs, warmup)
        policy = critic = answers = 0
        for iteration in range(iterations):
            answers += config.rl.prompts_per_iteration * 2
            for _ in range(epochs):
                for _ in range(0, config.rl.prompts_per_iteration * 2, config.rl.samples_per_step):
                    critic += 1
                    policy += iteration >= warmup
        numbers = rl_arithmetic(config)
        assert (numbers.policy_steps, numbers.critic_steps, numbers.answers) == (
            policy,
            critic,
            answers,
        )


def test_optimizer_steps_count_the_last_smaller_step() -> None:
    for rows in range(1, 30):
        for per_step in range(1, 12):
            assert optimizer_steps(rows, per_step, 3) == 3 * len(range(0, rows, per_step))


def test_the_arithmetic_is_shown_with_its_numbers() -> None:
    shown = "\n".join(
        arithmetic_lines(shaped(iterations=11, prompts=48, samples=4, step=64, epochs=2, warmup=4))
    )
    assert {"48", "4", "192", "64", "3", "2", "6", "11", "2112", "42", "66"} <= set(
        re.findall(r"\d+", shown)
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_of_every_preset_has_a_line_and_its_actors(name: str, stage: str) -> None:
    config = load(name)
    line = stage_summary(config, stage)
    assert line and "\n" not in line
    actors = roles(config, stage)
    assert all(role.workers >= 1 for role in actors.values())
    assert (not actors) == (stage == "prepare")


def test_roles_come_from_the_resources() -> None:
    config = load(
        "quickstart",
        ["resources.policy.workers=3", "resources.rollout.workers=2", "publish.replicas=4"],
    )
    rl = roles(config, "rl")
    assert set(rl) == {"policy", "critic", "reference", "reward", "rollout"}
    assert (rl["policy"].workers, rl["rollout"].workers, rl["critic"].workers) == (3, 2, 1)
    assert roles(config, "publish")["serve"].workers == 4
    assert "judge" not in roles(load("quickstart", ["evaluate.judge=gold"]), "evaluate")
    assert "judge" in roles(load("quickstart", ["evaluate.judge=reward_model"]), "evaluate")
