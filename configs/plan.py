"""What a config means in numbers: optimizer steps, answers and actors, computed without starting anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from configs.schema import Config, Role

STAGES = ("prepare", "sft", "reward", "sample", "rl", "evaluate", "publish")


@dataclass(frozen=True)
class RlArithmetic:
    """Batch arithmetic of one RL run; counts of answers and optimizer steps."""

    answers_per_iteration: int
    steps_per_epoch: int
    steps_per_iteration: int
    policy_steps: int
    critic_steps: int
    answers: int


def rl_arithmetic(config: Config) -> RlArithmetic:
    """Derived numbers of the RL stage; the schema has checked that they divide."""
    rl = config.rl
    answers = rl.prompts_per_iteration * rl.samples_per_prompt
    steps_per_epoch = answers // rl.samples_per_step
    steps = steps_per_epoch * rl.epochs
    return RlArithmetic(
        answers,
        steps_per_epoch,
        steps,
        steps * (rl.iterations - rl.critic_warmup_iterations),
        steps * rl.iterations,
        answers * rl.iterations,
    )


def optimizer_steps(rows: int, rows_per_step: int, epochs: int) -> int:
    """Optimizer steps of `epochs` passes; the last, smaller step of a pass counts."""
    return math.ceil(rows / rows_per_step) * epochs


def arithmetic_lines(config: Config) -> list[str]:
    """The RL batch arithmetic as one readable block."""
    rl, numbers = config.rl, rl_arithmetic(config)
    return [
        f"prompts per iteration {rl.prompts_per_iteration} x samples per prompt {rl.samples_per_prompt} "
        f"= {numbers.answers_per_iteration} answers per iteration",
        f"{numbers.answers_per_iteration} answers / {rl.samples_per_step} samples per optimizer step "
        f"= {numbers.steps_per_epoch} steps per epoch x {rl.epochs} epochs = {numbers.steps_per_iteration} a round",
        f"x {rl.iterations} iterations = {numbers.answers} answers, {numbers.policy_steps} policy steps, "
        f"{numbers.critic_steps} critic steps, for each of: {', '.join(rl.algorithms)}",
        f"micro-batches of at most {rl.optimizer.micro_batch_tokens} padded tokens a rank",
    ]


def roles(config: Config, stage: str) -> dict[str, Role]:
    """The actors that a stage starts, by role."""
    resources = config.resources
    return {
        "prepare": {},
        "sft": {"train": resources.train},
        "reward": {"train": resources.train},
        "sample": {"rollout": resources.rollout, "reward": resources.reward, "train": resources.train},
        "rl": {
            "policy": resources.policy,
            "critic": resources.critic,
            "reference": resources.reference,
            "reward": resources.reward,
            "rollout": resources.rollout,
        },
        "evaluate": {
            "rollout": resources.rollout,
            "reference": resources.reference,
            "candidate": resources.reference,
            **({"judge": resources.reward} if config.evaluate.judge == "reward_model" else {}),
        },
        "publish": {"serve": Role(workers=config.publish.replicas, cpus=1, gpus=resources.rollout.gpus)},
    }[stage]


def decisive(config: Config, part: str) -> dict[str, Any]:
    """The settings that decide the result of a stage (or of `rl/ppo` and `rl/apa`), as plain values.

    What only changes speed, memory or place is left out where that is a section of its own.
    """
    resources = config.resources
    algorithm = part.removeprefix("rl/")
    table: dict[str, dict[str, Any]] = {
        "prepare": {
            "model": config.model,
            "data": config.data,
            "judge": config.evaluate.judge,
            "max_new_tokens": config.rollout.max_new_tokens,
            "long_conversations": config.sft.long_conversations,
            "quality": config.sft.quality,
        },
        "sft": {"model": config.model, "sft": config.sft, "workers": resources.train.workers},
        "reward": {"reward": config.reward, "workers": resources.train.workers},
        "sample": {
            "sample": config.sample,
            "max_new_tokens": config.rollout.max_new_tokens,
            "workers": resources.train.workers,
        },
        f"rl/{algorithm}": {
            "rl": config.rl.model_dump(mode="json", exclude={"algorithms", "ppo", "apa"}),
            algorithm: getattr(config.rl, algorithm, None),
            "rollout": config.rollout,
            "workers": [resources.policy.workers, resources.critic.workers],
        },
        "evaluate": {"evaluate": config.evaluate, "max_new_tokens": config.rollout.max_new_tokens},
        "publish": {"publish": config.publish, "model": config.model},
    }
    found = table[part]
    if part != "publish":
        found["seed"] = config.seed
    return {
        name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value for name, value in found.items()
    }


def parts(config: Config, stage: str) -> tuple[str, ...]:
    """What a stage is finished in: itself, or one part an algorithm."""
    return tuple(f"rl/{name}" for name in config.rl.algorithms) if stage == "rl" else (stage,)


def stage_summary(config: Config, stage: str) -> str:
    """One line on what a stage does under this config."""
    world = config.data.toyworld
    epochs = config.sft.epochs
    return {
        "prepare": "generate the toy world"
        if world
        else f"read and check {len(config.data.conversations)} chat, "
        f"{len(config.data.preferences)} preference and {len(config.data.prompts)} prompt sources",
        "sft": f"{epochs} epochs, {config.sft.samples_per_step} samples a step, ZeRO-{config.sft.optimizer.zero_stage}",
        "reward": f"{config.reward.loss}, epochs: {config.reward.epochs}, "
        f"rankings a step: {config.reward.rankings_per_step}",
        "sample": f"{config.sample.prompts} prompts x {config.sample.samples_per_prompt} answers, best kept, "
        f"then {config.sample.training.epochs} epochs of SFT",
        "rl": f"{', '.join(config.rl.algorithms)}: {config.rl.iterations} iterations",
        "evaluate": f"{config.evaluate.prompts} held-out prompts, judge: {config.evaluate.judge}",
        "publish": f"Ray Serve, model: {config.publish.model}, port {config.publish.port}",
    }[stage]
