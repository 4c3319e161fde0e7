"""The compute threads of a run's processes: by the machine on which it begins, then kept.

The bits of results depend on them, so a stage that is made later, or on another machine, has the
same.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from rayward.configs.schema import Config
from rayward.configs.stages import STAGES
from rayward.configs.threads import shared_out, with_threads
from rayward.pipelines.run.files import read_json, write_json
from rayward.pipelines.run.folder import Run


def on_machine(run: Run, stage: str) -> Run:
    """The run with a stage's threads, from its machine.json, which the first call writes."""
    path = run.folder / "machine.json"
    kept: dict[str, Any]
    if path.is_file():
        kept = read_json(path)
    else:
        kept = cores(run.config) | {"threads": {}}
    # From the cores of the machine on which the run began, whatever this one has: how a sum is
    # divided over threads decides the order of its additions, and so its last bits.
    wanted = shared_out(run.config, stage, int(kept["cores"]), int(kept.get("nodes", 1)))
    # What was kept of the stage wins, so a change of the rule does not change a run that is there.
    # `wanted` adds roles that the config did not have then.
    numbers = wanted | kept["threads"].get(stage, {})
    if kept["threads"].get(stage) != numbers:
        kept["threads"][stage] = numbers
        run.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, kept)
    return replace(run, config=with_threads(run.config, numbers))


def planned(run: Run) -> dict[str, dict[str, int]]:
    """The same numbers of every stage, without starting or writing anything."""
    path = run.folder / "machine.json"
    kept: dict[str, Any]
    if path.is_file():
        kept = read_json(path)
    else:
        # Those of this machine, also where a cluster is to be joined: asking it needs Ray.
        kept = {"cores": own_cores(), "threads": {}}
    nodes = int(kept.get("nodes", 1))
    return {
        stage: shared_out(run.config, stage, int(kept["cores"]), nodes)
        | kept["threads"].get(stage, {})
        for stage in STAGES
    }


def cores(config: Config) -> dict[str, int]:
    """Cores of this machine, or of the joined cluster's smallest node, and nodes that have some."""
    # Brings in Ray, which a plan does without.
    from rayward.cluster.connect import connect, joined_address

    if not joined_address(config.cluster):
        return {"cores": own_cores(), "nodes": 1}
    import ray

    connect(config.cluster)
    counts = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    # A head node is often started without CPUs, so that nothing is placed there.
    counts = [count for count in counts if count] or [1]
    # The smallest: a worker may land on any node, and its threads must have cores there.
    return {"cores": min(counts), "nodes": len(counts)}


def own_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: a container's share, where it has one."""
    allowed = len(os.sched_getaffinity(0))
    # "QUOTA PERIOD" in microseconds, or "max PERIOD". A container sees all cores of its host, and
    # threads beyond its quota are stopped for the rest of each period.
    limit, period = quota.read_text().split() if quota.is_file() else ("max", "1")
    return allowed if limit == "max" else max(1, min(allowed, int(limit) // int(period)))
