"""Groups of worker pods: how many, and what each has, from the roles of a config.

Stages come one after the other, so the cluster has what the largest of them asks. Its actors are
placed as Ray would, whole GPUs first, each where the fewest CPUs are taken; a pod then has the sum
of the CPUs of the actors on it, rounded up, and a GPU for each that they fill. All pods of a group
are alike; GPUs that do not divide by those of a machine leave one smaller pod. With rl.mode
colocate an engine and its learners are placed as one, as `crews` of cluster/planning.py does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil

from rayward.cluster.rooms import Room
from rayward.configs.plan import roles, sharing
from rayward.configs.schema import Config
from rayward.configs.sections.machines import Role
from rayward.configs.stages import STAGES, parts

NODE_GIB, PROCESS_GIB, GPU_GIB = 2, 3, 32
"""Memory of a pod: Ray's own processes; a process with torch; what waits in host memory for a
GPU (weights on their way to engines, checkpoints, optimizer states that were moved out)."""
MORE_GPUS = 64
"""Tries of one more GPU, where engines of several do not divide the pods."""


@dataclass(frozen=True)
class Group:
    """Worker pods of one kind."""

    name: str
    pods: int
    cpus: int
    """Of each pod."""
    gpus: int
    """Of each pod."""
    memory_gib: int
    """Of each pod."""


@dataclass(frozen=True)
class _Slot:
    """What is placed as one: a process, or an engine with the learners that share its GPU."""

    cpus: float
    gpus: float
    processes: int
    engine: bool


@dataclass
class _Pod(Room):
    """A pod while actors are placed."""

    processes: int = 0
    engines_on_cpu: int = 0

    def take(self, slot: _Slot) -> bool:
        """Place it here, if it fits."""
        if not self.take_share(slot.cpus, slot.gpus):
            return False
        self.processes += slot.processes
        self.engines_on_cpu += slot.engine and not slot.gpus
        return True


@dataclass
class _Placed:
    """The most that any stage takes of the pods of one group."""

    cpus: float = 0.0
    processes: int = 0
    engines_on_cpu: int = 0
    pods: list[_Pod] = field(default_factory=list)

    def add(self, pod: _Pod) -> None:
        self.cpus = max(self.cpus, pod.cpus)
        self.processes = max(self.processes, pod.processes)
        self.engines_on_cpu = max(self.engines_on_cpu, pod.engines_on_cpu)


def at_once(config: Config, stages: Iterable[str] = STAGES) -> list[dict[str, Role]]:
    """The actors that are there at once, as `--dry-run` lists them: a table a stage.

    Sampling ends its actors before its training starts, which is a table of its own.
    """
    tables = []
    for stage in [stage for stage in stages if parts(config, stage)]:
        table = roles(config, stage)
        if "train" in table and len(table) > 1:
            tables.append({"train": table.pop("train")})
        tables.append(table)
    return [table for table in tables if table]


def worker_groups(config: Config, stages: Iterable[str] = STAGES) -> list[Group]:
    """The groups that these stages need. ValueError where an actor is larger than a machine."""
    asked = at_once(config, stages)
    _check_machines(config, asked)
    least = max((_gpus(config, table) for table in asked), default=0)
    if not least:
        return [_cpu_group(config, asked)]
    # Engines of several GPUs need theirs in one pod, which may take a GPU more than the sum.
    for gpus in range(least, least + MORE_GPUS):
        whole, rest = divmod(gpus, config.kube.gpus_per_node)
        sizes = [config.kube.gpus_per_node] * whole + [rest] * bool(rest)
        if (placed := _place_all(config, asked, sizes)) is not None:
            return _gpu_groups(config, placed)
    raise ValueError(
        f"the actors do not fit pods of {config.kube.gpus_per_node} GPUs and "
        f"{config.kube.cpus_per_node or 'any'} CPUs (kube.gpus_per_node, kube.cpus_per_node); "
        "lower resources.ROLE.gpus or .cpus"
    )


def _check_machines(config: Config, asked: list[dict[str, Role]]) -> None:
    kube = config.kube
    for name, role in [item for table in asked for item in table.items()]:
        for kind, wanted, most in (
            ("gpus", role.gpus, kube.gpus_per_node),
            ("cpus", role.cpus, kube.cpus_per_node),
        ):
            if most is not None and wanted > most:
                raise ValueError(
                    f"a process of role {name} asks for {wanted:g} {kind}, and a machine has "
                    f"kube.{kind}_per_node {most}"
                )


def _gpus(config: Config, table: Mapping[str, Role]) -> int:
    """GPUs that a stage fills: shares of one are put together, whole ones are not shared."""
    pod = _Pod([], float("inf"))
    for slot in _in_order(config, table):
        while not pod.take(slot):
            pod.free.append(1.0)
    return len(pod.free)


def _in_order(config: Config, table: Mapping[str, Role]) -> list[_Slot]:
    """Everything of a stage that is placed, the largest first."""
    alone = dict(table)
    slots: list[_Slot] = []
    if config.rl.mode == "colocate" and "rollout" in table:
        slots += _colocated(config, table)
        alone = {name: role for name, role in table.items() if name not in sharing(config)}
    for name, role in alone.items():
        engine = name in ("rollout", "serve")
        slots += [_Slot(role.cpus, role.gpus, 1, engine)] * role.workers
    return sorted(slots, key=lambda slot: (-slot.gpus, -slot.cpus))


def _colocated(config: Config, table: Mapping[str, Role]) -> list[_Slot]:
    """A slot for each engine. Where no learner is started (sampling), its room is kept all the
    same.
    """
    together = sharing(config)
    cpus = sum(role.cpus for role in together.values())
    # Shares as Ray counts them; 0.7 + 0.2 + 0.1 is a little less than 1.
    gpus = round(sum(role.gpus for role in together.values()), 4)
    processes = sum(name in table for name in together)
    return [_Slot(cpus, gpus, processes, engine=True)] * table["rollout"].workers


def _place(config: Config, table: Mapping[str, Role], sizes: list[int]) -> list[_Pod] | None:
    """The pods with a stage on them; None where it does not fit."""
    room = float(config.kube.cpus_per_node or "inf")
    pods = [_Pod([1.0] * gpus, room) for gpus in sizes]
    for slot in _in_order(config, table):
        # Fewest CPUs a GPU first, so that a smaller pod gets its share only.
        by_load = sorted(pods, key=lambda pod: pod.cpus / max(1, len(pod.free)))
        if not any(pod.take(slot) for pod in by_load):
            return None
    return pods


def _place_all(
    config: Config, asked: list[dict[str, Role]], sizes: list[int]
) -> dict[int, _Placed] | None:
    """By a pod's GPUs: how many such pods there are, and the most that any stage takes of one."""
    placed = {gpus: _Placed() for gpus in sizes}
    for table in asked:
        pods = _place(config, table, sizes)
        if pods is None:
            return None
        for pod in pods:
            placed[len(pod.free)].add(pod)
    for gpus, most in placed.items():
        most.pods = [_Pod([], 0)] * sizes.count(gpus)
    return placed


