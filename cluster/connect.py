"""Joining or starting Ray, and checking that a stage's actors fit before any of them waits for
ever.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Mapping

import ray

from rayward.configs.sections.machines import Cluster, Role

# Only what actors need: a whole os.environ makes job agents fail.
PASSED_ON = (
    "HF_HOME",
    "HF_TOKEN",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "RAYWARD_TRUST_REMOTE_CODE",
    "NCCL_DEBUG",
    "NCCL_SOCKET_IFNAME",
)


def connect(cluster: Cluster) -> None:
    """Join the cluster at `cluster.address` or RAY_ADDRESS, or start a local one; once per
    process.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # What a submitted job was given as env_vars reaches the workers by itself, and Ray refuses to
    # be told twice.
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    given = job.get("env_vars") or {}
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "RAY_TRAIN_V2_ENABLED": "1"}
    environment = {name: value for name, value in environment.items() if name not in given}
    address = joined_address(cluster)
    local = (
        {}
        if address
        else {
            "object_store_memory": int(cluster.object_store_gib * 2**30),
            "include_dashboard": False,
        }
    )
    on_term = signal.getsignal(signal.SIGTERM)
    ray.init(
        address=address,
        runtime_env={"env_vars": environment},
        logging_level=logging.ERROR,
        log_to_driver=bool(os.environ.get("RAYWARD_WORKER_LOGS")),
        **local,
    )
    if threading.current_thread() is threading.main_thread():
        # Ray put a handler of its own there, which aborts the process.
        signal.signal(signal.SIGTERM, on_term)


def joined_address(cluster: Cluster) -> str | None:
    """The address of the Ray to join; None where a local one is started, which ends with this
    process.
    """
    return cluster.address or os.environ.get("RAY_ADDRESS")


def check_fits(roles: Mapping[str, Role]) -> None:
    """Raise ValueError with a table of who asks for what where the cluster has too little."""
    have = ray.cluster_resources()
    short = []
    for resource, field in (("CPU", "cpus"), ("GPU", "gpus")):
        asked = sum(getattr(role, field) * role.workers for role in roles.values())
        if asked > have.get(resource, 0) + 1e-6:
            short.append(
                f"{resource}: asked for {asked:g}, the cluster has {have.get(resource, 0):g}"
            )
    if short:
        lines = [
            f"  {name}: {role.workers} x ({role.cpus:g} CPU, {role.gpus:g} GPU)"
            for name, role in roles.items()
        ]
        nodes = [
            f"  node {node['NodeManagerAddress']}: "
            + ", ".join(f"{key} {node['Resources'].get(key, 0):g}" for key in ("CPU", "GPU"))
            for node in ray.nodes()
            if node["Alive"]
        ]
        raise ValueError(
            "\n".join(
                [
                    "the actors do not fit the cluster; " + "; ".join(short),
                    *lines,
                    *nodes,
                    "lower resources.ROLE.cpus, .gpus or .workers, or add nodes",
                ]
            )
        )
