"""Joining or starting Ray, and checking that a stage's actors fit, or they would wait for ever."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Mapping

import ray

from rayward.cluster.sockets import shorten_tmpdir
from rayward.configs.sections.machines import Cluster, Role

# Only what actors need: a whole os.environ makes job agents fail.
FORWARDED_VARIABLES = (
    "HF_HOME",
    "HF_TOKEN",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "RAYWARD_TRUST_REMOTE_CODE",
    "NCCL_DEBUG",
    "NCCL_SOCKET_IFNAME",
)


def connect(cluster: Cluster) -> None:
    """Join the cluster at `cluster.address` or RAY_ADDRESS, or start a local one, once.

    ConfigError, within seconds, where that cluster cannot be joined.
    """
    if ray.is_initialized():
        return
    address = joined_address(cluster)
    if address and address != "local":
        from rayward.cluster.reach import (
            check_joins,
        )  # brings in gRPC, which a local Ray is without

        check_joins(address, "cluster.address" if cluster.address else "RAY_ADDRESS")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # What a submitted job was given as env_vars reaches the workers by itself, and Ray refuses to
    # be told twice.
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    job_variables = job.get("env_vars") or {}
    environment = {name: os.environ[name] for name in FORWARDED_VARIABLES if name in os.environ}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "RAY_TRAIN_V2_ENABLED": "1"}
    environment = {name: value for name, value in environment.items() if name not in job_variables}
    # Ray refuses a size for the store of a cluster that others have started.
    local: dict[str, int | bool] = {}
    if not address:
        shorten_tmpdir()
        local["object_store_memory"] = int(cluster.object_store_gib * 2**30)
        local["include_dashboard"] = False
    on_term = signal.getsignal(signal.SIGTERM)
    ray.init(
        # Without "local" Ray would join whatever cluster was last started on this machine.
        address=address or "local",
        runtime_env={"env_vars": environment},
        logging_level=logging.ERROR,
        log_to_driver=bool(os.environ.get("RAYWARD_WORKER_LOGS")),
        **local,
    )
    # Ray put a handler of its own there, which aborts the process. Python lets only the main thread
    # set one.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_term)


def joined_address(cluster: Cluster) -> str | None:
    """The address of the Ray to join; None: a local one is started and ends with this process."""
    return cluster.address or os.environ.get("RAY_ADDRESS")


def check_fits(roles: Mapping[str, Role]) -> None:
    """Raise ValueError with a table of who asks for what where the cluster has too little."""
    total = ray.cluster_resources()
    needed = {
        "CPU": sum(role.cpus * role.workers for role in roles.values()),
        "GPU": sum(role.gpus * role.workers for role in roles.values()),
    }
    short = [
        f"{resource}: asked for {amount:g}, the cluster has {total.get(resource, 0):g}"
        for resource, amount in needed.items()
        if amount > total.get(resource, 0) + 1e-6  # sums of fractions are not exact
    ]
    if not short:
        return
    lines = ["the actors do not fit the cluster; " + "; ".join(short)]
    for name, role in roles.items():
        lines.append(f"  {name}: {role.workers} x ({role.cpus:g} CPU, {role.gpus:g} GPU)")
    for node in ray.nodes():
        if node["Alive"]:
            resources = ", ".join(f"{key} {node['Resources'].get(key, 0):g}" for key in needed)
            lines.append(f"  node {node['NodeManagerAddress']}: {resources}")
    lines.append("lower resources.ROLE.cpus, .gpus or .workers, or add nodes")
    raise ValueError("\n".join(lines))
