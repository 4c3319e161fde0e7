"""What Ray Train hands to the workers of a training loop.

Light: Ray Train's controller unpickles it too, and torch would cost it seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rayward.configs.sections.machines import Role
from rayward.configs.sections.training import Optimizer, Preferences

if TYPE_CHECKING:
    import ray
    from ray.util.queue import Queue


STOP, WRITE = "stop", "write"


@dataclass(frozen=True)
class CheckpointPlace:
    """Where and when a training writes checkpoints, and the one that it goes on from."""

    folder: str
    found: str | None
    """Folder of the checkpoint to begin from."""
    asked: str
    """File that asks for a checkpoint when it appears: STOP in it, to end after that; or WRITE."""
    every_steps: int | None
    every_minutes: float | None
    keep: int
    anew: frozenset[str] = frozenset()
    """Parts of the one found that begin anew."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """What each checkpoint says of its training."""


@dataclass(frozen=True)
class Job:
    """Everything a worker needs; data travels by reference through the object store."""

    model: str
    """Folder of the model that is trained."""
    tokenizer: str
    """Folder of the tokenizer that is saved beside it."""
    output: str
    """Folder for the result."""
    train: ray.ObjectRef
    """WeightedRows or RankedRows."""
    heldout: ray.ObjectRef
    """The same of the held-out data, which may be empty."""
    epochs: int
    rows_per_step: int
    """Rows (or rankings) of one optimizer step, over all ranks."""
    optimizer: Optimizer
    dtype: str
    seed: int
    role: Role
    queue: Queue
    """To the driver: lists of messages."""
    signs: str = ""
    """Under which each worker tells that it lives, with its rank; "": nowhere."""
    packing: bool | None = None
    """Of SFT."""
    preferences: Preferences | None = None
    """Of the reward model and DPO."""
    centre: ray.ObjectRef | None = None
    """Of the reward model: Ragged rows whose mean score becomes 0."""
    validate_every: int = 0
    """Optimizer steps between looks at the held-out data; 0: none on the way."""
    keep: str = "last"
    """`last` or `best`, see Validation."""
    checkpoints: CheckpointPlace | None = None
    """None: none are written."""
