"""Alarms of RL: limits of rl.monitor that the figures of an iteration cross, and what each says."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rayward.configs.sections import rl

MEANINGS = {
    "max_kl": (
        "the policy is {value:.3g} nats an answer from the reference: the reward model may never "
        "have seen such answers"
    ),
    "max_length_ratio": (
        "answers got {value:.3g} times as long as at the start: the reward may favour length"
    ),
    "min_length_ratio": (
        "answers shrank to {value:.0%} of their length at the start: the reward may favour saying "
        "less"
    ),
    "max_truncated": (
        "{value:.0%} of the answers were cut at rollout.max_new_tokens: the limit is low, or the "
        "policy forgets to stop"
    ),
    "max_repetition": (
        "{value:.0%} of an answer's 4-grams repeat earlier ones: the reward may favour loops"
    ),
    "min_distinct": (
        "answers are {value:.0%} as varied as at the start: one text may win on every prompt"
    ),
    "max_equal_groups": (
        "for {value:.0%} of the prompts all answers have the same reward, which trains nothing: "
        "the prompts are too easy or too hard, or the reward is too coarse"
    ),
    "max_second_drop": (
        "the reward rose while the second reward model fell by {value:.2g} standard deviations: "
        "the policy may please its own reward model only"
    ),
    "max_mismatch_factor": (
        "the trainer's and the engine's probabilities of a token differ by a factor of "
        "{value:.3f}: answers come from weights too old, or the engine computes another model"
    ),
}
"""What each alarm, named like its limit in rl.monitor, says."""


def alarms_of(
    figures: Mapping[str, float], settings: rl.MonitorSection
) -> dict[str, tuple[float, float]]:
    """(value, limit) of each alarm that the figures raise; a missing figure raises none."""
    alarms = {}
    for name in MEANINGS:
        limit = getattr(settings, name)
        # max_kl is the limit of the figure kl.
        value = figures.get(name[4:])
        if value is None or limit is None:
            continue
        beyond = value > limit if name.startswith("max") else value < limit
        if beyond:
            alarms[name] = (value, limit)
    return alarms


def compared(first: Mapping[str, float], current: Mapping[str, float]) -> dict[str, float]:
    """The figures of an iteration with those that look back to iteration 0: length_ratio,
    second_drop.

    second_drop counts standard deviations of iteration 0, and is 0 as long as the trained reward
    has not risen.
    """
    figures = {**current, "length_ratio": current["length"] / first["length"]}
    # A deviation of 0 (all responses scored alike) gives no scale to count in.
    if first.get("second_std") and "second_score" in current:
        drop = (first["second_score"] - current["second_score"]) / first["second_std"]
        # Both falling is a bad policy; only the two moving apart is reward hacking.
        figures["second_drop"] = max(0.0, drop) if current["score"] > first["score"] else 0.0
    return figures


def next_running(
    running: Mapping[str, int], figures: Mapping[str, float], alarms: Collection[str]
) -> dict[str, int]:
    """In how many measured iterations in a row each alarm has been up; one that was not measured
    now stays as it was.

    `alarms`: those of the iteration.
    """
    # KL and second model are asked every few iterations only; one that skips them ends no alarm.
    unmeasured = {name: times for name, times in running.items() if name[4:] not in figures}
    return unmeasured | {name: running.get(name, 0) + 1 for name in alarms}


def counts(alarms: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """In how many iterations each alarm was up, and the first of them."""
    by_name: dict[str, dict[str, int]] = {}
    for alarm in alarms:
        count = by_name.setdefault(alarm["name"], {"iterations": 0, "first": alarm["iteration"]})
        count["iterations"] += 1
    return by_name
