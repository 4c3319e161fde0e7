"""Reward functions for scoring.sources, for answers whose right solution is known."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def exact_number(
    *, completions: Sequence[str], references: Sequence[str | None], **_: Any
) -> list[float | None]:
    """1 where the answer ends in the reference's number, else 0.

    None where there is no reference, or none with a number. GSM8K's convention: the solution is
    what follows "####", else the last number of the text.
    """
    scores: list[float | None] = []
    for answer, reference in zip(completions, references, strict=True):
        solution = final_number(reference or "")
        # None, not 0: an answer that cannot be checked is not a wrong one.
        scores.append(None if solution is None else float(final_number(answer) == solution))
    return scores


def brief(*, completions: Sequence[str], finished: Sequence[bool], **_: Any) -> list[float]:
    """1 for an answer that ended by itself, less a hundredth for each word; 0 less those for a cut
    one, and for an empty one, or saying nothing would be best.
    """
    return [
        float(ended and bool(answer.strip())) - len(answer.split()) / 100
        for answer, ended in zip(completions, finished, strict=True)
    ]


def length(*, completions: Sequence[str], **_: Any) -> list[float]:
    """Characters of an answer: the judge that every other one should be better than."""
    return [float(len(answer)) for answer in completions]


def final_number(text: str) -> float | None:
    """The number after the last "####", else the last one of the text; None where there is none."""
    marked = NUMBER.findall(text.rpartition("####")[2]) if "####" in text else []
    # A "####" without a number after it falls back to the whole text.
    solution = marked[:1] or NUMBER.findall(text)[-1:]
    return float(solution[0].replace(",", "")) if solution else None  # 1,234 is one number
