"""What decides the last bits of a training and no more: how its sums are divided and rounded.

A finished stage holds whatever these are. A checkpoint may be taken up with others, which is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayward.configs.schema import Config
from rayward.configs.sections.machines import Role
from rayward.configs.sections.training import Updates

LastBits = Mapping[str, Mapping[str, Any]]
"""By name of the model that learns ("" where it is the only one), or of a role, the settings."""


def zero_stage_of(wanted: int, ranks: int, dtype: str, on_cpu: bool) -> int:
    """The ZeRO stage of a training whose `optimizer.zero_stage` is `wanted`."""
    # Rounding in bf16 would show how rows are cut: ZeRO-2 sums and reduces gradients in fp32.
    if dtype == "bfloat16":
        return max(2, wanted)
    # One rank has nothing to share out, and in fp32 no master weights to keep: ZeRO-1 and 2 would
    # only copy.
    return 0 if ranks == 1 and on_cpu and wanted < 3 else wanted


def of_training(role: Role, optimizer: Updates, dtype: str, **more: Any) -> dict[str, Any]:
    """Of one model that learns."""
    return {
        "ranks": role.workers,
        "zero_stage": zero_stage_of(optimizer.zero_stage, role.workers, dtype, not role.gpus),
        "micro_batch_tokens": optimizer.micro_batch_tokens,
        "gradient_checkpointing": optimizer.gradient_checkpointing,
        "offload": optimizer.offload,
        "threads": role.compute_threads,
        "gpus": role.gpus,
        **more,
    }


def of_rl(config: Config, learners: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Of an algorithm of online RL with these learners, and of those that sample and score."""
    rl, resources = config.rl, config.resources
    more = {"shared_prompts": rl.shared_prompts, "sequence_parallel": rl.sequence_parallel}
    learning = {
        name: of_training(getattr(resources, name), rl.optimizer, config.model.dtype, **more)
        for name in learners
    }
    others = {
        name: {"number": role.workers, "threads": role.compute_threads, "gpus": role.gpus}
        for name, role in (
            ("engines", resources.rollout),
            ("reference", resources.reference),
            ("reward", resources.reward),
        )
    }
    return learning | others


def changes(before: LastBits, now: LastBits) -> str:
    """How a training goes on otherwise than it was until a checkpoint; "" where it does not."""
    told = []
    for name in sorted(before.keys() & now.keys()):
        old, new = before[name], now[name]
        changed = [key for key in new if key in old and old[key] != new[key]]
        if not changed:
            continue
        words = [f"{key} was {old[key]}, now {new[key]}" for key in changed]
        if {"ranks", "zero_stage"} & set(changed):
            rest = [word for word in words if not word.startswith(("ranks ", "zero_stage "))]
            words = [f"from {_layout(old)} with {_layout(new)}", *rest]
        told.append(f"{name} " * bool(name) + ", ".join(words))
    return "; ".join(told)


def _layout(settings: Mapping[str, Any]) -> str:
    ranks = settings["ranks"]
    return f"{ranks} rank{'s' * (ranks != 1)}, ZeRO {settings['zero_stage']}"
