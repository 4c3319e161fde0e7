"""Places for the actors of a stage, reserved together on the cluster before any of them starts.

A placement group holds them: it is made whole or not at all, so of two runs on one cluster none
takes what the other has reserved, and Ray takes it back where the process that made it is gone.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from rayward.cluster.hosts import hosts, lost
from rayward.cluster.planning import (
    Crew,
    Plan,
    crews,
    fewest,
    has_room,
    largest_first,
    plan,
    table_of,
)
from rayward.configs.schema import Config
from rayward.configs.sections.machines import Cluster, Role

NODE = "ray.io/node-id"
"""Label that Ray gives every node."""
PATIENCE_S = 5.0
"""Wait for the hosts that are best; what ended just now gives its room back only after a moment."""
RESERVING_S = 10.0
"""Wait for a group for which there seemed to be room, before the cluster is looked at anew."""
POLL_S = 0.1


def fitted(
    table: Mapping[str, Role], config: Config | None = None, patience_s: float = 0.0
) -> dict[str, Role]:
    """The roles with as many engines as there is room for, within `patience_s` or, where there are
    too few, when others give theirs back.
    """
    engines = table.get("rollout")
    if engines is None or fewest(engines) == engines.workers:
        return dict(table)
    numbers = range(engines.workers, fewest(engines) - 1, -1)
    tables = [{**table, "rollout": engines.model_copy(update={"workers": n})} for n in numbers]

    def fits(one: Mapping[str, Role], free: bool) -> bool:
        return not plan(hosts(free=free), crews(one, config)).no_room

    ends = time.monotonic() + patience_s
    while not fits(tables[0], free=True) and time.monotonic() < ends:
        time.sleep(POLL_S)
    found = (one for free in (True, False) for one in tables if fits(one, free))
    return next(found, tables[-1])


def check_fits(table: Mapping[str, Role], config: Config | None = None) -> Plan:
    """Where the actors of a stage stand on an empty cluster.

    ValueError, with a table of who asks for what and what the hosts have, where one finds no host
    with room for it: they would wait for ever.
    """
    wanted = crews(table, config)
    found = plan(hosts(), wanted)
    if found.no_room:
        raise ValueError(
            "\n".join(
                [
                    f"the actors do not fit the cluster: {found.no_room}",
                    *table_of(found, wanted),
                    *(f"  host {address}: gone" for address in lost()),
                    "lower resources.ROLE.cpus, .gpus or .workers, or add nodes",
                ]
            )
        )
    return found


def planned_now(table: Mapping[str, Role], config: Config) -> tuple[Plan, bool]:
    """(where the actors would stand, whether there is room for them now)."""
    table = fitted(table, config)
    best = check_fits(table, config)
    now = _now(best, crews(table, config), patient=False)
    return now or best, now is not None


def _now(best: Plan, wanted: Sequence[Crew], patient: bool) -> Plan | None:
    """The plan for which there is room now: the best one, or, where not `patient`, another."""
    free = hosts(free=True)
    if has_room(free, best):
        return best
    other = plan(free, wanted)
    return None if patient or other.no_room else other


def _wait_for_room(
    table: Mapping[str, Role],
    config: Config | None,
    limit_s: float,
    take: Callable[[Plan], bool],
) -> None:
    """Until there is room for a plan, and `take` has taken it.

    ValueError where the cluster has too little, TimeoutError after `limit_s` seconds.
    """
    wanted, started_at = crews(table, config), time.monotonic()
    while True:
        # Anew each time: a host may go meanwhile, or come.
        best = check_fits(table, config)
        found = _now(best, wanted, patient=time.monotonic() < started_at + PATIENCE_S)
        if found and take(found):
            return
        if time.monotonic() > started_at + limit_s:
            now = plan(hosts(free=True), wanted)
            raise TimeoutError(
                "\n".join(
                    [
                        f"the cluster has had no room for these actors within {limit_s:.0f} s "
                        "(cluster.start_timeout_s), others use it: "
                        f"{now.no_room or 'what is free is in parts too small'}",
                        *table_of(now, wanted),
                    ]
                )
            )
        time.sleep(POLL_S)


class Placement:
    """Places on the cluster, until `remove` (or the end of a `with`)."""

    def __init__(self, table: Mapping[str, Role], cluster: Cluster, config: Config | None = None):
        """Reserve one for each process of the roles, with the `config` of a run by its rl.mode.

        ValueError where the cluster has too little, TimeoutError where what it has is not free
        within cluster.start_timeout_s.
        """
        self.table, table = table, fitted(table, config, PATIENCE_S)
        self.crews = crews(table, config)
        self.more: list[Any] = []
        self.group: PlacementGroup | None = None
        self.bundles: dict[Crew, list[int]] = {}
        """The bundle of each rank; of who asks for nothing there is none."""
        try:
            _wait_for_room(table, config, cluster.start_timeout_s, self._reserve)
            self._sort_by_gpu(cluster.start_timeout_s)
        except BaseException:  # Ctrl-C too
            self.remove()
            raise

    def _reserve(self, found: Plan) -> bool:
        bundles: list[dict[str, float]] = []
        selectors: list[dict[str, str]] = []
        self.bundles = {}
        for crew in largest_first(found.seats):
            numbers = found.seats[crew]
            if not crew.cpus and not crew.gpus:
                continue  # Ray has no bundle of nothing
            self.bundles[crew] = [len(bundles) + rank for rank in range(len(numbers))]
            amounts = {"CPU": crew.cpus, "GPU": crew.gpus}
            bundles += [{name: n for name, n in amounts.items() if n}] * len(numbers)
            selectors += [{NODE: found.hosts[number].id} for number in numbers]
        self.plan = found
        if not bundles:
            return True
        self.group = placement_group(bundles, strategy="PACK", bundle_label_selector=selectors)
        # Also where nobody comes to `remove`: unlike actors, a group does not end with its handle.
        weakref.finalize(self, _give_back, self.group).atexit = False
        if self.group.wait(RESERVING_S):
            return True
        self.remove()
        return False

    def _sort_by_gpu(self, limit_s: float) -> None:
        """Let ranks of a host follow each other as their GPUs do, next to which others are near."""
        for crew, bundles in self.bundles.items():
            if not crew.gpus or crew.spread or crew.count == 1:
                continue
            asked = [
                _gpu_ids.options(
                    num_gpus=crew.gpus, scheduling_strategy=self._bundle(bundle)
                ).remote()
                for bundle in bundles
            ]
            try:
                gpus = ray.get(asked, timeout=limit_s)
            except ray.exceptions.GetTimeoutError:
                raise TimeoutError(
                    f"{crew.name}: which GPUs they have did not show within {limit_s:.0f} s "
                    "(cluster.start_timeout_s)"
                ) from None
            seats = zip(self.plan.seats[crew], map(in_order, gpus), bundles, strict=True)
            self.bundles[crew] = [bundle for _, _, bundle in sorted(seats)]

    def _bundle(self, number: int) -> PlacementGroupSchedulingStrategy:
        assert self.group is not None
        return PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=number)

    def seats(self, role: str) -> list[Any]:
        """Ray's scheduling strategy for each process of a role, in the order of the ranks."""
        crew = next(crew for crew in self.crews if role in crew.roles)
        if crew in self.bundles:
            return [self._bundle(number) for number in self.bundles[crew]]
        found = [self.plan.hosts[number].id for number in self.plan.seats[crew]]
        return [NodeAffinitySchedulingStrategy(node, soft=False) for node in found]

    def later(self, role: str) -> list[Any]:
        """Of a role that may have more processes than there was room for: where these will stand,
        once there is.
        """
        missing = self.table[role].workers - len(self.seats(role))
        seats = [another_seat(self.table[role]) for _ in range(missing)]
        self.more += seats
        return seats

    def remove(self) -> None:
        """Give the places back; what stands on them ends."""
        for seat in self.more:
            leave(seat)
        self.more = []
        if self.group is not None:
            _give_back(self.group)
            self.group = None

    def __enter__(self) -> Placement:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def another_seat(role: Role) -> Any:
    """A place on any host, whenever there is room; whoever asks gives it back (`leave`)."""
    amounts = {"CPU": role.cpus, "GPU": role.gpus}
    bundle = {name: n for name, n in amounts.items() if n}
    return PlacementGroupSchedulingStrategy(placement_group([bundle]), 0) if bundle else None


