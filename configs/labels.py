"""What becomes of labelled answers, good or bad, in data.preferences: who learns from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rayward.configs.needs import lists_read
from rayward.configs.schema import Config
from rayward.configs.stages import learns_labels

LABELS_ALONE = "labels alone do not train a reward model"


def no_preferences(config: Config, rows: Mapping[str, int], good_heldout: int = 0) -> Iterator[str]:
    """Why a stage cannot learn from data.preferences, whose files of prepare have so many `rows`.

    `good_heldout`: how many of the held-out labelled answers are good. Of what `least_rows` cannot
    say, since labelled answers stand beside the rankings.
    """
    stages = lists_read(config).get("preferences", [])
    labelled = rows["labelled"] + rows["labelled_heldout"]
    found = f"data.preferences: {labelled} labelled answers and no ranking to train on"
    if labelled and not rows["rankings"]:
        if "reward" in stages:
            yield (
                f"{found}, and {LABELS_ALONE}: add rankings or pairs, or leave it out with "
                "`reward: null`"
            )
        if "dpo" in stages and not learns_labels(config):
            yield (
                f"{found}: dpo.objective {config.dpo.objective} learns from rankings; use "
                "`dpo.objective: kto`, which learns from labels"
            )
    if not learns_labels(config):
        return
    if "dpo" in stages and not rows["labelled"] + rows["rankings"]:
        yield (
            "data.preferences: no labelled answer and no ranking is left to train on; report.json "
            "in the stage's folder says what became of them"
        )
    # A held-out ranking gives one of each.
    if config.dpo.validate_every and not rows["heldout"]:
        good, bad = good_heldout, rows["labelled_heldout"] - good_heldout
        if not good or not bad:
            lacking = [name for name, count in (("good", good), ("bad", bad)) if not count]
            found = " and ".join(f"no {name} one" for name in lacking)
            yield (
                "dpo.validate_every tells held-out good answers from bad ones, also with dpo.data "
                f"samples, and in data.preferences {found} is held out: give more rows, or leave "
                "it 0"
            )


def one_kind_of_labels(
    config: Config, rows: Mapping[str, int], good: int, bad: int
) -> Iterator[str]:
    """Why KTO cannot learn from so many `good` and `bad` labelled answers without a ranking.

    A ranking has one of each.
    """
    asked = "dpo" in lists_read(config).get("preferences", []) and learns_labels(config)
    if asked and not rows["rankings"] and (good + bad) and not (good and bad):
        found, other = ("good", "bad") if good else ("bad", "good")
        yield (
            f"data.preferences: all {good + bad} labelled answers to train on are {found}, and no "
            f"ranking is beside them; dpo.objective kto learns from good and bad ones: add "
            f"{other} ones"
        )
