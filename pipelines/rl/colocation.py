"""Mode colocate: engines and learners take turns with the memory of the same GPUs."""

from __future__ import annotations

from rayward.actors.group import TrainingGroup
from rayward.actors.rollout_group import RolloutGroup


class ColocationSwitch:
    """Who has the memory of the GPUs. In other modes each side has GPUs of its own, and every step
    does nothing.

    The steps of an iteration: engines sample, `to_learners`, learners score and update,
    `to_transfer`, weights travel, `to_engines`.
    """

    def __init__(self, rollout: RolloutGroup, learners: list[TrainingGroup], colocated: bool):
        self.rollout, self.on = rollout, colocated
        # A learner on the CPU holds nothing that the engines could use.
        self.learners = [group for group in learners if group.role.gpus]

    def to_learners(self) -> None:
        """After generation: the engines give up weights and cache, the learners come back."""
        if self.on:
            # `call` waits for every engine: the learners find room only where all have let go.
            self.rollout.call("sleep")
            for group in self.learners:
                group.call("reload")

    def to_transfer(self) -> None:
        """Both hold weights for the time of the transfer, the engines without their cache."""
        if self.on:
            self.rollout.call("wake", "weights")

    def to_engines(self) -> None:
        """After the transfer: the learners go to the host, the engines take back their cache."""
        if self.on:
            for group in self.learners:
                group.call("offload")
            # The cache takes the memory that the learners leave, so it comes after them.
            self.rollout.call("wake", "kv_cache")
