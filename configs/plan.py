"""What a config means in numbers: optimizer steps, answers and actors, computed without starting
anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from rayward.configs.schema import Config
from rayward.configs.sections.machines import Role
from rayward.configs.sections.rl import WITH_CRITIC
from rayward.configs.stages import (
    ALGORITHMS,
    JUDGES,
    RL_PARTS,
    all_parts,
    has,
    own_reward,
    takes_samples,
    trains_judge,
)


@dataclass(frozen=True)
class RlArithmetic:
    """Batch arithmetic of one RL run; counts of answers and optimizer steps."""

    answers_per_iteration: int
    steps_per_epoch: int
    steps_per_iteration: int
    policy_steps: int
    critic_steps: int
    answers: int


def rl_arithmetic(config: Config, algorithm: str = "ppo") -> RlArithmetic:
    """Derived numbers of the RL stage; the schema has checked that they divide."""
    rl = config.rl
    warmup = rl.critic_warmup_iterations if algorithm in WITH_CRITIC else 0
    answers = rl.prompts_per_iteration * rl.samples_per_prompt
    steps_per_epoch = answers // rl.samples_per_step
    steps = steps_per_epoch * rl.epochs
    return RlArithmetic(
        answers,
        steps_per_epoch,
        steps,
        steps * (rl.iterations - warmup),
        steps * rl.iterations,
        answers * rl.iterations,
    )


def optimizer_steps(rows: int, rows_per_step: int, epochs: int) -> int:
    """Optimizer steps of `epochs` passes; the last, smaller step of a pass counts."""
    return math.ceil(rows / rows_per_step) * epochs


def roles(config: Config, stage: str) -> dict[str, Role]:
    """The actors that a stage starts, by role."""
    resources = config.resources
    models = sum(
        max(1, len(source.paths)) for source in config.scoring.sources if source.kind == "model"
    )
    own_reference = any(has_reference(config, name) for name in config.rl.algorithms)
    scorers = {
        f"reward_{number}" if number else "reward": resources.reward for number in range(models)
    }
    return {
        "prepare": {},
        "sft": {"train": resources.train},
        "reward": {"train": resources.train},
        "sample": {"rollout": resources.rollout, **scorers, "train": resources.train},
        "dpo": {"train": resources.train},
        "rl": {
            "policy": resources.policy,
            **(
                {"critic": resources.critic} if set(config.rl.algorithms) & set(WITH_CRITIC) else {}
            ),
            **({"reference": resources.reference} if own_reference else {}),
            **scorers,
            "rollout": resources.rollout,
            **({"second": resources.reward} if second_model(config) else {}),
        },
        "evaluate": {
            "rollout": resources.rollout,
            "reference": resources.reference,
            "candidate": resources.reference,
            **(scorers if asks_reward(config) else {}),
            **(
                {"judge": resources.reward}
                if config.evaluate.judge not in ("gold", "scoring")
                else {}
            ),
        },
        "publish": {
            "serve": resources.rollout.model_copy(
                update={"workers": config.publish.replicas, "cpus": 1.0}
            ),
        },
    }[stage]


MAX_MISMATCH = {"float32": 1e-4, "bfloat16": 0.05}
"""Mean gap between rollout and trainer log-probs of a token that stops a run, in nats; right
weights: 1e-6 in fp32.
"""


def max_mismatch(config: Config) -> float:
    """What rl.max_mismatch means for the model's dtype."""
    return config.rl.max_mismatch or MAX_MISMATCH[config.model.dtype]


def has_reference(config: Config, algorithm: str) -> bool:
    """Whether RL asks a reference model of its own: not where nothing needs it, nor where it is the
    bare policy.
    """
    return wants_reference(config, algorithm) and config.rl.lora is None


def wants_reference(config: Config, algorithm: str) -> bool:
    """Whether log-probs of the reference are computed: to learn from, or to watch the KL."""
    return config.rl.monitor.kl or config.rl.own(algorithm).needs_reference


def asks_reference(config: Config, algorithm: str, iteration: int) -> bool:
    """Whether an iteration computes them: each that learns from them, and else now and then."""
    now = in_turn(config, config.rl.monitor.kl_every, iteration)
    return config.rl.own(algorithm).needs_reference or (config.rl.monitor.kl and now)


def in_turn(config: Config, every: int, iteration: int) -> bool:
    """Whether an iteration has what comes each `every` iterations, and in the last."""
    return iteration % every == 0 or iteration + 1 == config.rl.iterations


def old_logprobs(config: Config) -> str:
    """Whose log-probs of the answers are the old ones, "trainer" or "rollout".

    Those of an engine whose weights are proved to be the trainer's differ from the trainer's by
    rounding, which in fp32 is far below what a loss can see.
    """
    rl = config.rl
    if rl.old_logprobs != "auto":
        return rl.old_logprobs
    # Only the trainer's can be.
    corrected = rl.importance_cap != type(rl).model_fields["importance_cap"].default
    equal = rl.mode != "one_step_off" and config.model.dtype == "float32"
    return "rollout" if equal and not corrected else "trainer"


def second_model(config: Config) -> bool:
    """Whether a reward model that nothing is trained on watches RL: one that is given, or the run's
    own judge.
    """
    return bool(given_second(config)) or trains_judge(config)


def given_second(config: Config) -> str | None:
    """The one that is given: rl.monitor.second, or a folder that is the judge of evaluate and no
    source of reward.
    """
    judge = config.evaluate.judge if has(config, "evaluate") else JUDGES[0]
    sources = [path for source in config.scoring.sources for path in source.paths]
    return config.rl.monitor.second or (judge if judge not in (*JUDGES, *sources) else None)


