"""The models that a config names, folders and hub names: there, whole, and of the right kind before anything starts.

A hub name is fetched on every node. The commit that it was then stays in the run's models.json and is meant from then
on, wherever the branch has gone since.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from configs.schema import Config
from configs.stages import has, parts
from data.hub_models import PINNED, config_of, has_score_head, is_hub_name, snapshot
from pipelines.stage import Run, StageError, model_folder, read_json, write_json


@dataclass(frozen=True)
class Named:
    """A model that a setting names for a stage; `scores`: it has to be a reward model, or else a language model (None:
    either)."""

    stage: str
    setting: str
    model: str
    scores: bool | None


def named_models(config: Config) -> list[Named]:
    """All of them, of the stages that a config has."""
    return [named for named in _named(config) if has(config, named.stage)]


def _named(config: Config) -> Iterator[Named]:
    rl, evaluate = config.rl, config.evaluate
    if config.model.path:
        yield Named("prepare", "model.path", config.model.path, False)
    if config.reward.path:
        yield Named("reward", "reward.path", config.reward.path, None)
    for stage in ("sample", "rl", "evaluate"):
        for path in (path for source in config.scoring.sources for path in source.paths):
            yield Named(stage, "scoring.sources paths", path, True)
    if rl.critic not in (None, "reward", "policy"):
        yield Named("rl", "rl.critic", str(rl.critic), True)
    if rl.monitor.second:
        yield Named("rl", "rl.monitor.second", rl.monitor.second, True)
    if evaluate.judge not in ("gold", "reward_model", "scoring"):
        yield Named("evaluate", "evaluate.judge", evaluate.judge, True)
    for name, path in evaluate.models.items():
        yield Named("evaluate", f"evaluate.models.{name}", path, False)


def fetch(run: Run) -> None:
    """Get those that are hub names, here and on every node of a cluster.

    ValueError for one that cannot be had, or that another node keeps in another place.
    """
    from cluster.connect import connect, joined_address  # brings in Ray, which a plan does without

    config, path = run.config, run.folder / "models.json"
    names = dict.fromkeys(named.model for named in named_models(config) if is_hub_name(named.model))
    if not names:
        return
    known: dict[str, str] = read_json(path) if path.is_file() else {}
    for name in names:
        PINNED.pop(name, None)
        if name in known:
            PINNED[name] = known[name]
        folder = snapshot(name, fetch=True)
        known[name] = PINNED[name] = folder.name
        print(f"   {name}: {folder}", flush=True)
        if joined_address(config.cluster):
            connect(config.cluster)
            _on_every_node(name, folder.name, folder)
    write_json(path, known)


def check(run: Run) -> None:
    """StageError for one that a stage still has to use and cannot: no model, or of the other kind."""
    for named in named_models(run.config):
        if all(run.done(part) for part in parts(run.config, named.stage)):
            continue
        folder = model_folder(named.model, named.setting)
        scores = has_score_head(config_of(folder))
        if named.scores is not None and scores != named.scores:
            kinds = {True: "a reward model (one with a score head)", False: "a language model"}
            raise StageError(f"{named.setting}: {folder} is {kinds[scores]}, and {kinds[named.scores]} is needed")


def _on_every_node(name: str, commit: str, folder: Path) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    get = ray.remote(num_cpus=0)(_get)
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    calls = {
        address: get.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(name, commit)
        for node, address in nodes.items()
    }
    for address, call in calls.items():
        if (place := ray.get(call)) != str(folder):
            raise ValueError(
                f"node {address} keeps {name} in {place}, this one in {folder}: give all nodes the same HF_HOME"
            )


def _get(name: str, commit: str) -> str:
    PINNED[name] = commit
    return str(snapshot(name, fetch=True))
