"""What a config means in numbers: optimizer steps, answers and actors, computed without starting anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from configs.machines import Role
from configs.rl import WITH_CRITIC, AlgorithmName
from configs.schema import Config

STAGES = ("prepare", "sft", "reward", "sample", "dpo", "rl", "evaluate", "publish")

ALGORITHMS: tuple[str, ...] = get_args(AlgorithmName)
RL_PARTS = tuple(f"rl/{name}" for name in ALGORITHMS)

MODELS = {"sft": "sft", "rejection": "sample", "dpo": "dpo"} | dict(zip(ALGORITHMS, RL_PARTS, strict=True))
"""Where each model that can be evaluated and published is made."""


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


def arithmetic_lines(config: Config) -> list[str]:
    """The RL batch arithmetic as one readable block."""
    rl, numbers = config.rl, rl_arithmetic(config, config.rl.algorithms[0])
    steps = {name: rl_arithmetic(config, name).policy_steps for name in rl.algorithms}
    policy = str(numbers.policy_steps)
    if len(set(steps.values())) > 1:
        policy = " or ".join(f"{count} ({name})" for name, count in steps.items())
    return [
        f"prompts per iteration {rl.prompts_per_iteration} x samples per prompt {rl.samples_per_prompt} "
        f"= {numbers.answers_per_iteration} answers per iteration",
        f"{numbers.answers_per_iteration} answers / {rl.samples_per_step} samples per optimizer step "
        f"= {numbers.steps_per_epoch} steps per epoch x {rl.epochs} epochs = {numbers.steps_per_iteration} a round",
        f"x {rl.iterations} iterations = {numbers.answers} answers, {policy} policy steps, "
        f"{numbers.critic_steps} critic steps where there is one, for each of: {', '.join(rl.algorithms)}",
        f"micro-batches of at most {rl.optimizer.micro_batch_tokens} padded tokens a rank",
    ]


def roles(config: Config, stage: str) -> dict[str, Role]:
    """The actors that a stage starts, by role."""
    resources = config.resources
    models = sum(max(1, len(source.paths)) for source in config.scoring.sources if source.kind == "model")
    own_reference = any(has_reference(config, name) for name in config.rl.algorithms)
    scorers = {f"reward_{number}" if number else "reward": resources.reward for number in range(models)}
    return {
        "prepare": {},
        "sft": {"train": resources.train},
        "reward": {"train": resources.train},
        "sample": {"rollout": resources.rollout, **scorers, "train": resources.train},
        "dpo": {"train": resources.train},
        "rl": {
            "policy": resources.policy,
            **({"critic": resources.critic} if set(config.rl.algorithms) & set(WITH_CRITIC) else {}),
            **({"reference": resources.reference} if own_reference else {}),
            **scorers,
            "rollout": resources.rollout,
            **({"second": resources.reward} if second_model(config) else {}),
        },
        "evaluate": {
            "rollout": resources.rollout,
            "reference": resources.reference,
            "candidate": resources.reference,
            **({} if any(source.kind in ("http", "judge") for source in config.scoring.sources) else scorers),
            **({"judge": resources.reward} if config.evaluate.judge == "reward_model" else {}),
        },
        "publish": {
            "serve": resources.rollout.model_copy(update={"workers": config.publish.replicas, "cpus": 1.0}),
        },
    }[stage]


MAX_MISMATCH = {"float32": 1e-4, "bfloat16": 0.05}
"""Mean gap between rollout and trainer log-probs of a token that stops a run, in nats; right weights: 1e-6 in fp32."""


def max_mismatch(config: Config) -> float:
    """What rl.max_mismatch means for the model's dtype."""
    return config.rl.max_mismatch or MAX_MISMATCH[config.model.dtype]


def has_reference(config: Config, algorithm: str) -> bool:
    """Whether RL asks a reference model of its own: not where nothing needs it, nor where it is the bare policy."""
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

    Those of an engine whose weights are proved to be the trainer's differ from the trainer's by rounding, which in fp32
    is far below what a loss can see.
    """
    rl = config.rl
    if rl.old_logprobs != "auto":
        return rl.old_logprobs
    corrected = rl.importance_cap != type(rl).model_fields["importance_cap"].default  # only the trainer's can be
    equal = rl.mode != "one_step_off" and config.model.dtype == "float32"
    return "rollout" if equal and not corrected else "trainer"


def second_model(config: Config) -> bool:
    """Whether a reward model that nothing is trained on watches RL: rl.monitor.second, or the run's own judge."""
    return bool(config.rl.monitor.second) or config.evaluate.judge == "reward_model"


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
"""What each part of the road may read of the others. Evaluate and publish take the models that are there."""


