"""Groups of models that do not learn: references, and reward models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from rayward.actors.group import Group
from rayward.actors.renewable import RenewableGroup
from rayward.actors.scoring.reference import FrozenModel
from rayward.actors.scoring.reward import RewardModel
from rayward.configs.schema import Config
from rayward.configs.sections.machines import Cluster, Role
from rayward.data.ragged import Ragged, merge


def frozen_group(
    name: str, folder: str, config: Config, temperature: float, seats: Sequence[Any] | None = None
) -> Group:
    """Processes that hold a language model which does not learn; another where they are told to
    `load` it.
    """
    role, arguments = config.resources.reference, (folder, config, temperature)
    return Group(name, FrozenModel, role, config.cluster, arguments, seats)


def reference_group(
    folder: str, config: Config, temperature: float, seats: Sequence[Any] | None = None
) -> RenewableGroup:
    """Processes that hold the language model which others are compared with."""
    role, arguments = config.resources.reference, (folder, config, temperature)
    return RenewableGroup("reference", FrozenModel, role, config.cluster, arguments, seats)


def reward_group(folder: str, config: Config, seats: Sequence[Any] | None = None) -> RewardGroup:
    """The processes of the reward model in a folder, as the config places them."""
    budget = config.reward.optimizer.micro_batch_tokens
    return RewardGroup(
        folder, config.model.dtype, budget, config.resources.reward, config.cluster, seats
    )


class RewardGroup(RenewableGroup):
    """Reward-model actors behind one call."""

    def __init__(
        self,
        folder: str,
        dtype: str,
        micro_batch_tokens: int,
        role: Role,
        cluster: Cluster,
        seats: Sequence[Any] | None = None,
    ):
        arguments = (folder, dtype, micro_batch_tokens, role)
        super().__init__("reward", RewardModel, role, cluster, arguments, seats)

    def score(self, sequences: Ragged) -> np.ndarray:
        """One score per row."""
        # `put` once: as an argument the rows would be stored again for every actor.
        return merge(self.call("score", ray.put(sequences)), len(sequences))
