"""Compute threads of the processes of a stage on the CPU, from the number of cores.

Processes that compute at once share the cores, since more threads than cores make all of them
slower; those that take turns have all of them each. The bits of results depend on these numbers, so
a run keeps them (`pipelines/run/machine.py`).
"""

from __future__ import annotations

from rayward.configs.plan import has_reference, old_logprobs, second_model
from rayward.configs.schema import Config
from rayward.configs.sections.rl import WITH_CRITIC

Threads = dict[str, int]
"""Of a process of each role."""


def phases(config: Config, stage: str) -> list[list[str]]:
    """Roles that compute at once, group after group, in a stage; a role stands once for each model
    that it holds.
    """
    if stage == "publish":
        return [["rollout"]]
    if stage != "rl":
        return [[role] for role in ("train", "rollout", "reference", "reward")]
    rl = config.rl
    critic = ["critic"] if set(rl.algorithms) & set(WITH_CRITIC) else []
    models = sum(
        max(1, len(source.paths)) for source in config.scoring.sources if source.kind == "model"
    )
    scorers = ["reward"] * (models + second_model(config)) + critic
    scorers += ["policy"] if old_logprobs(config) == "trainer" else []
    scorers += ["reference"] if any(has_reference(config, name) for name in rl.algorithms) else []
    learners = ["policy", *critic]
    if rl.mode == "one_step_off":
        return [scorers, [*learners, "rollout"]]
    return [["rollout"], scorers, learners]


def shared_out(config: Config, stage: str, cores: int, nodes: int = 1) -> Threads:
    """Threads of each role in a stage; the setting where there is one. `cores`: of a node.

    Processes spread evenly over the nodes. Those with GPUs need cores at times only, so only their
    own kind counts.
    """
    resources = config.resources
    found: Threads = {}

    def on_a_node(role: str) -> int:
        workers = (
            config.publish.replicas if stage == "publish" else getattr(resources, role).workers
        )
        return -(-workers // nodes)

    for group in phases(config, stage):
        together = sum(on_a_node(role) for role in group if not getattr(resources, role).gpus)
        for role in group:
            share = max(
                1, cores // (on_a_node(role) if getattr(resources, role).gpus else together)
            )
            found[role] = min(found.get(role, share), share)
    given = {role: getattr(resources, role).threads for role in found}
    return {role: given[role] or share for role, share in found.items()}


def with_threads(config: Config, threads: Threads) -> Config:
    """The config with these numbers in place of settings that are null."""
    resources = config.resources
    filled = {
        role: getattr(resources, role).model_copy(update={"threads": number})
        for role, number in threads.items()
        if getattr(resources, role).threads is None
    }
    return config.model_copy(update={"resources": resources.model_copy(update=filled)})
