"""Groups of actors of one role: starting them, calling all of them with a deadline, putting their
results together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayward.actors.calls import wait_for
from rayward.actors.critic import Critic
from rayward.actors.models.proof import transfer_gap
from rayward.actors.policy import Policy
from rayward.actors.rollout.generation import Generation
from rayward.actors.rollout.worker import RolloutEngine
from rayward.actors.scoring.reference import FrozenModel
from rayward.actors.scoring.reward import RewardModel
from rayward.configs.plan import max_mismatch
from rayward.configs.schema import Config
from rayward.configs.sections.machines import Cluster, Role
from rayward.data.ragged import Ragged, merge, stack
from rayward.data.rollouts import Rollouts

# Tokens of a probe are far less likely than those of answers, and their log-probs less exact.
PROBE_SLACK = 3.0


class Group:
    """Actors of one role."""

    def __init__(
        self,
        name: str,
        cls: type,
        role: Role,
        cluster: Cluster,
        arguments: tuple,
        slots: PlacementGroup | None = None,
    ):
        self.name, self.role, self.cluster = name, role, cluster
        threads = str(role.compute_threads)
        environment = {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
        }
        remote = ray.remote(
            num_cpus=role.cpus, num_gpus=role.gpus, runtime_env={"env_vars": environment}
        )(cls)
        self.actors = [
            remote.options(**_place(slots, rank)).remote(*arguments, rank)
            for rank in range(role.workers)
        ]

    def begin(self, method: str, *arguments: Any) -> list[ray.ObjectRef]:
        """Start `method` on every actor."""
        return [getattr(actor, method).remote(*arguments) for actor in self.actors]

    def finish(self, calls: Sequence[ray.ObjectRef], timeout_s: float | None = None) -> list[Any]:
        """Results of `begin`, in rank order. Raises TimeoutError that names the ranks that are
        late.
        """
        limit = timeout_s or self.cluster.call_timeout_s
        setting = (
            "start_timeout_s" if timeout_s == self.cluster.start_timeout_s else "call_timeout_s"
        )
        return wait_for(
            calls,
            limit,
            lambda late: TimeoutError(
                f"{self.name} {late} did not answer within {limit:.0f} s; if only slow, raise "
                f"cluster.{setting}"
            ),
        )

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
        for actor in self.actors:
            ray.kill(actor)


@contextmanager
def running(*groups: Group) -> Iterator[None]:
    """Wait until all actors of the groups are up; end them with the block, or where one does not
    come up.
    """
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
        host, port = self.finish([self.actors[0].open.remote()], self.cluster.start_timeout_s)[0]
        return self.begin("start", host, port)


def gpu_slots(config: Config) -> PlacementGroup | None:
    """In mode colocate a part of a GPU for each engine, with room for the policy (and critic) of
    the same rank.

    Ray by itself packs the fractions of one role onto one GPU.
    """
    if config.rl.mode != "colocate":
        return None
    resources = config.resources
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


def _place(slots: PlacementGroup | None, rank: int) -> dict[str, Any]:
    if slots is None:
        return {}
    return {
        "scheduling_strategy": PlacementGroupSchedulingStrategy(
            slots, placement_group_bundle_index=rank
        )
    }


def policy_group(
    folder: str, config: Config, algorithm: str, slots: PlacementGroup | None = None
) -> TrainingGroup:
    arguments = (folder, config, algorithm)
    return TrainingGroup(
        "policy", Policy, config.resources.policy, config.cluster, arguments, slots
    )


def critic_group(
    folder: str, config: Config, slots: PlacementGroup | None = None, new_head: bool = False
) -> TrainingGroup:
    role, arguments = config.resources.critic, (folder, new_head, config)
    return TrainingGroup(
        "critic", Critic, role, config.cluster, arguments, slots if role.gpus else None
    )


def frozen_group(name: str, folder: str, config: Config, temperature: float) -> Group:
    return Group(
        name, FrozenModel, config.resources.reference, config.cluster, (folder, config, temperature)
    )


def reward_group(folder: str, config: Config) -> RewardGroup:
    budget = config.reward.optimizer.micro_batch_tokens
    return RewardGroup(folder, config.model.dtype, budget, config.resources.reward, config.cluster)


class RewardGroup(Group):
    """Reward-model actors behind one call."""

    def __init__(
        self, folder: str, dtype: str, micro_batch_tokens: int, role: Role, cluster: Cluster
    ):
        super().__init__(
            "reward", RewardModel, role, cluster, (folder, dtype, micro_batch_tokens, role)
        )

    def score(self, sequences: Ragged) -> np.ndarray:
        """One score per row."""
        return merge(self.call("score", ray.put(sequences)), len(sequences))


@dataclass(frozen=True)
class ExtraPrompts:
    """Prompts that are answered once each along with others, and what their seeds are made of."""

    prompts: Ragged
    seed_parts: tuple


class RolloutGroup(Group):
    """vLLM engines behind one call: prompts are dealt out in turn, answers come back in the order
    of the requests.

    Without `loads` they read no weights but wait for those of a transfer.
    """

    def __init__(self, folder: str, config: Config, sender: Role, loads: bool = True):
        self.backend, self.slots = transfer_backend(config, sender), gpu_slots(config)
        self.allowed_gap = max_mismatch(config)
        role, arguments = config.resources.rollout, (folder, config, self.backend, loads)
        super().__init__("rollout", RolloutEngine, role, config.cluster, arguments, self.slots)
        # VLLM measures the free memory when it starts: nobody else may load meanwhile.
        if 0 < role.gpus < 1:
            self.ready()

    def stop(self) -> None:
        super().stop()
        if self.slots:
            remove_placement_group(self.slots)

    def prove(self, probe: tuple[list[int], list[float]], version: int) -> float:
        """Hold the engines against the sender's `probe` of the weights just sent: the largest
        `transfer_gap`, in nats.

        Raises RuntimeError where it is larger than that between trainer and engine may be.
        """
        ids, expected = probe
        allowed = PROBE_SLACK * self.allowed_gap
        found = self.call("probe", ids)
        gaps = [transfer_gap(logprobs, expected, allowed) for logprobs in found]
        worst = int(np.argmax(gaps))
        if not gaps[worst] <= allowed:
            mean = float(np.abs(np.subtract(found[worst], expected)).mean())
            raise RuntimeError(
                f"weight transfer {version} is not proved: the log-probs of a fixed row differ by "
                f"{mean:.3g} nats on the average between the policy and rollout engine {worst} "
                f"(allowed {allowed:g}, from rl.max_mismatch), so some weight did not arrive, or "
                "the engine computes another model"
            )
        return gaps[worst]

    def generate(self, *arguments: Any, **named: Any) -> Rollouts:
        """What `stream` takes, at once."""
        return self.stream(*arguments, **named).all()

    def stream(
        self,
        prompts: Ragged,
        samples_per_prompt: int,
        seed_parts: tuple,
        stop_token_ids: Sequence[int],
        temperature: float,
        max_new_tokens: int,
        prompts_per_part: int | None = None,
        what: str = "generate",
        beside: ExtraPrompts | None = None,
    ) -> Generation:
        """Start to draw `samples_per_prompt` answers to each prompt, a prompt's answers side by
        side.

        The seed of an answer is a hash of `seed_parts` (run seed, stage, iteration, ...), prompt
        row and sample number. Answers come in parts of so many prompts (null: all), whatever the
        number of engines. Spans call it `what`. The prompts `beside` get one answer each in the
        same batch, which come as a part of their own, the last.
        """
        index = np.repeat(np.arange(len(prompts)), samples_per_prompt)
        seeds = np.array(
            [
                request_seed(*seed_parts, row, sample)
                for row in range(len(prompts))
                for sample in range(samples_per_prompt)
            ]
        )
        part_of = index // (prompts_per_part or max(1, len(prompts)))
        if beside:
            others = np.arange(len(beside.prompts))
            index = np.concatenate([index, len(prompts) + others])
            seeds = np.concatenate(
                [seeds, [request_seed(*beside.seed_parts, row, 0) for row in others.tolist()]]
            )
            part_of = np.concatenate([part_of, np.full(len(others), part_of.max(initial=-1) + 1)])
            prompts = stack([prompts, beside.prompts])
        engines = index % len(self.actors)
        streams: list[Any] = []
        rows_of: dict[int, list[np.ndarray]] = {
            part: [] for part in dict.fromkeys(part_of.tolist())
        }
        for engine, actor in enumerate(self.actors):
            rows = np.flatnonzero(engines == engine)
            if not len(rows):
                continue
            for part in rows_of:
                if len(own := rows[part_of[rows] == part]):
                    rows_of[part].append(own)
            arguments = (
                prompts.take(index[rows]),
                index[rows],
                seeds[rows],
                temperature,
                max_new_tokens,
            )
            generate = actor.generate.options(num_returns="streaming")
            streams.append(
                generate.remote(*arguments, list(stop_token_ids), part_of[rows].tolist(), what)
            )
        return Generation(streams, rows_of, self.cluster.call_timeout_s)


def request_seed(*parts: int | str) -> int:
    """63-bit seed that depends on all parts; equal parts give equal seeds on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def transfer_backend(config: Config, sender: Role) -> str:
    """The weight-transfer backend that `auto` means between a sender and the engines, else the one
    that is asked for (the schema has checked that it can work)."""
    wanted, rollout = config.rollout.weight_transfer, config.resources.rollout
    if wanted == "ipc" and sender is not config.resources.policy:
        return "object_store"  # the models of an evaluation do not stand beside every engine
    if wanted == "auto":
        return "nccl" if sender.gpus > 0 and rollout.gpus >= 1 else "object_store"
    return wanted
