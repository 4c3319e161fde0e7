"""Learning-rate schedules, counted in optimizer steps."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, total_steps: int, warmup_fraction: float, shape: str) -> float:
    """Share of the peak learning rate in step `step` (0-based): linear warm-up, then `shape`.

    Steps are the optimizer's. The first step already learns (1 / warm-up steps), the last one
    almost stands (cosine and linear reach 0 one step after the last). Raises ValueError for an
    unknown shape.
    """
    warmup = math.ceil(total_steps * warmup_fraction)
    if step < warmup:
        return (step + 1) / warmup
    # max: a warm-up over all steps leaves none to divide by. min: a step past the end stays there.
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if shape == "constant":
        return 1.0
    if shape == "linear":
        return 1.0 - progress
    if shape == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    raise ValueError(f"schedule {shape!r} is not one of constant, linear, cosine")
