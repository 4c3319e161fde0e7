"""Groups of worker pods: how many, and what each has, from the roles of a config.

Stages come one after the other, so the cluster has what the largest of them asks. Its actors are
placed as Ray would, whole GPUs first, each where the fewest CPUs are taken; a pod then has the sum
of the CPUs of the actors on it, rounded up, and a GPU for each that they fill. All pods of a group
are alike; GPUs that do not divide by those of a machine leave one smaller pod.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil

from rayward.cluster.planning import Crew, Host, crews, each_by_itself, largest_first
from rayward.cluster.rooms import Room
from rayward.configs.plan import roles
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


@dataclass
class _Most:
    """The most that any stage takes of a pod."""

    pods: int
    cpus: float = 0.0
    processes: int = 0
    engines_on_cpu: int = 0

    def add(self, table: Mapping[str, Role], here: Mapping[Crew, int]) -> None:
        """What a stage has on one pod: how many of each crew."""
        # Where no learner is started (sampling), its room is kept all the same.
        processes = sum(n * sum(role in table for role in crew.roles) for crew, n in here.items())
        engines = sum(n for crew, n in here.items() if crew.engine and not crew.gpus)
        self.cpus = max(self.cpus, sum(n * crew.cpus for crew, n in here.items()))
        self.processes = max(self.processes, processes)
        self.engines_on_cpu = max(self.engines_on_cpu, engines)


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
    wanted = largest_first(crews(table, config))
    whole = sum(int(crew.gpus) * crew.count for crew in wanted if crew.gpus >= 1)
    room = Room([], float("inf"))
    for crew in [crew for crew in wanted if crew.gpus < 1]:
        for _ in range(crew.count):
            while not room.take_share(crew.cpus, crew.gpus):
                room.free.append(1.0)
    return whole + len(room.free)


def _place_all(
    config: Config, asked: list[dict[str, Role]], sizes: list[int]
) -> dict[int, _Most] | None:
    """By a pod's GPUs: the most that any stage takes of one. None where a stage does not fit."""
    most = {gpus: _Most(count) for gpus, count in Counter(sizes).items()}
    cpus = float(config.kube.cpus_per_node or "inf")
    pods = [Host(str(number), "", cpus, gpus) for number, gpus in enumerate(sizes)]
    for table in asked:
        placed = each_by_itself(pods, crews(table, config))
        if placed.no_room:
            return None
        guests: list[dict[Crew, int]] = [{} for _ in pods]
        for crew, numbers in placed.seats.items():
            for number, count in Counter(numbers).items():
                guests[number][crew] = count
        for gpus, here in zip(sizes, guests, strict=True):
            most[gpus].add(table, here)
    return most


def _cpu_group(config: Config, asked: list[dict[str, Role]]) -> Group:
    """Pods without GPUs: one, or as few as machines allow."""
    processes = sum(role.workers for table in asked for role in table.values())
    for pods in range(1, max(1, processes) + 1):
        if (placed := _place_all(config, asked, [0] * pods)) is not None:
            return _group(config, "cpu", 0, placed[0])
    raise AssertionError("a pod for each process has room for it: _check_machines has looked")


def _gpu_groups(config: Config, placed: Mapping[int, _Most]) -> list[Group]:
    sizes = sorted(placed, reverse=True)
    return [
        _group(config, "gpu" if gpus == sizes[0] else "gpu-rest", gpus, placed[gpus])
        for gpus in sizes
    ]


def _group(config: Config, name: str, gpus: int, most: _Most) -> Group:
    rule = (
        NODE_GIB
        + PROCESS_GIB * most.processes
        + GPU_GIB * gpus
        + config.rollout.kv_cache_gib * most.engines_on_cpu
    )
    # A ten-thousandth off: 3 x 0.1 is a little more than 0.3, and would round up to a CPU more.
    cpus = max(1, ceil(most.cpus - 1e-4))
    memory = ceil(config.kube.memory_gib or rule)
    return Group(name, most.pods, cpus, gpus, memory)
