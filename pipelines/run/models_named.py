"""Hub names in a config, fetched on every node before anything starts.

The commit that a name was then stays in the run's models.json and is meant from then on, wherever
the branch has gone since.
"""

from __future__ import annotations

from pathlib import Path

from rayward.configs.named import named_models
from rayward.configs.stages import parts
from rayward.data.model_files.folder import faults
from rayward.data.model_files.hub_models import PINNED, is_hub_name, snapshot
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.files import read_json, write_json
from rayward.pipelines.run.folder import Run


def fetch(run: Run, made: set[str] | None = None) -> None:
    """Get those that the parts to be made need (None: all), here and on every node of a cluster;
    mean the others by their known commits.

    StageError for one that cannot be had, or that another node keeps in another place.
    """
    # Brings in Ray, which a plan does without.
    from rayward.cluster.connect import connect, joined_address

    config = run.config
    known = pinned(run)
    # Once each. Reversed, so that of several settings with the same name the first is the one that
    # an error tells.
    hub_models = {
        named.model: named for named in reversed(named_models(config)) if is_hub_name(named.model)
    }
    for name, named in hub_models.items():
        if made is not None and not made & set(parts(config, named.stage)):
            continue
        try:
            # A known commit that the cache holds whole needs no network.
            folder = _whole(name) if name in known else None
            folder = folder or snapshot(name, fetch=True)
        except ValueError as error:
            pin = f" (models.json of the run says commit {known[name]})" if name in known else ""
            raise StageError(f"{named.setting}: {error}{pin}") from None
        # The hub's cache names the folder of a snapshot by its commit.
        known[name] = PINNED[name] = folder.name
        print(f"   {name}: {folder}", flush=True)
        if joined_address(config.cluster):
            connect(config.cluster)
            _on_every_node(name, folder.name, folder)
    if known:
        write_json(run.folder / "models.json", known)


def pinned(run: Run) -> dict[str, str]:
    """The commits of models.json; from now on this process means them by their names."""
    path = run.folder / "models.json"
    known: dict[str, str] = read_json(path) if path.is_file() else {}
    # PINNED is of the process: another run in it may have meant other commits by these names.
    for named in named_models(run.config):
        PINNED.pop(named.model, None)
    PINNED.update(known)
    return known


def _whole(name: str) -> Path | None:
    """The snapshot in the cache, without asking the hub; None where something of it is missing."""
    try:
        folder = snapshot(name, fetch=False)
    except ValueError:
        return None
    # The cache may hold a snapshot without its weights, fetched for its tokenizer.
    missing = faults(folder, None, False)
    if any("weights" in fault or "config.json" in fault for fault in missing):
        return None
    return folder


def _on_every_node(name: str, commit: str, folder: Path) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Without CPUs, so that it is placed on a node that has none too, or none free.
    get = ray.remote(num_cpus=0)(_get)
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    calls = {
        address: get.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(name, commit)
        for node, address in nodes.items()
    }
    for address, call in calls.items():
        # Actors get the driver's path of the folder, and open it on whichever node they are.
        if (place := ray.get(call)) != str(folder):
            raise ValueError(
                f"node {address} keeps {name} in {place}, this one in {folder}: give all nodes "
                "the same HF_HOME"
            )


def _get(name: str, commit: str) -> str:
    PINNED[name] = commit  # of the worker's process, which has not read models.json
    return str(snapshot(name, fetch=True))
