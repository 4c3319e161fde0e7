"""By how much the better one of two answers is better, where a data set says so.

As "margin", or as a score of either answer under one of SCORES: those of Zephyr's binarized
UltraFeedback, of distilabel's Orca and Capybara pairs, and of argilla's. The margin is their
difference then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayward.data.formats.rows.fields import is_empty
from rayward.data.records import RowError, number_of

SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("rating_chosen", "rating_rejected"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)
MARGINS = " ".join(("margin", *(name for names in SCORES for name in names)))
"""All fields that `margin_of` reads."""


def margin_of(row: Mapping[str, Any]) -> float | None:
    """The row's margin, or None. RowError where the scores say that the worse answer is better."""
    found = None if is_empty(row.get("margin")) else number_of(row["margin"], "margin")
    for names in SCORES:
        better, worse = (row.get(name) for name in names)
        if found is None and not is_empty(better) and not is_empty(worse):
            scores = [number_of(row[name], name) for name in names]
            found = scores[0] - scores[1]
            if found < 0:
                expected = f"at most {scores[0]:g}, the score of the chosen answer"
                raise RowError(names[1], f"{scores[1]:g}", expected, "scores contradict the choice")
    return found
