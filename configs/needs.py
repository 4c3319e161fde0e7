"""What the stages of a config need: data, a reward, models with names. All is told at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from rayward.configs.schema import Config
from rayward.configs.sections.suites import RUN_JUDGES
from rayward.configs.sections.training import Dpo, Supervised
from rayward.configs.stages import (
    MODELS,
    STAGES,
    START,
    baseline,
    compared,
    has,
    learns_labels,
    models,
    own_reward,
    takes_samples,
    trains_judge,
)

REWARD = "`scoring: {sources: [{kind: model, paths: [DIR]}]}`"

FEW_PROMPTS = 16
"""Of so many the 95 % interval of a win rate may be 2 x 1.96 x 0.5 / sqrt(16) = 0.49 wide."""


def lists_read(config: Config) -> dict[str, list[str]]:
    """The lists of data that the stages of a config read, and the stages that read each."""
    read = {
        "sft": ("conversations",),
        "reward": ("preferences",),
        "sample": ("prompts",),
        "dpo": ("preferences",) if config.dpo.data == "preferences" else (),
        "rl": ("prompts",),
        "evaluate": ("evaluation_prompts",),
    }
    readers: dict[str, list[str]] = {}
    for stage, names in read.items():
        for name in names if has(config, stage) else ():
            readers.setdefault(name, []).append(stage)
    return readers


def least_rows(config: Config) -> dict[str, int]:
    """The fewest rows of each file of the prepare stage with which the stages of a config can work.

    More may be wanted: see `few_rows`.
    """
    read = lists_read(config)
    # KTO takes rankings as well as labelled answers, and can do without either: configs/labels.py.
    by_label = learns_labels(config)
    least = {
        "conversations": int("conversations" in read),
        "rankings": int("preferences" in read and (has(config, "reward") or not by_label)),
        "prompts": int("prompts" in read),
        "evaluation_prompts": int("evaluation_prompts" in read),
        # Its rows come of the rankings too, but are needed only where a judge is trained.
        "judge": int(trains_judge(config)),
        "sft_heldout": int(
            (has(config, "sft") and _validates(config.sft))
            or (has(config, "sample") and _validates(config.sample.training))
        ),
        # A reward model whose accuracy nobody knows is of no use.
        "heldout": int(
            has(config, "reward")
            or (has(config, "dpo") and _validates(config.dpo) and not by_label)
        ),
    }
    # A number that the config gives is meant; the default is as many as there are.
    if has(config, "evaluate") and "prompts" in config.evaluate.model_fields_set:
        least["evaluation_prompts"] = config.evaluate.prompts
    return least


def _validates(training: Supervised | Dpo) -> bool:
    """Whether training looks at held-out rows before its end; it does where it keeps the best."""
    return training.validate_every > 0


def few_rows(config: Config, rows: Mapping[str, int]) -> Iterator[str]:
    """What to know of a run whose files of the prepare stage have so few `rows`."""
    read = lists_read(config)
    for name, source in (("sft_heldout", "conversations"), ("heldout", "preferences")):
        readers = read.get(source, [])
        # Labelled answers are held out too, for who learns from them.
        if name == "heldout" and learns_labels(config) and rows.get("labelled_heldout"):
            readers = [stage for stage in readers if stage != "dpo"]
        if readers and not rows[name]:
            yield (
                f"data.{source}: no row is held out, so {' and '.join(readers)} will not say "
                "how well it does on rows that it was not trained on"
            )
    answered = min(rows["evaluation_prompts"], config.evaluate.prompts)
    if has(config, "evaluate") and answered < config.evaluate.prompts:
        yield (
            f"evaluate answers the {answered} prompts of data.evaluation_prompts that are left; "
            f"evaluate.prompts is {config.evaluate.prompts}"
        )
    if has(config, "evaluate") and answered < FEW_PROMPTS:
        yield f"evaluate: a win rate on {answered} prompts says little; look at its interval"


def needs(config: Config) -> None:
    """Raise ValueError with a line for each thing that is missing, and what to add."""
    missing = [
        *_data(config),
        *_validation(config),
        *_reward(config),
        *_judge(config),
        *_names(config),
    ]
    if missing:
        raise ValueError("\n".join([*missing, *_unnamed(config)]))


def _unnamed(config: Config) -> Iterator[str]:
    """The stages that run since nobody says otherwise."""
    if others := [
        stage for stage in STAGES[1:] if has(config, stage) and stage not in config.model_fields_set
    ]:
        yield (
            f"stages that the config does not name run too: {', '.join(others)}; `{others[0]}: "
            "null` leaves one out"
        )


def _data(config: Config) -> Iterator[str]:
    if config.data.toyworld:
        return
    for name, stages in lists_read(config).items():
        if not getattr(config.data, name):
            left_out = " and ".join(f"`{stage}: null`" for stage in stages)
            yield (
                f"data.{name} lists no source, and {' and '.join(stages)} "
                f"read{'s' * (len(stages) == 1)} it: add `{name}: [{{path: FILE}}]` to data, or "
                f"leave out what reads it with {left_out}"
            )


def _validation(config: Config) -> Iterator[str]:
    if config.data.toyworld:
        return
    validates = has(config, "sample") and config.sample.training.validate_every
    if validates and not config.data.conversations:
        yield (
            "sample.training.validate_every looks at held-out conversations: add `conversations: "
            "[{path: FILE}]` to data, or leave it 0"
        )
    if has(config, "dpo") and config.dpo.validate_every and not config.data.preferences:
        yield (
            "dpo.validate_every looks at held-out rankings: add `preferences: [{path: FILE}]` to "
            "data, or leave it 0"
        )


def _reward(config: Config) -> Iterator[str]:
    asks = [stage for stage in ("sample", "rl") if has(config, stage)]
    if asks and own_reward(config) and not has(config, "reward"):
        yield (
            f"{' and '.join(asks)} want{'s' * (len(asks) == 1)} a reward, stage reward is left "
            f"out, and a source of scoring.sources takes its model: add {REWARD} or a function, "
            "http or judge source, or give a reward section"
        )
    if has(config, "rl") and config.rl.critic == "reward" and not has(config, "reward"):
        yield (
            "rl.critic reward is the run's own reward model, and reward is left out: give its "
            "folder, or policy"
        )
    if has(config, "dpo") and takes_samples(config) and not has(config, "sample"):
        yield (
            "dpo takes what stage sample makes (dpo.data, dpo.start), and sample is left out: "
            "give a sample section, or dpo.data: preferences and dpo.start: sft"
        )


def _judge(config: Config) -> Iterator[str]:
    judge = config.evaluate.judge
    if not has(config, "evaluate"):
        return
    if judge == "gold" and config.data.toyworld is None:
        yield (
            "evaluate.judge gold exists only in data.toyworld; use reward_model with your own data"
        )
    if judge == "reward_model" and not has(config, "reward"):
        yield (
            "evaluate.judge reward_model is a second reward model that stage reward trains, and "
            "reward is left out: add `judge: DIR` (a reward model's folder) or `judge: scoring` "
            "(the reward itself) to evaluate, or leave it out with `evaluate: null`"
        )
    if judge == "scoring" and own_reward(config) and not has(config, "reward"):
        yield (
            "evaluate.judge scoring asks scoring.sources, whose model stage reward would train: "
            f"add {REWARD}"
        )
    for suite in config.evaluate.suites:
        if suite.judge in RUN_JUDGES and not has(config, "reward"):
            yield (
                f"evaluate.suites {suite.name}: judge {suite.judge} is what stage reward trains, "
                "and reward is left out"
            )
        if suite.judge == "reward_model" and has(config, "reward") and not trains_judge(config):
            yield (
                f"evaluate.suites {suite.name}: judge reward_model is a second reward model, which "
                "is trained with `judge: reward_model` of evaluate only; use reward, or that"
            )
    if len(compared(config)) < 2:
        yield (
            f"evaluate has nothing to compare with {baseline(config)}: add `models: "
            f"{{NAME: DIR}}` to evaluate, a stage that trains, or `evaluate: null`"
        )


def _names(config: Config) -> Iterator[str]:
    given = config.evaluate.models
    if taken := sorted({*MODELS, START, "best"} & set(given)):
        yield (
            f"evaluate.models calls one {taken[0]!r}, which is a model of the road; give it "
            "another name"
        )
    if odd := [name for name in given if not re.fullmatch(r"[\w.-]+", name)]:
        yield f"evaluate.models calls one {odd[0]!r}; a name is letters, digits, dots and dashes"
    known = (START, *models(config), *given)
    if config.evaluate.against not in (None, *known):
        yield (
            f"evaluate.against is {config.evaluate.against}, but the models are {', '.join(known)}"
        )
    model = config.publish.model
    if model in ("best", *known):
        return
    stage = MODELS.get(model, "").split("/")[0]
    if not stage:
        yield f"publish.model is {model}, but the models are {', '.join(known)}"
    elif has(config, stage):
        yield (
            f"publish.model is {model}, which rl.algorithms ({', '.join(config.rl.algorithms)}) "
            "does not train"
        )
    else:
        yield (
            f"publish.model is {model}, which this config does not train; give a {stage} section, "
            f"at least {{}}"
        )
