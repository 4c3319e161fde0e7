"""Which host each process of a stage stands on: a plan from the sizes of single hosts.

Engines are spread over the hosts; the ranks of every other role are packed onto as few as have
room, so that ranks that follow each other share a host. With rl.mode colocate an engine and the
learners that share its GPU are one. Starts nothing, and asks no cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heapreplace

from rayward.cluster.rooms import ROUNDING, Room
from rayward.configs.plan import sharing
from rayward.configs.schema import Config
from rayward.configs.sections.machines import EngineRole, Role

SPREAD = ("rollout", "serve")
"""Roles whose processes do not talk to each other."""


def fewest(role: Role) -> int:
    """With how many processes a stage starts, and goes on, where there is no room for all."""
    least = role.min_workers if isinstance(role, EngineRole) else None
    return least or role.workers


@dataclass(frozen=True)
class Host:
    """A node of the cluster, with what there is of it: in all, or free."""

    id: str
    """Ray's, in hexadecimal."""
    address: str
    cpus: float
    gpus: float

    def room(self) -> Room:
        # Ray tells only the sum over the GPUs: what is no whole one counts as a share of one more.
        whole = int(self.gpus + ROUNDING)
        rest = self.gpus - whole
        return Room([1.0] * whole + ([rest] if rest > ROUNDING else []), self.cpus)


@dataclass(frozen=True)
class Crew:
    """Processes that are placed alike: those of a role, or engines each with its learners."""

    roles: tuple[str, ...]
    count: int
    cpus: float
    """Of each."""
    gpus: float
    """Of each."""
    spread: bool

    @property
    def name(self) -> str:
        return " with ".join(self.roles)

    @property
    def engine(self) -> bool:
        """Whether each is one of vLLM, alone or with its learners."""
        return any(role in SPREAD for role in self.roles)

    @property
    def wants(self) -> str:
        return f"{self.cpus:g} CPU, {self.gpus:g} GPU"


@dataclass(frozen=True)
class Plan:
    """Where processes stand; or, where one finds no room, those that came before it."""

    hosts: tuple[Host, ...]
    seats: dict[Crew, list[int]] = field(default_factory=dict)
    """The number in `hosts` of each process; ranks of one host follow each other."""
    no_room: str = ""
    """Who finds none; "" where all do."""

    def addresses(self) -> dict[str, list[str]]:
        """The host of each process, by role, in the order of the ranks."""
        return {
            role: [self.hosts[number].address for number in numbers]
            for crew, numbers in self.seats.items()
            for role in crew.roles
        }


def crews(table: Mapping[str, Role], config: Config | None = None) -> list[Crew]:
    """Who is placed, from the roles of a stage (`configs.plan.roles`)."""
    alone, found = dict(table), []
    together = sharing(config) if config and "rollout" in table else {}
    if together:
        # A bundle for each engine, with room for its learners also where a stage starts none.
        cpus = sum(role.cpus for role in together.values())
        # Shares as Ray counts them, in ten-thousandths.
        gpus = round(sum(role.gpus for role in together.values()), 4)
        found.append(Crew(tuple(together), table["rollout"].workers, cpus, gpus, False))
        alone = {name: role for name, role in table.items() if name not in together}
    for name, role in alone.items():
        found.append(Crew((name,), role.workers, role.cpus, role.gpus, name in SPREAD))
    return found


def plan(hosts: Sequence[Host], wanted: Sequence[Crew]) -> Plan:
    """Who stands where. Of several tries the first that has room for all, else the first one.

    The same for the same hosts and crews: the largest processes are placed first, and of hosts
    that are as good as each other the first is taken.
    """
    hosts = tuple(sorted(hosts, key=_order))
    tries = [_grouped(hosts, wanted, emptiest=True), _grouped(hosts, wanted, emptiest=False)]
    # As the pods of a rendered cluster are counted (kube/groups.py): there it has room.
    tries.append(each_by_itself(hosts, wanted))
    return next((found for found in tries if not found.no_room), tries[0])


def _order(host: Host) -> tuple[object, ...]:
    # 10.0.0.9 before 10.0.0.10.
    parts = host.address.split(".")
    return ([int(part) if part.isdigit() else 0 for part in parts], host.address, host.id)


def largest_first(wanted: Iterable[Crew]) -> list[Crew]:
    """In the order in which they are placed: what is small fits beside what is large."""
    return sorted(wanted, key=lambda crew: (-crew.gpus, -crew.cpus))


def _free(room: Room, crew: Crew) -> tuple[float, float]:
    """How empty a host is for such a process: GPUs first, for who wants some."""
    return (sum(room.free) if crew.gpus else 0.0, room.room_cpus - room.cpus)


