"""Two models on the same instructions: the difference of their win rates, and its interval."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayward.pipelines.judging.statistics.verdict_groups import Comparison


def add_pairs(
    rows: Sequence[dict[str, Any]],
    found: Sequence[Comparison],
    pairs: Sequence[Sequence[str]],
    seed: int,
) -> None:
    """Tell each pair of models (a, b), and put it into the row of a, under "paired".

    Only verdicts by the same judge against the same baseline are compared. ValueError: a model that
    is not in the files, or no such verdicts of both.
    """
    from rayward.pipelines.run.metrics import table

    lines = []
    for a, b in pairs:
        for name in (a, b):
            if not any(each.of.model == name for each in found):
                models = ", ".join(sorted({each.of.model for each in found}))
                raise ValueError(f"--paired {a} {b}: no verdicts on {name}; there are {models}")
        alike = [
            (row, one, other)
            for row, one in zip(rows, found, strict=True)
            for other in found
            if one.of.model == a and other.of == one.of._replace(model=b)
        ]
        if not alike:
            raise ValueError(
                f"--paired {a} {b}: no judge compared both with the same baseline, so their "
                "verdicts say nothing of each other"
            )
        for row, one, other in alike:
            measured = _measured(one, other, seed)
            row.setdefault("paired", []).append({"against": b, **measured})
            interval = "{difference:+.2f} [{low:+.2f}, {high:+.2f}]".format(**measured)
            counts = (measured["better"], measured["worse"], measured["n_total"])
            lines.append((f"{a} - {b}", one.of.baseline, interval, *counts))
    if lines:
        columns = ("pair", "baseline", "difference [95 %]", "better", "worse", "n")
        table("differences of win rates on the same instructions, in points", lines, columns)


def _measured(one: Comparison, other: Comparison, seed: int) -> dict[str, Any]:
    from rayward.algorithms.judging.win_rates import difference

    places = [_by_instruction(each) for each in (one, other)]
    common = [key for key in places[0] if key in places[1]]
    try:
        return difference(
            [one.preferences[places[0][key]] for key in common],
            [other.preferences[places[1][key]] for key in common],
            seed,
        )
    except ValueError as error:
        raise ValueError(f"{one.of.model} and {other.of.model}: {error}") from None


def _by_instruction(comparison: Comparison) -> dict[Hashable, int]:
    """Where the verdict on each instruction stands: by its text, or its place in a row of lists.

    Several verdicts on one instruction are told apart by their order.
    """
    seen: dict[Hashable, int] = {}
    where: dict[Hashable, int] = {}
    for index, verdict in enumerate(comparison.verdicts):
        key: Hashable = verdict.instruction if verdict.place is None else verdict.place
        seen[key] = seen.get(key, 0) + 1
        where[(key, seen[key])] = index
    return where
