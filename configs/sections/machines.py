"""Settings of processes, processors and the Ray cluster."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from rayward.configs.sections.base import Count, Positive, Section


class Role(Section):
    """Processes of one role and what each of them gets."""

    workers: Count = 1
    """Processes of this role."""
    cpus: Annotated[float, Field(ge=0)] = 0.3
    """Ray CPUs reserved for each process; a share is enough where roles take turns."""
    gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs for each process; 0 runs it on the CPU."""
    threads: Count | None = None
    """Compute threads of each process; null shares out the cores, see machine.json in the run
    folder.
    """

    @property
    def compute_threads(self) -> int:
        """`threads`, or 1 where nothing has filled them in."""
        return self.threads or 1


class EngineRole(Role):
    """vLLM engines and what each of them gets."""

    min_workers: Count | None = None
    """Engines with which a stage starts, and goes on after a loss, where there is no room for all
    of `workers`; null: with all. `workers: {min: 1, max: 3}` sets both.
    """

    @model_validator(mode="before")
    @classmethod
    def _of_range(cls, values: Any) -> Any:
        given = values.get("workers") if isinstance(values, dict) else None
        if isinstance(given, dict) and set(given) == {"min", "max"}:
            return {**values, "workers": given["max"], "min_workers": given["min"]}
        return values


class Resources(Section):
    """Who runs where in sampling, RL and evaluation. SFT and reward training use `train`."""

    train: Role = Role()
    """Workers of SFT and reward-model training, started by Ray Train."""
    policy: Role = Role()
    """DeepSpeed ranks that train the policy."""
    critic: Role = Role()
    """DeepSpeed ranks that train the critic."""
    reference: Role = Role()
    """Processes that hold the frozen SFT model."""
    reward: Role = Role()
    """Processes that hold the reward model."""
    rollout: EngineRole = EngineRole()
    """vLLM engines."""


class Cluster(Section):
    """The Ray cluster and waiting times."""

    address: str | None = None
    """Ray address to join, `auto` for this machine's; null starts a local one unless RAY_ADDRESS is
    set.
    """
    object_store_gib: Positive = 1.0
    """Shared memory of a locally started Ray, in GiB."""
    start_timeout_s: Positive = 300
    """Longest wait for the actors of a stage to start, in seconds."""
    call_timeout_s: Positive = 600
    """Longest wait for one call to an actor, in seconds."""
    retries: Annotated[int, Field(ge=0)] = 3
    """Times within an hour that a role's processes, or a stage, are started anew after a loss."""
