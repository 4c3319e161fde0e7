"""Compute threads of the processes of a stage on the CPU, from the number of cores.

Processes that compute at once share the cores, since more threads than cores make all of them
slower; those that take turns have all of them each. The bits of results depend on these numbers, so
a run keeps them (`pipelines/run/machine.py`).
"""

from __future__ import annotations

from rayward.configs.plan import has_reference, old_logprobs, second_model
from rayward.configs.schema import Config
from rayward.configs.sections.algorithms import WITH_CRITIC

Threads = dict[str, int]
"""Of a process of each role."""


def phases(config: Config, stage: str) -> list[list[str]]:
    """Roles that compute at once, group after group; a role stands once for each of its models."""
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
        # The engines answer the next prompts while the learners train on the last answers.
        return [scorers, [*learners, "rollout"]]
    # What scores waits for the answers, and what learns for the scores.
    return [["rollout"], scorers, learners]


def shared_out(config: Config, stage: str, cores: int, nodes: int = 1) -> Threads:
    """Threads of each role in a stage; the setting where there is one. `cores`: of a node.

    Processes spread evenly over the nodes. Those with GPUs need cores at times only, so only their
    own kind counts.
    """
    resources = config.resources
    shares: Threads = {}

    def processes_on_a_node(role: str) -> int:
        workers = getattr(resources, role).workers
        if stage == "publish":
            workers = config.publish.replicas
        return -(-workers // nodes)  # rounded up: the fullest node decides

    for group in phases(config, stage):
        on_cpu = [role for role in group if not getattr(resources, role).gpus]
        together = sum(processes_on_a_node(role) for role in on_cpu)
        for role in group:
            processes = together if role in on_cpu else processes_on_a_node(role)
            share = max(1, cores // processes)
            # A role of several groups keeps one number: the group that is most crowded decides.
            shares[role] = min(shares.get(role, share), share)
    given = {role: getattr(resources, role).threads for role in shares}
    return {role: given[role] or share for role, share in shares.items()}


def with_threads(config: Config, threads: Threads) -> Config:
    """The config with these numbers in place of settings that are null."""
    resources = config.resources
    filled = {
        role: getattr(resources, role).model_copy(update={"threads": number})
        for role, number in threads.items()
        if getattr(resources, role).threads is None
    }
    return config.model_copy(update={"resources": resources.model_copy(update=filled)})
