"""The stages of the road: which of them a config has, in what parts, and the models they make."""

from __future__ import annotations

from rayward.configs.schema import Config
from rayward.configs.sections.algorithms import RECIPES

STAGES = ("prepare", "sft", "reward", "sample", "dpo", "rl", "evaluate", "publish")
ALGORITHMS: tuple[str, ...] = tuple(RECIPES)
RL_PARTS = tuple(f"rl/{name}" for name in ALGORITHMS)

START = "start"
"""Name of the model that a run starts from, beside those that it makes."""
MODELS = {"sft": "sft", "rejection": "sample", "dpo": "dpo"} | dict(
    zip(ALGORITHMS, RL_PARTS, strict=True)
)
"""Where each model that can be evaluated and published is made."""


JUDGES = ("gold", "reward_model", "scoring")
"""What evaluate.judge may say in place of a reward model's folder."""
JUDGES_WITHOUT_ACTORS = ("gold", "scoring")
"""Those of them that take no model of their own to the cluster."""


def has(config: Config, stage: str) -> bool:
    """Whether a config has this stage; prepare always."""
    return stage == "prepare" or not getattr(config, stage).left_out


def parts(config: Config, stage: str) -> tuple[str, ...]:
    """What a stage is finished in: itself, one part an algorithm, or nothing if it is left out."""
    if not has(config, stage):
        return ()
    return tuple(f"rl/{name}" for name in config.rl.algorithms) if stage == "rl" else (stage,)


def suite_parts(config: Config) -> tuple[str, ...]:
    """The parts `evaluate/NAME` of the suites that a config has."""
    if not has(config, "evaluate"):
        return ()
    return tuple(suite.part for suite in config.evaluate.suites)


def all_parts(config: Config) -> set[str]:
    """The parts of all stages that a config has."""
    return {part for stage in STAGES for part in parts(config, stage)}


def models(config: Config) -> dict[str, str]:
    """The models that a config makes, in the order of the road, and the parts that make them."""
    made = all_parts(config)
    return {name: part for name, part in MODELS.items() if part in made}


def first_model(config: Config) -> str:
    """Name of the model that sampling, DPO and RL start from, which is their reference too."""
    return "sft" if has(config, "sft") else START


def baseline(config: Config) -> str:
    """Name of the model that evaluate compares the others with."""
    return config.evaluate.against or first_model(config)


def compared(config: Config) -> tuple[str, ...]:
    """Names of the models that evaluate asks: baseline, first, those made, those given."""
    names = (baseline(config), first_model(config), *models(config), *config.evaluate.models)
    return tuple(dict.fromkeys(names))  # each once, the baseline first


def trains_judge(config: Config) -> bool:
    """Whether stage reward trains a second reward model, on rankings that the first never sees."""
    return (
        has(config, "reward")
        and has(config, "evaluate")
        and config.evaluate.judge == "reward_model"
    )


def takes_samples(config: Config) -> bool:
    """Whether DPO learns from, or starts at, what rejection sampling made."""
    return config.dpo.data == "samples" or config.dpo.start == "sample"


def learns_labels(config: Config) -> bool:
    """Whether a stage learns from answers that are each good or bad."""
    return has(config, "dpo") and config.dpo.objective == "kto"


def own_reward(config: Config) -> bool:
    """Whether a source of reward is the run's own reward model."""
    return any(source.kind == "model" and not source.paths for source in config.scoring.sources)
