"""The compute threads of a run's processes: told by the machine on which it begins, kept in its
folder, held to after.

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
from rayward.pipelines.run.stage import Run, read_json, write_json


def on_machine(run: Run, stage: str) -> Run:
    """The run with the threads of a stage's processes filled in, from its machine.json, which the
    first call writes.
    """
    path = run.folder / "machine.json"
    kept: dict[str, Any] = (
        read_json(path) if path.is_file() else cores(run.config) | {"threads": {}}
    )
    wanted = shared_out(run.config, stage, int(kept["cores"]), int(kept.get("nodes", 1)))
    numbers = wanted | kept["threads"].get(stage, {})
    if kept["threads"].get(stage) != numbers:
        kept["threads"][stage] = numbers
        run.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, kept)
    return replace(run, config=with_threads(run.config, numbers))


def planned(run: Run) -> dict[str, dict[str, int]]:
    """The same numbers of every stage, without starting or writing anything."""
    path = run.folder / "machine.json"
    kept: dict[str, Any] = (
        read_json(path) if path.is_file() else {"cores": _own_cores(), "threads": {}}
    )
    nodes = int(kept.get("nodes", 1))
    return {
        stage: shared_out(run.config, stage, int(kept["cores"]), nodes)
        | kept["threads"].get(stage, {})
        for stage in STAGES
    }


def cores(config: Config) -> dict[str, int]:
    """Cores of this machine, or of the smallest node of the cluster that is joined, and how many
    nodes have some.
    """
    # Brings in Ray, which a plan does without.
    from rayward.cluster.connect import connect, joined_address

    if not joined_address(config.cluster):
        return {"cores": _own_cores(), "nodes": 1}
    import ray

    connect(config.cluster)
    counts = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    counts = [count for count in counts if count] or [1]
    return {"cores": min(counts), "nodes": len(counts)}


def _own_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: a container's share, where it has one."""
    allowed = len(os.sched_getaffinity(0))
    limit, period = quota.read_text().split() if quota.is_file() else ("max", "1")
    return allowed if limit == "max" else max(1, min(allowed, int(limit) // int(period)))
