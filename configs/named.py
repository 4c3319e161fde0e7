"""The models that a config names, by the setting that names each and the stage that uses it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rayward.configs.schema import Config
from rayward.configs.stages import JUDGES, START, compared, first_model, has

CRITICS = ("reward", "policy")
"""What rl.critic may say in place of a folder."""


@dataclass(frozen=True)
class NamedModel:
    """A model that a setting names for a stage.

    `scores`: it has to be a reward model, or else a language model (None: either).
    `with_tokenizer`: its tokenizer is read too. `known`: words that the setting takes in place of a
    model.
    """

    stage: str
    setting: str
    model: str
    scores: bool | None
    with_tokenizer: bool = True
    known: tuple[str, ...] = ()


def named_models(config: Config) -> list[NamedModel]:
    """All of them, of the stages that a config has."""
    return [named for named in _named(config) if has(config, named.stage)]


def _named(config: Config) -> Iterator[NamedModel]:
    rl, evaluate = config.rl, config.evaluate
    if config.model.path:
        starts: tuple[str, ...] = ("dpo",) if config.dpo.start == "base" else ()
        if first_model(config) == START:
            starts = ("reward", "sample", "dpo", "rl")
        judged = ("evaluate",) if has(config, "evaluate") and START in compared(config) else ()
        for stage in ("prepare", "sft", *starts, *judged):
            yield NamedModel(stage, "model.path", config.model.path, False)
    if config.reward.path:
        yield NamedModel("reward", "reward.path", config.reward.path, None, with_tokenizer=False)
    for stage in ("sample", "rl", "evaluate"):
        for path in (path for source in config.scoring.sources for path in source.paths):
            yield NamedModel(stage, "scoring.sources paths", path, True)
    if rl.critic not in (None, *CRITICS):
        yield NamedModel("rl", "rl.critic", str(rl.critic), True, known=CRITICS)
    if rl.monitor.second:  # where it is null, the judge of evaluate is looked at below
        yield NamedModel("rl", "rl.monitor.second", rl.monitor.second, True)
    if evaluate.judge not in JUDGES:
        yield NamedModel("evaluate", "evaluate.judge", evaluate.judge, True, known=JUDGES)
    for name, path in evaluate.models.items():
        yield NamedModel("evaluate", f"evaluate.models.{name}", path, False)
