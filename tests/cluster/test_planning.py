"""Who stands on which host: by hand, and where kube renders the pods, always."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from rayward.cluster.kube.groups import at_once, worker_groups
from rayward.cluster.kube.sizes import sized
from rayward.cluster.placement import in_order
from rayward.cluster.planning import (
    Crew,
    Host,
    Plan,
    crews,
    has_room,
    largest_first,
    plan,
    ranks,
    table_of,
)
from rayward.configs.load import load
from rayward.configs.plan import roles
from rayward.configs.schema import Config
from rayward.configs.sections.machines import Role


def hosts(*sizes: tuple[float, float]) -> list[Host]:
    """Hosts 10.0.0.1, 10.0.0.2, ... of so many CPUs and GPUs."""
    return [Host(f"id{n}", f"10.0.0.{n}", *size) for n, size in enumerate(sizes, 1)]


def placed(sizes: list[tuple[float, float]], table: dict[str, Role]) -> dict[str, list[int]]:
    """The last number of the address of each process's host."""
    found = plan(hosts(*sizes), crews(table))
    assert not found.no_room
    return {
        role: [int(address.split(".")[-1]) for address in addresses]
        for role, addresses in found.addresses().items()
    }


def test_ranks_are_packed_and_engines_spread() -> None:
    table = {
        "policy": Role(workers=4, gpus=1, cpus=1),
        "critic": Role(workers=4, gpus=1, cpus=1),
        "rollout": Role(workers=6, gpus=1, cpus=1),
        "reference": Role(gpus=0.5),
        "reward": Role(gpus=0.5),
    }
    found = placed([(32, 8), (32, 8)], table)
    # Of equal sizes the order given decides: four ranks each, then the engines one by one, until
    # the last two GPUs are left, one a host. Half a GPU each: the emptier host is the other one.
    assert found["policy"] == [1] * 4 and found["critic"] == [2] * 4
    assert found["rollout"] == [1, 2, 1, 2, 1, 2]
    assert sorted(found["reference"] + found["reward"]) == [1, 2]
    # The ranks that one host has no room for stand together on the next.
    assert placed([(32, 3), (32, 8), (32, 3)], {"policy": Role(workers=10, gpus=1)})["policy"] == [
        *([1] * 2),
        *([2] * 8),
    ]


def test_one_host_has_all_in_the_order_of_the_ranks() -> None:
    table = roles(load("quickstart"), "rl")
    assert {n for numbers in placed([(4, 0)], table).values() for n in numbers} == {1}


def test_what_fits_the_sum_and_no_host_is_refused() -> None:
    wanted = crews({"rollout": Role(workers=2, gpus=4, cpus=1), "policy": Role(cpus=1)})
    found = plan(hosts((8, 4), (8, 3), (8, 1)), wanted)
    assert found.no_room == ("rollout 1 of 2 (from 0) finds no host with 1 CPU, 4 GPU to spare")
    text = "\n".join(table_of(found, wanted))
    assert "host 10.0.0.1: 8 CPU, 4 GPU; 7 CPU and 0 GPU left after rollout 0" in text
    assert "host 10.0.0.2: 8 CPU, 3 GPU; 8 CPU and 3 GPU left" in text
    # CPUs likewise: three halves on each of two hosts, and a whole one nowhere.
    assert plan(hosts((1.5, 0), (1.5, 0)), crews({"policy": Role(workers=3, cpus=1)})).no_room
    assert plan(hosts(), crews({"policy": Role()})).no_room


def test_a_share_of_a_gpu_that_others_have_taken_is_no_whole_one() -> None:
    free = hosts((8, 1.5))
    assert not plan(free, crews({"policy": Role(gpus=1), "reward": Role(gpus=0.5)})).no_room
    assert plan(free, crews({"policy": Role(workers=2, gpus=1)})).no_room
    assert plan(free, crews({"reward": Role(gpus=0.6), "policy": Role(gpus=1)})).no_room


