"""When a training writes what it can go on from."""

from __future__ import annotations

from rayward.configs.sections.base import Count, Positive, Section


class Checkpoint(Section):
    """When SFT, reward models and DPO write what they go on from; decides no result."""

    every_minutes: Positive | None = 15
    """Minutes between checkpoints; null goes by steps alone."""
    every_steps: Count | None = None
    """Optimizer steps between checkpoints; null goes by time alone."""
    keep: Count = 1
    """How many of the last ones stay until the stage is done."""