def inputs(config: Config, part: str) -> tuple[str, ...]:
    """Those of INPUTS that a part needs under this config: RL can do without a reward model of the run."""
    own_model = any(source.kind == "model" and not source.paths for source in config.scoring.sources)
    needed = own_model or part.removeprefix("rl/") in WITH_CRITIC or part not in RL_PARTS
    return tuple(name for name in INPUTS[part] if needed or name != "reward")


SPEED = ("micro_batch_tokens", "gradient_checkpointing", "offload", "packing", "shared_prompts", "sequence_parallel")
"""Settings of training that change speed and memory, never the result."""
LATER = {"sft_heldout_fraction": 0.02}
"""Settings that came after runs had been made, with what those had: at it they decide nothing new."""


def decisive(config: Config, part: str) -> dict[str, Any]:
    """The settings that decide the result of a stage (or of `rl/ppo` and `rl/apa`), as plain values.

    Of what only changes speed, memory or place there is nothing in them.
    """
    resources, rollout = config.resources, config.rollout
    model = {name: getattr(config.model, name) for name in ("template", "context_tokens", "dtype")}
    generation = {"max_new_tokens": rollout.max_new_tokens, "temperature": rollout.temperature}
    training = {"workers": resources.train.workers}
    algorithm = part.removeprefix("rl/")
    rl = config.rl.model_dump(mode="json", exclude={"algorithms", "monitor", "save_rollouts", *ALGORITHMS})
    rl |= {"old_logprobs": "trainer"} if rl["old_logprobs"] == "auto" else {}  # the same up to rounding
    sources = [source.model_dump(mode="json", exclude={"key", "parallel", "timeout_s"}) for source in
               config.scoring.sources]  # fmt: skip
    scoring = {"sources": sources, "functions": config.scoring.functions}
    table: dict[str, dict[str, Any]] = {
        "prepare": {
            "model": config.model,
            "data": config.data,
            "judge": config.evaluate.judge,
            "max_new_tokens": rollout.max_new_tokens,
            "long_conversations": config.sft.long_conversations,
            "quality": config.sft.quality,
        },
        "sft": {"model": config.model, "sft": config.sft} | training,
        "reward": {"model": model, "reward": config.reward} | training,
        "sample": {"model": model, "sample": config.sample, "max_new_tokens": rollout.max_new_tokens}
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
        "evaluate": {"model": model, "evaluate": config.evaluate, "max_new_tokens": rollout.max_new_tokens},
        "publish": {"model": model, "publish": config.publish},
    }
    found = table[part] | ({"seed": config.seed} if part != "publish" else {})
    return {name: _deciding(value) for name, value in found.items()}


def _deciding(value: Any) -> Any:
    """Settings as plain values, without those of SPEED, and of LATER where they are as they were."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    if not isinstance(plain, dict):
        return plain
    kept = {name: inner for name, inner in plain.items() if name not in SPEED and inner != LATER.get(name, ...)}
    return {name: _deciding(inner) for name, inner in kept.items()}


def followers(part: str) -> tuple[str, ...]:
    """A part and all that follows from it, in the order of the road."""
    return tuple(name for name in INPUTS if name == part or part in INPUTS[name])


def parts(config: Config, stage: str) -> tuple[str, ...]:
    """What a stage is finished in: itself, one part an algorithm, or nothing where it is left out."""
    if stage == "rl":
        return tuple(f"rl/{name}" for name in config.rl.algorithms)
    return () if stage == "dpo" and config.dpo is None else (stage,)


def models(config: Config) -> dict[str, str]:
    """The models of a config and the parts that make them."""
    made = {part for stage in STAGES for part in parts(config, stage)}
    return {name: part for name, part in MODELS.items() if part in made}


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
        "dpo": f"{config.dpo.loss}, beta {config.dpo.beta:g}, on the {config.dpo.data}, from {config.dpo.start}"
        if config.dpo
        else "left out: the config has no dpo section",
        "rl": f"{', '.join(config.rl.algorithms)}: {config.rl.iterations} iterations, {config.rl.mode}",
        "evaluate": f"{config.evaluate.prompts} held-out prompts, judge: {config.evaluate.judge}",
        "publish": f"Ray Serve, model: {config.publish.model}, port {config.publish.port}",
    }[stage]