def _cpu_group(config: Config, asked: list[dict[str, Role]]) -> Group:
    """Pods without GPUs: one, or as few as machines allow."""
    processes = sum(role.workers for table in asked for role in table.values())
    for pods in range(1, max(1, processes) + 1):
        if (placed := _place_all(config, asked, [0] * pods)) is not None:
            return _group(config, "cpu", 0, placed[0])
    raise AssertionError("a pod for each process has room for it: _check_machines has looked")


def _gpu_groups(config: Config, placed: Mapping[int, _Placed]) -> list[Group]:
    sizes = sorted(placed, reverse=True)
    return [
        _group(config, "gpu" if gpus == sizes[0] else "gpu-rest", gpus, placed[gpus])
        for gpus in sizes
    ]


def _group(config: Config, name: str, gpus: int, most: _Placed) -> Group:
    rule = (
        NODE_GIB
        + PROCESS_GIB * most.processes
        + GPU_GIB * gpus
        + config.rollout.kv_cache_gib * most.engines_on_cpu
    )
    # A ten-thousandth off: 3 x 0.1 is a little more than 0.3, and would round up to a CPU more.
    cpus = max(1, ceil(most.cpus - 1e-4))
    memory = ceil(config.kube.memory_gib or rule)
    return Group(name, len(most.pods), cpus, gpus, memory)
