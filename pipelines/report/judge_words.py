"""What is said of a judge beside each of its win rates: how far it agrees with labelled pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOT_BETTER = "These pairs do not show it to be better than taking the longer answer"
"""The interval of its accuracy less that of the longer answer does not lie above 0."""


def in_words(trust: Mapping[str, Any] | None) -> str:
    """A judge's figures on labelled pairs in one sentence; why there are none, where it says so.

    None is of a run of an earlier version.
    """
    if trust is None:
        return "not measured, since an earlier version judged"
    if why := trust.get("not_measured"):
        return f"not measured: {why}"
    longer, judge = trust["judges"]
    without = [f"{count} {reason}" for reason, count in trust["left_out"].items()]
    labels = trust["labels"] + f"; left out: {', '.join(without)}" * bool(without)
    words = (
        f"accuracy {shown(judge['accuracy'])} and kappa {shown(judge['kappa'])} on "
        f"{trust['pairs']} labelled pairs ({labels}), the longer answer's accuracy being "
        f"{shown(longer['accuracy'])}; prefers the longer one in "
        f"{shown(judge['prefers_longer'])}, the labels in {shown(longer['labels_prefer_longer'])}"
    )
    if judge["conflicts"]["n"]:
        words += f"; the order decides in {judge['conflicts']['mean']:.1%}"
    else:
        words += "; it scores each answer alone, so that no order decides"
    if judge["missing"]:
        words += f"; no verdict on {judge['missing']}"
    if trust["no_better_than_length"]:
        words += f". {NOT_BETTER}, so its win rates say little"
    return words


def shown(of: Mapping[str, Any]) -> str:
    """A mean with its interval."""
    if of["mean"] is None:
        return "-"
    if of["low"] is None:
        return f"{of['mean']:.3f}"
    return f"{of['mean']:.3f} [{of['low']:.3f}, {of['high']:.3f}]"
