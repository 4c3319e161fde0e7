"""The figures of `judge tasks`: means with their standard errors, and the table of four columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayward.pipelines.judging.harness.definitions import COLUMNS, TASKS
from rayward.pipelines.judging.statistics.normal import NORMAL_95

SUBJECTS = "mean of subjects"
POOLED = "all questions"


@dataclass(frozen=True, slots=True)
class Value:
    """A share from 0 to 1 with its standard error, None where lm-eval gives none."""

    mean: float
    error: float | None
    items: int

    def __str__(self) -> str:
        """In percent, with its 95 % interval."""
        if self.error is None:
            return f"{100 * self.mean:.2f}"
        spread = 100 * NORMAL_95 * self.error
        return f"{100 * self.mean:.2f} ± {spread:.2f}"


def figures(task: str, made: Mapping[str, Any]) -> dict[str, Value]:
    """The values of a task by the name of their metric, the one of the table first.

    MMLU has two: the mean of the subjects' means, as the leaderboard had it, and that of all
    questions, as lm-eval's group has it today.
    """
    results, items = made["results"], made["items"]
    if task != "mmlu":
        ((name, of),) = results.items()
        return {
            metric: Value(of[metric], _error(of, metric), items[name])
            for metric in TASKS[task].metrics
            if of.get(metric) is not None
        }
    (metric,) = TASKS[task].metrics
    parts = [Value(of[metric], _error(of, metric), items[name]) for name, of in results.items()]
    return {
        f"{metric}, {SUBJECTS}": mean_of(parts, [1] * len(parts)),
        f"{metric}, {POOLED}": mean_of(parts, [part.items for part in parts]),
    }


def mean_of(parts: Sequence[Value], weights: Sequence[float]) -> Value:
    """The weighted mean of independent parts, and its standard error."""
    total = sum(weights)
    mean = sum(part.mean * weight for part, weight in zip(parts, weights, strict=True)) / total
    errors = [part.error for part in parts]
    error = None
    if all(each is not None for each in errors):
        squares = ((each or 0.0) * w / total for each, w in zip(errors, weights, strict=True))
        error = math.sqrt(sum(square**2 for square in squares))
    return Value(mean, error, sum(part.items for part in parts))


def leaderboard(measured: Mapping[str, Mapping[str, Value]]) -> list[Value | None]:
    """The four columns and their mean; None for what is not measured, and then no mean."""
    columns = [
        next(iter(measured[name].values())) if measured.get(name) else None for name in COLUMNS
    ]
    there = [column for column in columns if column is not None]
    mean = mean_of(there, [1] * len(there)) if len(there) == len(COLUMNS) else None
    return [*columns, mean]


def _error(of: Mapping[str, Any], metric: str) -> float | None:
    """lm-eval's standard error; NaN, for a single item, is none."""
    name, _, way = metric.partition(",")
    error = of.get(f"{name}_stderr,{way}")
    return None if error is None or math.isnan(error) else float(error)
