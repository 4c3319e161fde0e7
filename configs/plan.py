"""What a config means: optimizer steps, answers, actors, and what stages read of each other.

Nothing is started for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rayward.configs.schema import Config
from rayward.configs.sections.algorithms import WITH_CRITIC
from rayward.configs.sections.machines import Role
from rayward.configs.sections.suites import RUN_JUDGES
from rayward.configs.stages import (
    JUDGES,
    JUDGES_WITHOUT_ACTORS,
    RL_PARTS,
    all_parts,
    has,
    models,
    own_reward,
    suite_parts,
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
        answers_per_iteration=answers,
        steps_per_epoch=steps_per_epoch,
        steps_per_iteration=steps,
        # The learning rate's schedule counts these, so warm-up iterations of the critic are out.
        policy_steps=steps * (rl.iterations - warmup),
        critic_steps=steps * rl.iterations,
        answers=answers * rl.iterations,
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
    # A source without paths holds one model: that of stage reward.
    scorers = {scorer(number): resources.reward for number in range(models)}
    rl_roles = {"policy": resources.policy}
    if set(config.rl.algorithms) & set(WITH_CRITIC):
        rl_roles["critic"] = resources.critic
    if any(has_reference(config, name) for name in config.rl.algorithms):
        rl_roles["reference"] = resources.reference
    rl_roles |= scorers | {"rollout": resources.rollout}
    if second_model(config):
        rl_roles["second"] = resources.reward
    evaluate_roles = {
        "rollout": resources.rollout,
        "reference": resources.reference,
        "candidate": resources.reference,
    }
    if asks_reward(config):
        evaluate_roles |= scorers
    if config.evaluate.judge not in JUDGES_WITHOUT_ACTORS:
        evaluate_roles["judge"] = resources.reward
    serve = serving(config)
    return {
        "prepare": {},
        "sft": {"train": resources.train},
        "reward": {"train": resources.train},
        "sample": {"rollout": resources.rollout, **scorers, "train": resources.train},
        "dpo": {"train": resources.train},
        "rl": rl_roles,
        "evaluate": evaluate_roles,
        "publish": {"serve": serve},
    }[stage]


def scorer(number: int) -> str:
    """The role of a reward model among those of scoring.sources, which count from 0."""
    return f"reward_{number}" if number else "reward"


def sharing(config: Config) -> dict[str, Role]:
    """With rl.mode colocate the roles that take turns on a GPU, else none.

    A critic without GPUs stands elsewhere.
    """
    if config.rl.mode != "colocate":
        return {}
    named = {name: getattr(config.resources, name) for name in ("rollout", "policy", "critic")}
    return {name: role for name, role in named.items() if role.gpus}


def serving(config: Config) -> Role:
    """The replicas of the endpoint: an engine has whole GPUs and a CPU for each of them, and what
    stands before it takes a part of one more (cluster/serve/deploy.py).
    """
    rollout = config.resources.rollout
    gpus = max(1, int(rollout.gpus)) if rollout.gpus else 0
    return rollout.model_copy(
        update={"workers": config.publish.replicas, "cpus": 1.0 + gpus, "gpus": float(gpus)}
    )


MAX_MISMATCH = {"float32": 1e-4, "bfloat16": 0.05}
"""Mean gap between rollout and trainer log-probs of a token that stops a run, in nats.

With the right weights it is 1e-6 in fp32.
"""


def max_mismatch(config: Config) -> float:
    """What rl.max_mismatch means for the model's dtype."""
    return config.rl.max_mismatch or MAX_MISMATCH[config.model.dtype]


def has_reference(config: Config, algorithm: str) -> bool:
    """Whether RL asks a reference model of its own: with LoRA the bare policy is the reference."""
    return wants_reference(config, algorithm) and config.rl.lora is None


def wants_reference(config: Config, algorithm: str) -> bool:
    """Whether log-probs of the reference are computed: to learn from, or to watch the KL."""
    return config.rl.monitor.kl or config.rl.settings_of(algorithm).needs_reference


def asks_reference(config: Config, algorithm: str, iteration: int) -> bool:
    """Whether an iteration computes them: each that learns from them, and else now and then."""
    due = in_turn(config, config.rl.monitor.kl_every, iteration)
    return config.rl.settings_of(algorithm).needs_reference or (config.rl.monitor.kl and due)


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
    # A cap that was set asks for weights between trainer and engine, which need the trainer's.
    corrected = rl.importance_cap != type(rl).model_fields["importance_cap"].default
    # In one_step_off the engine's weights are older; in bf16 rounding is not far below the ratio.
    equal = rl.mode != "one_step_off" and config.model.dtype == "float32"
    return "rollout" if equal and not corrected else "trainer"


def second_model(config: Config) -> bool:
    """Whether a reward model that nothing is trained on watches RL: a given one, or the judge."""
    return bool(given_second(config)) or trains_judge(config)


def given_second(config: Config) -> str | None:
    """The given one: rl.monitor.second, or evaluate's judge where it is a folder and no source."""
    judge = config.evaluate.judge if has(config, "evaluate") else JUDGES[0]
    sources = [path for source in config.scoring.sources for path in source.paths]
    return config.rl.monitor.second or (judge if judge not in (*JUDGES, *sources) else None)


def critic_start(config: Config) -> str:
    """Where the critic starts: "reward" (the run's), "policy" (with a new head), or a folder."""
    if config.rl.critic:
        return config.rl.critic
    if has(config, "reward"):
        return "reward"
    given = [path for source in config.scoring.sources for path in source.paths]
    return given[0] if given else "policy"


def asks_reward(config: Config) -> bool:
    """Whether evaluate asks the sources of reward.

    Services and judges cost: they are asked only where they are the judge of evaluate.
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
"""What each part of the road may read; evaluate and publish take the models that are there."""


def inputs(config: Config, part: str) -> tuple[str, ...]:
    """Those of INPUTS that a config makes and a part needs.

    RL can do without a reward model of the run, DPO without its samples. A suite of evaluate takes
    models, and perhaps a reward model as judge.
    """
    if part in suite_parts(config):
        suite = next(suite for suite in config.evaluate.suites if suite.part == part)
        scored = ("reward",) if suite.judge in RUN_JUDGES else ()
        return (*scored, *models(config).values())
    unused: set[str] = set()
    from_reward = part.removeprefix("rl/") in WITH_CRITIC and critic_start(config) == "reward"
    if (part in RL_PARTS or part == "sample") and not (own_reward(config) or from_reward):
        unused = {"reward"}
    if part == "dpo":
        unused = set() if takes_samples(config) else {"sample"}
        if config.dpo.start == "base" and config.dpo.data == "preferences":
            unused.add("sft")
    return tuple(name for name in INPUTS[part] if name in all_parts(config) - unused)


def followers(part: str) -> tuple[str, ...]:
    """A part and all that follows from it, in the order of the road."""
    return tuple(name for name in INPUTS if name == part or part in INPUTS[name])