def test_a_plan_has_room_whatever_the_order_of_the_roles() -> None:
    """0.3 and 0.3 on one GPU would leave 0.4 and 1, which have no room for 0.7 and 0.7."""
    shares = {"reference": 0.3, "reward": 0.3, "policy": 0.7, "critic": 0.7}
    wanted = crews({name: Role(gpus=share) for name, share in shares.items()})
    found = plan(hosts((8, 2)), wanted)
    assert not found.no_room and has_room(hosts((8, 2)), found)
    assert not has_room(hosts((8, 1.5)), found) and not has_room([], found)
    assert "host 10.0.0.1: 8 CPU, 2 GPU; 6.8 CPU and 0 GPU left" in table_of(found, wanted)[-1]


def test_a_head_without_cpus_takes_none_but_those_that_ask_for_nothing() -> None:
    assert placed([(0, 0), (4, 0)], {"policy": Role(), "rollout": Role(workers=2)}) == {
        "policy": [2],
        "rollout": [2, 2],
    }


def test_taking_turns_is_one_crew(tiny_config: Callable[..., Config]) -> None:
    shares = {"rollout": 0.4, "policy": 0.3, "critic": 0.2}
    config = tiny_config(
        resources={name: {"workers": 3, "gpus": share} for name, share in shares.items()},
        rl={"mode": "colocate", "optimizer": {"zero_stage": 1}},
    )
    wanted = crews(roles(config, "rl"), config)
    assert wanted[0] == Crew(("rollout", "policy", "critic"), 3, pytest.approx(0.3), 0.9, False)
    found = plan(hosts((4, 1), (4, 2)), wanted).addresses()
    assert found["rollout"] == found["policy"] == ["10.0.0.1", "10.0.0.2", "10.0.0.2"]
    # A stage of engines alone keeps room for the learners, as RL will have them.
    assert crews({"rollout": config.resources.rollout}, config) == wanted[:1]


def test_every_cluster_that_is_rendered_has_room(tiny_config: Callable[..., Config]) -> None:
    draw = random.Random(5)
    configs = [
        sized(load(name), *size) for name in ("quickstart", "smollm2") for size in ((8, 8), (2, 4))
    ]
    for _ in range(100):
        gpus = draw.choice([0, 1])
        resources = {
            name: {"workers": draw.randint(1, 12), "gpus": gpus, "cpus": draw.choice([0.2, 1, 4])}
            for name in ("train", "policy", "critic", "rollout")
        }
        frozen = {
            name: {"gpus": draw.choice([0.25, 0.5]) * gpus} for name in ("reference", "reward")
        }
        node = {"gpus_per_node": draw.choice([2, 4, 8])}
        configs.append(tiny_config(resources=resources | frozen, kube=node))
    for config in configs:
        sizes = [(g.cpus, g.gpus) for g in worker_groups(config) for _ in range(g.pods)]
        for table in at_once(config):
            wanted = crews(table, config)
            found = plan(hosts(*sizes), wanted)
            assert not found.no_room, found.no_room
            assert_holds(found, wanted)


def assert_holds(found: Plan, wanted: list[Crew]) -> None:
    """Everybody has a place, nobody too much, and ranks of a host follow each other."""
    rooms = [host.room() for host in found.hosts]
    for crew in largest_first(wanted):
        numbers = found.seats[crew]
        assert len(numbers) == crew.count
        for number in numbers:
            assert rooms[number].take_share(crew.cpus, crew.gpus)
        assert crew.spread or numbers == sorted(numbers)
    for room in rooms:
        assert room.cpus <= room.room_cpus + 1e-6 and all(share > -1e-6 for share in room.free)


def test_gpus_are_sorted_by_number_or_by_name() -> None:
    """Ray tells numbers, or what CUDA_VISIBLE_DEVICES of the node has."""
    ranks_of = [["10"], ["9"], [2, 1]]
    assert sorted(ranks_of, key=in_order) == [[2, 1], ["9"], ["10"]]
    names = [["GPU-c1"], ["MIG-a0"], ["GPU-a7"]]
    assert sorted(names, key=in_order) == [["GPU-a7"], ["GPU-c1"], ["MIG-a0"]]


def test_numbers_in_words() -> None:
    assert ranks([0, 1, 2, 3, 6, 8, 9]) == "0-3, 6, 8-9"
    assert ranks([2]) == "2" and ranks([]) == ""
