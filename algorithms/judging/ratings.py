"""Means of ratings by question, with intervals over questions.

Shapes: N = ratings; of one question there may be several, of its turns.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from rayward.algorithms.reward_measure import interval


def mean_rating(ratings_N: Sequence[float], questions_N: Sequence[Hashable], seed: int = 0) -> Any:
    """Mean over all ratings, and its 95 % interval by drawing whole questions; None without any.

    Turns of a question are drawn together, since a model that fails the first often fails both.
    """
    if not ratings_N:
        return {"mean": None, "low": None, "high": None, "n": 0}
    numbers = {question: number for number, question in enumerate(dict.fromkeys(questions_N))}
    question_N = np.array([numbers[question] for question in questions_N], dtype=np.int64)
    values_N = np.asarray(ratings_N, dtype=np.float64)
    low, high = interval(values_N, question_N, seed)
    return {"mean": float(values_N.mean()), "low": low, "high": high, "n": len(values_N)}
