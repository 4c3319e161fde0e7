"""Groups of actors of one role: where they are placed, and calling all of them with a deadline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayward.actors.calls import wait_for
from rayward.actors.critic import Critic
from rayward.actors.policy import Policy
from rayward.actors.scoring.reference import FrozenModel
from rayward.actors.scoring.reward import RewardModel
from rayward.configs.schema import Config
from rayward.configs.sections.machines import Cluster, Role
from rayward.data.ragged import Ragged, merge


class Group:
    """Actors of one role."""

    def __init__(
        self,
        name: str,
        cls: type,
        role: Role,
        cluster: Cluster,
        arguments: tuple[Any, ...],
        slots: PlacementGroup | None = None,
    ):
        """Starts `role.workers` actors of a plain class, each with `arguments` and its rank.

        Does not wait for them (`ready`). With `slots`, rank i stands in bundle i.
        """
        self.name, self.role, self.cluster = name, role, cluster
        threads = str(role.compute_threads)
        # Read by OpenMP and MKL when they are loaded, so the process starts with them. Ray would
        # set the first to the number of CPUs, and here shares of CPUs are reserved.
        environment = {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
        }
        remote = ray.remote(
            num_cpus=role.cpus, num_gpus=role.gpus, runtime_env={"env_vars": environment}
        )(cls)
        self.actors = [
            remote.options(**_placement(slots, rank)).remote(*arguments, rank)
            for rank in range(role.workers)
        ]

    def begin(self, method: str, *arguments: Any) -> list[ray.ObjectRef]:
        """Start `method` on every actor."""
        return [getattr(actor, method).remote(*arguments) for actor in self.actors]

    def finish(self, calls: Sequence[ray.ObjectRef], timeout_s: float | None = None) -> list[Any]:
        """Results of `begin`, in rank order; `timeout_s` None: cluster.call_timeout_s.

        Raises TimeoutError that names the late ranks, or the first error of a rank.
        """
        limit = timeout_s or self.cluster.call_timeout_s
        is_start = timeout_s == self.cluster.start_timeout_s
        setting = "start_timeout_s" if is_start else "call_timeout_s"

        def too_late(ranks: str) -> TimeoutError:
            return TimeoutError(
                f"{self.name} {ranks} did not answer within {limit:.0f} s; if only slow, raise "
                f"cluster.{setting}"
            )

        return wait_for(calls, limit, too_late)

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """`begin` and `finish`."""
        return self.finish(self.begin(method, *arguments))

    def ready(self) -> None:
        """Wait until every actor is up. Raises TimeoutError, or what its constructor raised."""
        self.finish(
            [actor.__ray_ready__.remote() for actor in self.actors], self.cluster.start_timeout_s
        )

    def stop(self) -> None:
        """End the processes and give their resources back."""
        # Killed, not asked: an actor that waits in a collective would never come to an answer.
        for actor in self.actors:
            ray.kill(actor)


@contextmanager
def running(*groups: Group) -> Iterator[None]:
    """Wait until all actors are up; end them with the block, or where one does not come up."""
    try:
        for group in groups:
            group.ready()
        yield
    finally:
        for group in groups:
            group.stop()


class TrainingGroup(Group):
    """A group whose processes train one model together."""

    def begin_start(self) -> list[ray.ObjectRef]:
        """Let the ranks find each other and load; wait with `finish`."""
        # Rank 0 alone first: the others need the port that it was given.
        host, port = self.finish([self.actors[0].open.remote()], self.cluster.start_timeout_s)[0]
        return self.begin("start", host, port)


def gpu_slots(config: Config) -> PlacementGroup | None:
    """In mode colocate a bundle for each engine: a part of one GPU, with room for its learners.

    The policy (and critic) of the same rank stand in it. Ray by itself packs the fractions of one
    role onto one GPU. ValueError where the cluster has no room within cluster.start_timeout_s.
    """
    if config.rl.mode != "colocate":
        return None
    resources = config.resources
    # A critic without GPUs needs no room here.
    sharing = [
        role for role in (resources.rollout, resources.policy, resources.critic) if role.gpus
    ]
    bundle = {"GPU": sum(role.gpus for role in sharing), "CPU": sum(role.cpus for role in sharing)}
    slots = placement_group([bundle] * resources.rollout.workers)
    if not slots.wait(config.cluster.start_timeout_s):
        raise ValueError(
            f"rl.mode colocate: no {resources.rollout.workers} GPUs with room for {bundle} are free"
        )
    return slots


def _placement(slots: PlacementGroup | None, rank: int) -> dict[str, Any]:
    if slots is None:
        return {}
    strategy = PlacementGroupSchedulingStrategy(slots, placement_group_bundle_index=rank)
    return {"scheduling_strategy": strategy}


def policy_group(
    folder: str, config: Config, algorithm: str, slots: PlacementGroup | None = None
) -> TrainingGroup:
    """The ranks of the policy, which starts from the model of a folder."""
    role, arguments = config.resources.policy, (folder, config, algorithm)
    return TrainingGroup("policy", Policy, role, config.cluster, arguments, slots)


def critic_group(
    folder: str, config: Config, slots: PlacementGroup | None = None, new_head: bool = False
) -> TrainingGroup:
    """The ranks of the critic, which starts from a reward model, or with a new head."""
    role, arguments = config.resources.critic, (folder, new_head, config)
    # `slots` have room for it only where it takes a part of a GPU.
    slots = slots if role.gpus else None
    return TrainingGroup("critic", Critic, role, config.cluster, arguments, slots)


def frozen_group(name: str, folder: str, config: Config, temperature: float) -> Group:
    """Processes that hold a language model which does not learn."""
    role, arguments = config.resources.reference, (folder, config, temperature)
    return Group(name, FrozenModel, role, config.cluster, arguments)


def reward_group(folder: str, config: Config) -> RewardGroup:
    """The processes of the reward model in a folder, as the config places them."""
    budget = config.reward.optimizer.micro_batch_tokens
    return RewardGroup(folder, config.model.dtype, budget, config.resources.reward, config.cluster)


class RewardGroup(Group):
    """Reward-model actors behind one call."""

    def __init__(
        self, folder: str, dtype: str, micro_batch_tokens: int, role: Role, cluster: Cluster
    ):
        arguments = (folder, dtype, micro_batch_tokens, role)
        super().__init__("reward", RewardModel, role, cluster, arguments)

    def score(self, sequences: Ragged) -> np.ndarray:
        """One score per row."""
        # `put` once: as an argument the rows would be stored again for every actor.
        return merge(self.call("score", ray.put(sequences)), len(sequences))
