"""Joining or starting Ray."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from functools import partial

import ray

from rayward.cluster.head import watch_head
from rayward.cluster.hosts import hosts
from rayward.cluster.interfaces import DEFAULTS, of_groups
from rayward.cluster.sockets import shorten_tmpdir
from rayward.configs.sections.machines import Cluster

# Only what actors need: a whole os.environ makes job agents fail.
FORWARDED_VARIABLES = (
    "HF_HOME",
    "HF_TOKEN",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "RAYWARD_TRUST_REMOTE_CODE",
)
STARTS = 3
"""Tries to start a local Ray, which (2.60) waits 30 s for its own processes, and no longer."""
LATE = "timed out during startup"


def connect(cluster: Cluster) -> None:
    """Join the cluster at `cluster.address` or RAY_ADDRESS, or start a local one, once.

    ConfigError, within seconds, where that cluster cannot be joined.
    """
    if ray.is_initialized():
        return
    address = joined_address(cluster)
    if address and address != "local":
        # Brings in gRPC, which a local Ray is without.
        from rayward.cluster.reach import check_joins

        check_joins(address, "cluster.address" if cluster.address else "RAY_ADDRESS")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Of calls that nobody waits for any more, since another has failed: that one is told.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # What a submitted job was given as env_vars reaches the workers by itself, and Ray refuses to
    # be told twice.
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    job_variables = job.get("env_vars") or {}
    environment = {name: value for name, value in os.environ.items() if name in FORWARDED_VARIABLES}
    environment[DEFAULTS] = json.dumps(of_groups())
    environment |= {"TOKENIZERS_PARALLELISM": "false", "RAY_TRAIN_V2_ENABLED": "1"}
    environment = {name: value for name, value in environment.items() if name not in job_variables}
    # Ray refuses a size for the store of a cluster that others have started.
    local: dict[str, int | bool] = {}
    if not address:
        shorten_tmpdir()
        local["object_store_memory"] = int(cluster.object_store_gib * 2**30)
        local["include_dashboard"] = False
    on_term = signal.getsignal(signal.SIGTERM)
    start = partial(
        ray.init,
        # Without "local" Ray would join whatever cluster was last started on this machine.
        address=address or "local",
        runtime_env={"env_vars": environment},
        logging_level=logging.ERROR,
        log_to_driver=bool(os.environ.get("RAYWARD_WORKER_LOGS")),
        **local,
    )
    for again in reversed(range(STARTS)):
        try:
            start()
            break
        except Exception as error:
            if address or LATE not in str(error) or not again:
                raise
            print("   Ray did not come up within 30 s on a busy machine: once more", flush=True)
    # Ray put a handler of its own there, which aborts the process. Python lets only the main thread
    # set one.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_term)
    hosts()  # looked at now, so that one that goes is missed
    watch_head()


def joined_address(cluster: Cluster) -> str | None:
    """The address of the Ray to join; None: a local one is started and ends with this process."""
    return cluster.address or os.environ.get("RAY_ADDRESS")
