"""Worker groups add up to what the roles of a config ask, and every stage fits on them."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from math import ceil
from typing import Any

import pytest

from rayward.cluster.kube.groups import at_once, worker_groups
from rayward.cluster.kube.pods import HEAD_CPUS
from rayward.cluster.kube.ray_objects import objects
from rayward.cluster.kube.sizes import parse_size, sized
from rayward.configs.load import dump, load
from rayward.configs.plan import roles
from rayward.configs.schema import Config
from rayward.configs.sections.machines import Role

GPU_ROLES: dict[str, Any] = {
    "train": {"workers": 8, "gpus": 1, "cpus": 4},
    "policy": {"workers": 2, "gpus": 1, "cpus": 4},
    "critic": {"workers": 1, "gpus": 1, "cpus": 4},
    "reference": {"gpus": 0.25},
    "reward": {"gpus": 0.25},
    "rollout": {"workers": 4, "gpus": 1, "cpus": 4},
}


def total(tables: list[dict[str, Role]], what: str) -> float:
    """The most that any stage asks."""
    return max(sum(getattr(r, what) * r.workers for r in table.values()) for table in tables)


def test_eight_gpus_by_hand(tiny_config: Callable[..., Config]) -> None:
    (group,) = worker_groups(tiny_config(resources=GPU_ROLES))
    # Training: 8 x 1 GPU and 4 CPUs. RL: 4 + 2 + 1 whole, two quarters on the eighth; 28.6 CPUs.
    assert (group.pods, group.gpus, group.cpus) == (1, 8, 32)
    # RL has the most processes: 4 engines, 2 + 1 ranks, reference, reward.
    assert group.memory_gib == 2 + 3 * 9 + 32 * 8


def test_a_laptop_s_config_is_one_pod(tiny_config: Callable[..., Config]) -> None:
    config = load("quickstart")
    (group,) = worker_groups(config)
    # RL: policy, critic, reference, reward with 0.3 each, the engine with 0.4: 1.6 CPUs.
    assert (group.pods, group.gpus, group.cpus) == (1, 0, 2)
    assert group.memory_gib == 2 + 3 * 5 + 1
    given = config.model_copy(update={"kube": config.kube.model_copy(update={"memory_gib": 11.5})})
    assert worker_groups(given)[0].memory_gib == 12


def test_gpus_that_do_not_divide_leave_a_smaller_pod(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(resources=GPU_ROLES | {"train": {"workers": 11, "gpus": 1, "cpus": 2}})
    first, rest = worker_groups(config)
    assert (first.pods, first.gpus, rest.pods, rest.gpus) == (1, 8, 1, 3)
    assert first.cpus >= 16 and rest.cpus >= 6


def test_engines_of_several_gpus_stay_in_a_pod(tiny_config: Callable[..., Config]) -> None:
    engines = {"workers": 5, "gpus": 3, "cpus": 1}
    config = tiny_config(resources={"rollout": engines, "reference": {"gpus": 0.25}})
    groups = worker_groups(config, ["evaluate"])
    # Two engines a pod of 8: the fifth needs three GPUs of a third pod.
    assert sum(group.pods for group in groups) == 3
    assert sum(group.pods * (group.gpus // 3) for group in groups) >= 5


def test_many_tables_fit_and_add_up(tiny_config: Callable[..., Config]) -> None:
    """Random roles: GPUs are exactly those asked, CPUs at least, and less than a CPU a pod and what
    an uneven spread costs more.
    """
    draw = random.Random(3)
    for _ in range(150):
        gpus = draw.choice([0, 1])
        resources = {
            name: {
                "workers": draw.randint(1, 20),
                "gpus": gpus,
                "cpus": draw.choice([0.2, 0.5, 1, 2, 4]),
            }
            for name in ("train", "policy", "critic", "rollout")
        }
        resources |= {
            name: {"gpus": draw.choice([0.25, 0.5]) * gpus} for name in ("reference", "reward")
        }
        config = tiny_config(resources=resources, kube={"gpus_per_node": draw.choice([1, 4, 8])})
        tables, groups = at_once(config), worker_groups(config)
        assert sum(group.pods * group.gpus for group in groups) == ceil(total(tables, "gpus"))
        cpus = sum(group.pods * group.cpus for group in groups)
        assert cpus >= total(tables, "cpus") - 1e-6
        assert all(group.gpus <= config.kube.gpus_per_node for group in groups)
        largest = max(role.cpus for table in tables for role in table.values())
        pods = sum(group.pods for group in groups)
        assert cpus <= total(tables, "cpus") + pods * (1 + largest * config.kube.gpus_per_node)


def test_the_order_of_roles_changes_nothing(tiny_config: Callable[..., Config]) -> None:
    names = list(GPU_ROLES)
    found = {
        tuple(worker_groups(tiny_config(resources={name: GPU_ROLES[name] for name in order})))
        for order in itertools.islice(itertools.permutations(names), 0, 720, 60)
    }
    assert len(found) == 1


@pytest.mark.parametrize("size", [(1, 8), (8, 8), (2, 8), (4, 4)])
@pytest.mark.parametrize("name", ["quickstart", "smollm2", "real_small", "dpo_smollm2"])
def test_a_size_fills_its_machines_and_no_more(name: str, size: tuple[int, int]) -> None:
    config = sized(load(name), *size)
    groups = worker_groups(config)
    assert sum(group.pods * group.gpus for group in groups) <= size[0] * size[1]
    assert sum(group.pods for group in groups) <= size[0]
    assert all(group.gpus <= size[1] for group in groups)
    if load(name).rl.left_out is False:
        rl = roles(config, "rl")
        assert size[0] * size[1] - 2 < total([rl], "gpus") <= size[0] * size[1]


def test_a_thousand_machines_are_planned_at_once() -> None:
    began = time.monotonic()
    groups = worker_groups(sized(load("quickstart"), 1000, 8))
    assert 4000 < sum(group.pods * group.gpus for group in groups) <= 8000
    assert time.monotonic() - began < 5


def test_a_sized_config_is_one_that_loads(tmp_path) -> None:
    for name in ("quickstart", "smollm2"):
        config = sized(load(name), 8, 8)
        (tmp_path / "config.yaml").write_text(dump(config))
        assert load(str(tmp_path / "config.yaml")) == config


def test_taking_turns_shares_each_gpu(tiny_config: Callable[..., Config]) -> None:
    config = sized(colocated(tiny_config, (0.4, 0.3, 0.2)), 2, 4)
    assert [getattr(config.resources, name).workers for name in ("rollout", "policy")] == [8, 8]
    (group,) = worker_groups(config)
    assert (group.pods, group.gpus) == (2, 4)


def colocated(
    tiny_config: Callable[..., Config], shares: tuple[float, float, float], engines: int = 1
) -> Config:
    """Engines, policy and critic with these shares of each GPU, and a CPU each."""
    names = ("rollout", "policy", "critic")
    sharing = {
        name: {"workers": engines, "gpus": share, "cpus": 1}
        for name, share in zip(names, shares, strict=True)
    }
    return tiny_config(
        resources=sharing | {"reference": {"gpus": 0.05}, "reward": {"gpus": 0.05}},
        rl={"mode": "colocate", "optimizer": {"zero_stage": 1}},
    )


def test_an_engine_and_its_learners_have_a_gpu_of_their_own(
    tiny_config: Callable[..., Config],
) -> None:
    # 16 times 0.4, 0.3 and 0.2, packed one by one, would fit 15 GPUs.
    config = colocated(tiny_config, (0.4, 0.3, 0.2), 16)
    (group,) = worker_groups(config)
    assert (group.pods, group.gpus) == (2, 8)
    # RL: 8 times engine, policy and critic, and one of the two frozen models with 0.1 CPUs.
    assert (group.cpus, group.memory_gib) == (25, 2 + 3 * (8 * 3 + 1) + 32 * 8)
    # Sampling starts no learner, and their room is kept.
    (group,) = worker_groups(config, ["sample"])
    assert (group.pods, group.gpus) == (2, 8)
    # 0.7 + 0.2 + 0.1 is 0.9999999999999999.
    assert sum(g.pods * g.gpus for g in worker_groups(colocated(tiny_config, (0.7, 0.2, 0.1)))) == 2


def test_a_critic_on_the_cpu_takes_no_part_of_the_engines_gpus(
    tiny_config: Callable[..., Config],
) -> None:
    (group,) = worker_groups(colocated(tiny_config, (0.5, 0.4, 0), 8))
    assert (group.pods, group.gpus, group.cpus) == (1, 8, 25)


@pytest.mark.parametrize("mode", ["sync", "colocate"])
def test_no_rank_is_without_answers(mode: str, tiny_config: Callable[..., Config]) -> None:
    config = colocated(tiny_config, (0.4, 0.3, 0.2))
    config = config.model_copy(update={"rl": config.rl.model_copy(update={"mode": mode})})
    resources = sized(config, 8, 8).resources
    # 64 GPUs, and steps of 8 answers; engines apart from the learners have half of the GPUs.
    assert config.rl.samples_per_step == 8
    assert (resources.policy.workers, resources.critic.workers) == (8, 8)
    assert resources.rollout.workers == (8 if mode == "colocate" else 32)


@pytest.mark.parametrize("size", [(1, 8), (2, 4), (8, 8)])
def test_taking_turns_fills_all_gpus_of_a_size(
    size: tuple[int, int], tiny_config: Callable[..., Config]
) -> None:
    config = colocated(tiny_config, (0.4, 0.3, 0.2))
    rl = config.rl.model_copy(update={"prompts_per_iteration": 32, "samples_per_step": 64})
    config = config.model_copy(update={"rl": rl})
    (group,) = worker_groups(sized(config, *size))
    assert (group.pods, group.gpus) == size


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"rollout": {"gpus": 16}, "reference": {"gpus": 1}},
            "role rollout asks for 16 gpus, and a machine has kube.gpus_per_node 8",
        ),
        ({"train": {"cpus": 9}}, "role train asks for 9 cpus, and a machine has kube.cpus_per_no"),
    ],
)
def test_an_actor_larger_than_a_machine_is_told(
    changes: dict[str, Any], told: str, tiny_config: Callable[..., Config]
) -> None:
    config = tiny_config(resources=changes, kube={"cpus_per_node": 8})
    with pytest.raises(ValueError, match=told):
        worker_groups(config)


def test_small_machines_get_more_pods(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(resources={"policy": {"workers": 6, "cpus": 1}}, kube={"cpus_per_node": 2})
    (group,) = worker_groups(config)
    # RL: six ranks of 1 CPU, and four roles of 0.1.
    assert (group.pods, group.cpus) == (4, 2)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1x8", (1, 8)), ("16x4", (16, 4)), ("8", None), ("0x8", None), ("ax8", None)],
)
def test_sizes_are_read(text: str, size: tuple[int, int] | None) -> None:
    if size:
        assert parse_size(text) == size
    else:
        with pytest.raises(ValueError, match="expected MACHINESxGPUS"):
            parse_size(text)


def test_too_few_gpus_for_a_size_are_told() -> None:
    with pytest.raises(ValueError, match=r"4 GPUs are too few .* rl\.mode colocate"):
        sized(load("quickstart"), 1, 4)


def cpus(container: dict[str, Any]) -> int:
    return int(container["resources"]["limits"]["cpu"])


@pytest.mark.parametrize("name", ["quickstart", "smollm2", "tests/tiny.yaml"])
def test_the_containers_of_a_file_have_what_the_roles_ask(name: str) -> None:
    """The sum over workers, from the files themselves; head and submitter stand beside it."""
    for config in (load(name), sized(load(name), 2, 8)):
        for kind, stages in (("train", None), ("serve", ["publish"])):
            item = objects(config)[kind][-1]
            spec = item["spec"].get("rayClusterSpec") or item["spec"]["rayClusterConfig"]
            asked = at_once(config, stages) if stages else at_once(config)
            have_cpus = have_gpus = 0
            for group in spec["workerGroupSpecs"]:
                (container,) = group["template"]["spec"]["containers"]
                assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
                have_cpus += group["replicas"] * cpus(container)
                have_gpus += group["replicas"] * int(
                    container["resources"]["limits"].get("nvidia.com/gpu", 0)
                )
            assert have_gpus == ceil(total(asked, "gpus") - 1e-6)
            pods = sum(group["replicas"] for group in spec["workerGroupSpecs"])
            assert total(asked, "cpus") <= have_cpus + 1e-6
            assert have_cpus <= total(asked, "cpus") + 4 * pods
            (head,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
            assert cpus(head) == HEAD_CPUS