def leave(seat: Any) -> None:
    """Give a seat of `another_seat` back."""
    if group := getattr(seat, "placement_group", None):
        _give_back(group)


def has_place(seat: Any, within_s: float) -> bool:
    """Whether a seat is there, or comes within so many seconds: a host may have gone with it."""
    group = getattr(seat, "placement_group", None)
    if group is None:
        return True
    # Of this seat alone: where another one of the group is lost, the group is not whole.
    number, ends = str(seat.placement_group_bundle_index), time.monotonic() + within_s
    while True:
        nodes = placement_group_table(group)["bundles_to_node_id"]
        placed = {str(key): node for key, node in nodes.items()}.get(number)
        if placed and placed in {host.id for host in hosts()}:
            return True
        if time.monotonic() > ends:
            return False
        time.sleep(POLL_S)


def _give_back(group: PlacementGroup) -> None:
    if ray.is_initialized():
        remove_placement_group(group)


@ray.remote(num_cpus=0)
def _gpu_ids() -> list[Any]:
    return ray.get_gpu_ids()


def in_order(gpus: Sequence[int | str]) -> list[tuple[int, str]]:
    """What sorts GPUs: 9 before 10, and what has a name (a UUID, a part of a GPU) by its name."""
    return sorted((len(str(gpu)), str(gpu)) for gpu in gpus)


def train_hosts(role: Role, cluster: Cluster) -> list[dict[str, str]] | None:
    """Labels of the hosts for Ray Train's workers, once there is room; None where there is no
    choice.

    ValueError where the cluster has too little, TimeoutError where what it has is not free within
    cluster.start_timeout_s.
    """
    table = {"train": role}
    labels: list[dict[str, str]] = []
    if len(check_fits(table).hosts) == 1:
        return None  # where Ray Train waits

    def take(found: Plan) -> bool:
        (seats,) = found.seats.values()
        labels.extend({NODE: found.hosts[number].id} for number in seats)
        return True

    _wait_for_room(table, None, cluster.start_timeout_s, take)
    return labels
