"""A config with its roles spread over so many machines with GPUs.

Where engines and learners do not take turns, engines have half of the GPUs, the frozen models share
one, and the learners have the others, policy and critic alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from rayward.configs.checks import checked
from rayward.configs.plan import roles
from rayward.configs.schema import Config
from rayward.configs.sections.machines import Role
from rayward.configs.stages import STAGES, parts

GPU_CPUS = 4.0
"""CPUs of a process that has GPUs, at least: it reads, tokenizes and launches kernels beside them.
"""
FROZEN = ("reference", "candidate", "reward", "judge", "second")


def parse_size(text: str) -> tuple[int, int]:
    """Machines and GPUs of each, from text as 8x8. ValueError for anything else."""
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d?)", text)
    if not match:
        raise ValueError(f"--size {text}: expected MACHINESxGPUS, for example 2x8")
    return int(match[1]), int(match[2])


def sized(config: Config, machines: int, gpus: int) -> Config:
    """The config on `machines` with `gpus` each. ValueError where its stages do not fit them."""
    total = machines * gpus
    shares = _taking_turns(config, total) if config.rl.mode == "colocate" else _apart(config, total)
    shares["train"] = (min([total, *_rows_per_step(config)]), 1.0)
    resources = {
        name: _role(getattr(config.resources, name), *share) for name, share in shares.items()
    }
    return checked(
        config.model_copy(
            update={
                "resources": config.resources.model_copy(update=resources),
                "kube": config.kube.model_copy(update={"gpus_per_node": gpus}),
            }
        )
    )


def _role(role: Role, workers: int, gpus: float) -> Role:
    cpus = max(role.cpus, GPU_CPUS) if gpus >= 1 else role.cpus
    return role.model_copy(update={"workers": workers, "gpus": gpus, "cpus": cpus})


def _rows_per_step(config: Config) -> list[int]:
    """Rows of an optimizer step of each stage that Ray Train runs: ranks beyond have none."""
    counts = {
        "sft": config.sft.samples_per_step,
        "reward": config.reward.rankings_per_step,
        "sample": config.sample.training.samples_per_step,
        "dpo": config.dpo.rankings_per_step,
    }
    return [count for stage, count in counts.items() if parts(config, stage)]


def _frozen(config: Config) -> int:
    """The most processes of frozen models that any stage has at once."""
    tables = [roles(config, stage) for stage in STAGES if parts(config, stage)]
    return max(
        sum(role.workers for name, role in table.items() if name.split("_")[0] in FROZEN)
        for table in tables
    )


def _has_critic(config: Config) -> bool:
    return bool(parts(config, "rl")) and "critic" in roles(config, "rl")


def _most_ranks(config: Config) -> int:
    """Ranks of a learner of RL that have an answer of each step; those beyond would have none."""
    shared = config.rl.sequence_parallel
    return max(1, config.rl.samples_per_step // shared * shared)


def _taking_turns(config: Config, total: int) -> dict[str, tuple[int, float]]:
    """Workers and GPUs of each role where a GPU holds an engine and the learners."""
    # As many engines as ranks: each stands beside one.
    ranks = min(total, _most_ranks(config))
    learners = {"policy": (ranks, 0.3)} | ({"critic": (ranks, 0.2)} if _has_critic(config) else {})
    share = round(0.1 / max(2, _frozen(config)), 4)
    return {"rollout": (ranks, 0.4), **learners, "reference": (1, share), "reward": (1, share)}


def _apart(config: Config, total: int) -> dict[str, tuple[int, float]]:
    """Workers and GPUs of each role where each GPU has one task."""
    for_engine = max(1, int(config.resources.rollout.gpus))
    engines = max(1, total // 2 // for_engine)
    left = total - engines * for_engine - 1
    shared = config.rl.sequence_parallel
    for_critic = left // 2 // shared * shared if _has_critic(config) else 0
    for_policy = (left - for_critic) // shared * shared
    ranks = {"policy": for_policy} | ({"critic": for_critic} if _has_critic(config) else {})
    if parts(config, "rl") and min(ranks.values()) < 1:
        raise ValueError(
            f"{total} GPUs are too few for engines of {for_engine}, a GPU of the frozen models, and"
            f" {' and '.join(ranks)} with rl.sequence_parallel {shared}; rl.mode colocate lets "
            "them take turns"
        )
    most = _most_ranks(config)
    learners = {name: (min(max(1, count), most), 1.0) for name, count in ranks.items()}
    # Rounded down, so that all of them fit: 4 have a quarter each, 7 a hundredth less than 1/7.
    share = int(100 / max(4, _frozen(config))) / 100
    frozen: Mapping[str, tuple[int, float]] = {"reference": (1, share), "reward": (1, share)}
    return {"rollout": (engines, float(for_engine)), **learners, **frozen}