def critic_start(config: Config) -> str:
    """Where the critic starts: "reward" (the run's own), "policy" (its body with a new head), or a
    folder.
    """
    given = [path for source in config.scoring.sources for path in source.paths]
    return config.rl.critic or (
        "reward" if has(config, "reward") else given[0] if given else "policy"
    )


def asks_reward(config: Config) -> bool:
    """Whether evaluate asks the sources of reward: those that are asked and paid for only where
    they are the judge.
    """
    sources = config.scoring.sources
    known = has(config, "reward") or not own_reward(config)
    free = all(source.kind in ("model", "function") for source in sources)
    return config.evaluate.judge == "scoring" or (known and free)


INPUTS: dict[str, tuple[str, ...]] = {
    "prepare": (),
    "sft": ("prepare",),
    "reward": ("prepare", "sft"),
    "sample": ("prepare", "sft", "reward"),
    "dpo": ("prepare", "sft", "sample"),
    **dict.fromkeys(RL_PARTS, ("prepare", "sft", "reward")),
    "evaluate": ("prepare", "sft", "reward", "sample", "dpo", *RL_PARTS),
    "publish": ("prepare", "sft", "reward", "sample", "dpo", *RL_PARTS, "evaluate"),
}
"""What each part of the road may read of the others. Evaluate and publish take the models that are
there.
"""


def inputs(config: Config, part: str) -> tuple[str, ...]:
    """Those of INPUTS that a config makes and a part needs: RL can do without a reward model of the
    run, DPO without its samples."""
    unused: set[str] = set()
    from_reward = part.removeprefix("rl/") in WITH_CRITIC and critic_start(config) == "reward"
    if (part in RL_PARTS or part == "sample") and not (own_reward(config) or from_reward):
        unused = {"reward"}
    if part == "dpo" and not takes_samples(config):
        unused = {"sample"}
    return tuple(name for name in INPUTS[part] if name in all_parts(config) - unused)


SPEED = (
    "micro_batch_tokens",
    "gradient_checkpointing",
    "offload",
    "packing",
    "shared_prompts",
    "sequence_parallel",
)
"""Settings of training that change speed and memory, never the result."""
LATER = {
    "sft_heldout_fraction": 0.02,
    "models": {},
    "against": None,
    "critic": None,
    "trust_remote_code": False,
    "validate_every": 0,
    "keep": "last",
}
"""Settings that came after runs had been made, with what those had: at it they decide nothing
new.
"""


def decisive(config: Config, part: str) -> dict[str, Any]:
    """The settings that decide the result of a stage (or of `rl/ppo` and `rl/apa`), as plain
    values.

    Of what only changes speed, memory or place there is nothing in them.
    """
    resources, rollout = config.resources, config.rollout
    model = {name: getattr(config.model, name) for name in ("template", "context_tokens", "dtype")}
    generation = {"max_new_tokens": rollout.max_new_tokens, "temperature": rollout.temperature}
    training = {"workers": resources.train.workers}
    algorithm = part.removeprefix("rl/")
    asks = any(has(config, stage) for stage in ("sample", "rl", "evaluate"))
    rl = config.rl.model_dump(
        mode="json", exclude={"algorithms", "monitor", "save_rollouts", *ALGORITHMS}
    )
    # The same up to rounding.
    rl |= {"old_logprobs": "trainer"} if rl["old_logprobs"] == "auto" else {}
    sources = [
        source.model_dump(mode="json", exclude={"key", "parallel", "timeout_s"})
        for source in config.scoring.sources
    ]
    scoring = {"sources": sources, "functions": config.scoring.functions}
    table: dict[str, dict[str, Any]] = {
        "prepare": {
            "model": config.model,
            "data": config.data,
            "judge": _divides_for(config),
            **({"max_new_tokens": rollout.max_new_tokens} if asks else {}),
            "long_conversations": config.sft.long_conversations,
            "quality": config.sft.quality,
        },
        "sft": {"model": config.model, "sft": config.sft} | training,
        "reward": {"model": model, "reward": config.reward} | training,
        "sample": {
            "model": model,
            "sample": config.sample,
            "max_new_tokens": rollout.max_new_tokens,
        }
        | {"scoring": scoring}
        | training,
        "dpo": {"model": model, "dpo": config.dpo} | training,
        f"rl/{algorithm}": {
            "model": model,
            "rl": rl,
            algorithm: getattr(config.rl, algorithm, None),
            "rollout": generation,
            "scoring": scoring,
            "workers": [resources.policy.workers, resources.critic.workers],
        },
        "evaluate": {
            "model": model,
            "evaluate": config.evaluate,
            "max_new_tokens": rollout.max_new_tokens,
        }
        | ({"scoring": scoring} if config.evaluate.judge == "scoring" else {}),
        "publish": {"model": model, "publish": config.publish},
    }
    found = table[part] | ({"seed": config.seed} if part != "publish" else {})
    return {name: _deciding(value) for name, value in found.items()}


def _divides_for(config: Config) -> str:
    """The judge for which prepare divides the rows: one that is trained has a share, all others
    leave them as gold.
    """
    return "reward_model" if trains_judge(config) else "gold"


def _deciding(value: Any) -> Any:
    """Settings as plain values, without those of SPEED, and of LATER where they are as they
    were.
    """
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    if not isinstance(plain, dict):
        return plain
    # A look alone changes nothing.
    unused = (*SPEED, *(["validate_every"] if plain.get("keep") == "last" else []))
    kept = {
        name: inner
        for name, inner in plain.items()
        if name not in unused and inner != LATER.get(name, ...)
    }
    # Names of people's.
    return {name: inner if name == "models" else _deciding(inner) for name, inner in kept.items()}


def followers(part: str) -> tuple[str, ...]:
    """A part and all that follows from it, in the order of the road."""
    return tuple(name for name in INPUTS if name == part or part in INPUTS[name])
