"""What Ray Train hands to the workers of a training loop; light, for Ray Train's controller reads
it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rayward.configs.sections.machines import Role
from rayward.configs.sections.training import Optimizer, Preferences


@dataclass(frozen=True)
class Job:
    """Everything a worker needs; data travels by reference through the object store."""

    model: str
    tokenizer: str
    output: str
    train: Any
    heldout: Any
    epochs: int
    rows_per_step: int
    optimizer: Optimizer
    dtype: str
    seed: int
    role: Role
    queue: Any
    packing: bool | None = None
    preferences: Preferences | None = None
    centre: Any = None
    validate_every: int = 0
    keep: str = "last"
