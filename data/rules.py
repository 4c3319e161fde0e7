"""Reward functions for scoring.sources: answers whose right solution is known need no reward
model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def exact_number(
    *, completions: Sequence[str], references: Sequence[str | None], **_: Any
) -> list[float | None]:
    """1 where the answer ends in the reference's number, else 0; None where there is no reference,
    or none with one.

    GSM8K's convention: the solution is what follows "####", else the last number of the text.
    """
    scores: list[float | None] = []
    for answer, reference in zip(completions, references, strict=True):
        right = final_number(reference or "")
        scores.append(None if right is None else float(final_number(answer) == right))
    return scores


def brief(*, completions: Sequence[str], finished: Sequence[bool], **_: Any) -> list[float]:
    """1 for an answer that ended by itself, less a hundredth for each of its words; a cut one has
    no 1.
    """
    return [
        float(ended) - len(answer.split()) / 100
        for answer, ended in zip(completions, finished, strict=True)
    ]


def final_number(text: str) -> float | None:
    """The number after the last "####", else the last number of the text; None where there is
    none.
    """
    marked = NUMBER.findall(text.rpartition("####")[2]) if "####" in text else []
    found = marked[:1] or NUMBER.findall(text)[-1:]
    return float(found[0].replace(",", "")) if found else None
