"""What remains of an algorithm's iterations in the manifest of its stage, and on the terminal."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayward.pipelines.run.metrics import table

LAST_FIGURES = ("score", "kl", "length", "entropy", "finished")


def summary(
    algorithm: str, history: list[dict[str, Any]], alarms: dict[str, dict[str, int]]
) -> dict[str, Any]:
    """Figures of the first and the last iteration, the largest mismatch, alarms and median seconds.

    `history`: the lines of metrics.jsonl; `alarms` as `alarms.counts` gives them. Prints a table.
    """
    first, last = history[0], history[-1]
    # Rates (_per_s) and the seconds by role (idle_s) have no median of seconds to show.
    phases = [
        name
        for name in first["time"]
        if name.endswith("_s") and "_per_" not in name and name != "idle_s"
    ]
    medians = {
        name: float(np.median([line["time"].get(name, 0.0) for line in history])) for name in phases
    }
    metrics = {
        "iterations": len(history),
        "score_first": first["score"],
        "length_first": first["length"],
        **{name: last[name] for name in LAST_FIGURES if name in last},
        "mismatch_max": largest_mismatch(history),
        "alarms": alarms,
        "seconds_per_iteration": medians,
    }
    alarm_texts = [
        f"{name}: {count['iterations']}, first {count['first']}" for name, count in alarms.items()
    ]
    table(
        algorithm,
        {name: value for name, value in metrics.items() if name != "seconds_per_iteration"}
        | {"alarms": "; ".join(alarm_texts) or "none"}
        | {f"median {name}": value for name, value in medians.items()},
    )
    return metrics


def largest_mismatch(history: list[dict[str, Any]]) -> float | None:
    """Largest gap of a token between trainer and engine where both had the same weights, in nats;
    None where no iteration measured one.
    """
    gaps = []
    for line in history:
        # Of stale responses it would be what the policy has learned meanwhile.
        if "mismatch_max" in line and line["staleness"] == 0:
            gaps.append(line["mismatch_max"])
        if "fixed_mismatch_max" in line:
            gaps.append(line["fixed_mismatch_max"])
    return max(gaps, default=None)
