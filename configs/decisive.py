"""The settings that decide a stage's result: a stage that is complete under the same is not run
again.

Compare `rayward.pipelines.run.stage`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from rayward.configs.schema import Config
from rayward.configs.sections.data import LISTS, Data
from rayward.configs.stages import ALGORITHMS, has, trains_judge

SPEED_SETTINGS = (
    "micro_batch_tokens",
    "gradient_checkpointing",
    "offload",
    "packing",
    "shared_prompts",
    "sequence_parallel",
    "processes",
)
"""Settings that change speed and memory, never the result."""
LATER_SETTINGS = {
    "sft_heldout_fraction": 0.02,
    "models": {},
    "against": None,
    "labelled": None,
    "labelled_pairs": 200,
    "critic": None,
    "trust_remote_code": False,
    "validate_every": 0,
    "keep": "last",
    "extra_prompts": 0,
    "temperature": None,
    "decontaminate": None,
    "ignore": [],
    "imitate_good": False,
    "objective": "dpo",
    "ipo": {"length_average": False},
    "kto": {"desirable_weight": 1.0, "undesirable_weight": 1.0},
    "simpo": {"beta": 2.0, "gamma": 1.0},
    "orpo": {"lam": 0.1},
}
"""Settings that runs of earlier versions lack, with the value that those runs had. At this value
they are left out, so that an earlier run is still taken as complete."""

LATER_SOURCE_SETTINGS: dict[str, Any] = {
    "fields": {},
    "roles": {},
    "weight": None,
    "epochs": None,
}
"""The same of a source of data."""


def decisive(config: Config, part: str) -> dict[str, Any]:
    """The settings that decide the result of a stage (or of `rl/ppo`, `rl/apa`), as plain values.

    Of what only changes speed, memory or place there is nothing in them.
    """
    resources, rollout = config.resources, config.rollout
    model = {name: getattr(config.model, name) for name in ("template", "context_tokens", "dtype")}
    generation = {"max_new_tokens": rollout.max_new_tokens, "temperature": rollout.temperature}
    training = {"workers": resources.train.workers}
    if part.startswith("evaluate/"):
        return _of_suite(config, part)
    algorithm = part.removeprefix("rl/")
    asks = any(has(config, stage) for stage in ("sample", "rl", "evaluate"))
    rl = config.rl.model_dump(
        mode="json", exclude={"algorithms", "monitor", "save_rollouts", *ALGORITHMS}
    )
    # "auto" may mean either, but both are the same up to rounding.
    rl |= {"old_logprobs": "trainer"} if rl["old_logprobs"] == "auto" else {}
    sources = [
        # Who pays, and how fast: a score depends on neither.
        source.model_dump(mode="json", exclude={"key", "parallel", "timeout_s"})
        for source in config.scoring.sources
    ]
    scoring = {"sources": sources, "functions": config.scoring.functions}
    # null may mean another, but earlier runs say so of this machine's own.
    publish = config.publish.model_dump(mode="json")
    publish["host"] = publish["host"] or "127.0.0.1"
    table: dict[str, dict[str, Any]] = {
        "prepare": {
            "model": config.model,
            "data": _data(config.data),
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
            "scoring": scoring,
        }
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
            # Suites are parts of their own.
            "evaluate": config.evaluate.model_dump(mode="json", exclude={"suites"}),
            "max_new_tokens": rollout.max_new_tokens,
        }
        | ({"scoring": scoring} if config.evaluate.judge == "scoring" else {}),
        "publish": {"model": model, "publish": publish},
    }
    settings = table[part] | ({"seed": config.seed} if part != "publish" else {})
    return {name: _deciding(value) for name, value in settings.items()}


def _of_suite(config: Config, part: str) -> dict[str, Any]:
    """The settings that decide the result of a suite."""
    suite = next(suite for suite in config.evaluate.suites if suite.part == part)
    evaluate = config.evaluate
    asked = {"labelled": evaluate.labelled, "labelled_pairs": evaluate.labelled_pairs}
    return {
        "suite": suite.model_dump(mode="json"),
        # Of pairwise alone, whose judge is held against them.
        **(asked if suite.kind == "pairwise" else {}),
        "against": evaluate.against,
        "template": config.model.template,
        "context_tokens": config.model.context_tokens,
        "seed": config.seed,
    }


def without_layout(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's settings without numbers of ranks and ZeRO stages, which change its last bits only.

    They are in `decisive` since it makes fingerprints, which must stay those of earlier runs.
    """
    plain = {name: value for name, value in settings.items() if name != "workers"}
    return {name: _without_zero(value) for name, value in plain.items()}


def _without_zero(value: Any) -> Any:
    """Settings whose optimizers, on any floor, have no zero_stage."""
    if not isinstance(value, dict):
        return value
    plain = {name: _without_zero(inner) for name, inner in value.items()}
    if isinstance(optimizer := plain.get("optimizer"), dict):
        others = {key: inner for key, inner in optimizer.items() if key != "zero_stage"}
        plain["optimizer"] = others
    return plain


def _data(data: Data) -> dict[str, Any]:
    """The settings of the data, whose sources have no LATER_SOURCE_SETTINGS at their old value."""
    plain = data.model_dump(mode="json")
    for name in LISTS:
        plain[name] = [
            {
                key: value
                for key, value in source.items()
                if value != LATER_SOURCE_SETTINGS.get(key, ...)
            }
            for source in plain[name]
        ]
    return plain


def _divides_for(config: Config) -> str:
    """The judge for which prepare divides the rows; only one that is trained has a share."""
    return "reward_model" if trains_judge(config) else "gold"


def _deciding(value: Any) -> Any:
    """Settings as plain values without SPEED_SETTINGS, and LATER_SETTINGS at their old value."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    if isinstance(plain, list):  # of sources, for one
        return [_deciding(inner) for inner in plain]
    if not isinstance(plain, dict):
        return plain
    # With keep: last, looking at held-out rows decides nothing.
    unused = (*SPEED_SETTINGS, *(["validate_every"] if plain.get("keep") == "last" else []))
    kept = {
        name: inner
        for name, inner in plain.items()
        if name not in unused and inner != LATER_SETTINGS.get(name, ...)  # ... equals no setting
    }
    # The keys of `models` are names that people chose: one may be that of a setting.
    return {name: inner if name == "models" else _deciding(inner) for name, inner in kept.items()}