def _grouped(hosts: tuple[Host, ...], wanted: Sequence[Crew], emptiest: bool) -> Plan:
    rooms = [host.room() for host in hosts]
    seats: dict[Crew, list[int]] = {}
    for crew in largest_first(wanted):
        place = _spread if crew.spread else _pack
        seats[crew] = place(rooms, crew, emptiest)
        if len(seats[crew]) < crew.count:
            return Plan(hosts, seats, _lacks(crew, seats[crew]))
    return Plan(hosts, {crew: seats[crew] for crew in wanted})


def _spread(rooms: list[Room], crew: Crew, emptiest: bool) -> list[int]:
    """Each onto the host that has the fewest of its kind."""
    chosen: list[int] = []
    for _ in range(crew.count):
        order = sorted(
            range(len(rooms)),
            key=lambda number: (chosen.count(number), *_preference(rooms[number], crew, emptiest)),
        )
        taken = next((n for n in order if rooms[n].take_share(crew.cpus, crew.gpus)), None)
        if taken is None:
            break
        chosen.append(taken)
    return chosen


def _pack(rooms: list[Room], crew: Crew, emptiest: bool) -> list[int]:
    """Onto the host that takes the most of them, and the others likewise."""
    chosen: list[int] = []
    while left := crew.count - len(chosen):
        takes = [_takes(room, crew, left) for room in rooms]
        best = min(
            range(len(rooms)),
            key=lambda number: (-takes[number], *_preference(rooms[number], crew, emptiest)),
            default=None,
        )
        if best is None or not takes[best]:
            break
        for _ in range(takes[best]):
            rooms[best].take_share(crew.cpus, crew.gpus)
        chosen += [best] * takes[best]
    return sorted(chosen)


def _preference(room: Room, crew: Crew, emptiest: bool) -> tuple[float, ...]:
    sign = -1 if emptiest else 1
    return tuple(sign * amount for amount in _free(room, crew))


def _takes(room: Room, crew: Crew, most: int) -> int:
    """How many of `most` processes a host has room for."""
    trial = Room(list(room.free), room.room_cpus, room.cpus)
    return next((n for n in range(most) if not trial.take_share(crew.cpus, crew.gpus)), most)


def each_by_itself(hosts: Sequence[Host], wanted: Sequence[Crew]) -> Plan:
    """Each process where the fewest CPUs a GPU are taken, so that a smaller host gets its share."""
    hosts = tuple(hosts)
    rooms = [host.room() for host in hosts]
    seats: dict[Crew, list[int]] = {}

    def load(number: int) -> float:
        return rooms[number].cpus / max(1, len(rooms[number].free))

    for crew in largest_first(wanted):
        chosen: list[int] = []
        # Of many hosts: sorted by their load, without those that are full for this crew.
        queue = sorted((load(number), number) for number in range(len(rooms)))
        while queue and len(chosen) < crew.count:
            number = queue[0][1]
            if rooms[number].take_share(crew.cpus, crew.gpus):
                chosen.append(number)
                heapreplace(queue, (load(number), number))
            else:
                heappop(queue)
        if len(chosen) < crew.count:
            return Plan(hosts, seats | {crew: chosen}, _lacks(crew, chosen))
        seats[crew] = chosen if crew.spread else sorted(chosen)
    return Plan(hosts, {crew: seats[crew] for crew in wanted})


def has_room(free: Sequence[Host], found: Plan) -> bool:
    """Whether everybody fits where a plan says, with what is `free` of the hosts."""
    rooms = {host.id: host.room() for host in free}
    return all(
        found.hosts[number].id in rooms
        and rooms[found.hosts[number].id].take_share(crew.cpus, crew.gpus)
        for crew in largest_first(found.seats)
        for number in found.seats[crew]
    )


def _lacks(crew: Crew, seated: Sequence[int]) -> str:
    many = f" {len(seated)} of {crew.count} (from 0)" if crew.count > 1 else ""
    return f"{crew.name}{many} finds no host with {crew.wants} to spare"


def table_of(found: Plan, wanted: Sequence[Crew]) -> list[str]:
    """Lines of who asks for what, and what each host has, and has left."""
    lines = [f"  {crew.name}: {crew.count} x ({crew.wants})" for crew in wanted]
    for number, host in enumerate(found.hosts):
        room, guests = host.room(), []
        for crew in largest_first(found.seats):
            numbers = found.seats[crew]
            here = [rank for rank, seat in enumerate(numbers) if seat == number]
            for _ in here:
                room.take_share(crew.cpus, crew.gpus)
            guests += [f"{crew.name} {ranks(here)}"] if here else []
        gpus = max(0.0, round(sum(room.free), 4))
        left = f"{room.room_cpus - room.cpus:g} CPU and {gpus:g} GPU left"
        takes = f" after {', '.join(guests)}" if guests else ""
        lines.append(f"  host {host.address}: {host.cpus:g} CPU, {host.gpus:g} GPU; {left}{takes}")
    return lines


def ranks(numbers: Sequence[int]) -> str:
    """`0-3, 6` of 0, 1, 2, 3, 6."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
