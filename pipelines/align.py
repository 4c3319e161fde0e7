"""The whole road: run the stages in order, skip what is done, keep summary.json and the report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rayward.cluster.planning import fewest
from rayward.configs.load import dump
from rayward.configs.plan import INPUTS, followers, roles
from rayward.configs.schema import Config
from rayward.configs.sections.machines import Role
from rayward.configs.stages import STAGES, parts, suite_parts
from rayward.configs.summary import arithmetic_lines, stage_summary, suite_summary
from rayward.configs.threads import with_threads
from rayward.pipelines.parts import PARTS_OF, to_make
from rayward.pipelines.preflight import check_models, check_tokens, preflight
from rayward.pipelines.run.files import read_json, write_json
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.lock import held
from rayward.pipelines.run.machine import on_machine, planned
from rayward.pipelines.run.memory import PeakMemory
from rayward.pipelines.run.models_named import fetch, pinned
from rayward.pipelines.run.retries import Retries
from rayward.pipelines.run.stage import aside_of, empty, inner_parts


def align(
    config: Config,
    folder: Path,
    stages: Sequence[str],
    redo: Sequence[str] = (),
    keep: bool = False,
    replay: Path | None = None,
    allow_partial: Collection[str] = (),
) -> None:
    """Run `stages` into `folder`; `redo` makes those parts and all that follow again. `keep` leaves
    the endpoint up. RL trains on the rollouts in `replay`, where it is given. Checkpoints may lack
    the parts in `allow_partial`.

    Raises ConfigError or StageError, before anything is removed or started, where that cannot be.
    """
    run = Run(folder, config, frozenset(allow_partial))
    # Before anything asks for a model: hub names mean the commits that the run began with.
    pinned(run)
    made = preflight(run, stages, redo, keep, replay)
    _join(config)
    # From here a refused command leaves a trace: the folder, and models in the hub's cache.
    with held(folder):
        manifest = _make(run, stages, made, redo, keep, replay)
    # `preflight` has seen that publish is there with `keep`; it is the last stage.
    if keep and manifest is not None:
        from rayward.pipelines.stages.publish import serve_until_interrupted

        serve_until_interrupted(run, manifest["metrics"])


def _make(
    run: Run,
    stages: Sequence[str],
    made: set[str],
    redo: Sequence[str],
    keep: bool,
    replay: Path | None,
) -> dict[str, Any] | None:
    """Run the stages; the manifest of the last one, None where it was done before."""
    config, folder = run.config, run.folder
    fetch(run, made)
    check_models(run, made)
    # Last, when nothing is left that could refuse the command: what it removes is gone.
    forget(run, redo)
    if "rl" in stages and parts(config, "rl"):
        print("\n".join(arithmetic_lines(config)))
    # What each stage's function takes beside the run.
    arguments: dict[str, dict[str, Any]] = {"publish": {"keep": keep}, "rl": {"replay": replay}}
    manifest: dict[str, Any] | None = None
    retries = Retries(config.cluster.retries)
    with PeakMemory() as memory:
        for stage in stages:
            if not parts(config, stage):
                continue
            started_at = time.perf_counter()
            print(f"== {stage}: {stage_summary(config, stage)}", flush=True)
            work = partial(stage_of(stage), on_machine(run, stage), **arguments.get(stage, {}))
            manifest = retries.run(stage, work)
            # Also where prepare was done before: the models named may be others.
            if stage == "prepare":
                check_tokens(run, made)
            if manifest is None:
                print(f"   done before, nothing to do ({folder / stage})")
            else:
                print(f"   {time.perf_counter() - started_at:.1f} s", flush=True)
            # After each stage: a run that fails later has config and figures of what is done. Also
            # of one that was done before, if the command that made it was killed before this.
            if manifest is not None or not summarized(run):
                (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
                summarize(run, memory.peak_bytes)
    if run.done("evaluate"):
        from rayward.pipelines.report.report import write_report

        print(f"report: {write_report(run)}")
    print(f"summary: {folder / 'summary.json'}", flush=True)
    return manifest


def _join(config: Config) -> None:
    """Join the cluster that is named; ConfigError where it does not answer.

    Now, where stages that begin without it would run for an hour before they find out.
    """
    # Brings in Ray, which a plan does without.
    from rayward.cluster.connect import connect, joined_address

    if joined_address(config.cluster):
        connect(config.cluster)


def stage_of(name: str) -> Callable[..., dict[str, Any] | None]:
    """The function that does a stage.

    Each is imported when its turn comes: they bring in torch and Ray, which a plan does without.
    """
    match name:
        case "prepare":
            from rayward.pipelines.stages.prepare import prepare as stage
        case "sft":
            from rayward.pipelines.stages.sft import train_sft as stage
        case "reward":
            from rayward.pipelines.stages.reward import train_reward_models as stage
        case "sample":
            from rayward.pipelines.stages.sample import rejection_sample as stage
        case "dpo":
            from rayward.pipelines.stages.dpo import train_dpo as stage
        case "rl":
            from rayward.pipelines.rl.loop import train_online as stage
        case "evaluate":
            from rayward.pipelines.stages.suites import evaluate_all as stage
        case "publish":
            from rayward.pipelines.stages.publish import publish as stage
        case _:
            raise ValueError(f"{name!r} is no stage; stages: {', '.join(STAGES)}")
    return stage


def forget(run: Run, redo: Sequence[str]) -> None:
    """Take away the parts in `redo` and all that follows from them.

    A whole one is moved aside (`aside_of`), and stays there until the new one is whole.
    """
    # Suites of evaluate stay when it is made again, and go where they are named.
    gone = [part for part in redo if part.startswith("evaluate/")]
    gone += [name for name in INPUTS if any(name in followers(part) for part in redo)]
    # What follows goes first: killed in between, nothing is left that was made from what is gone.
    for name in reversed(gone):
        folder, aside = run.folder / name, aside_of(run.folder, name)
        if run.done(name):
            print(f"{folder} is made again; until that is whole, it is kept in {aside}")
            shutil.rmtree(aside, ignore_errors=True)
            _move_aside(folder, aside)
        elif folder.exists():
            print(f"removing {folder}, which is not whole, to make it again")
            empty(folder)
    # The folder of the algorithms is no part itself; empty it would look like one.
    if (run.folder / "rl").is_dir() and not any((run.folder / "rl").iterdir()):
        (run.folder / "rl").rmdir()


def _move_aside(folder: Path, aside: Path) -> None:
    """Move a part's folder, but for parts of their own inside of it."""
    kept = inner_parts(folder)
    if not kept:
        aside.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(aside)
        return
    aside.mkdir(parents=True, exist_ok=True)
    others = [path for path in folder.iterdir() if path not in kept]
    # The manifest first: without it the stage is not done, wherever the rest is.
    for path in sorted(others, key=lambda path: path.name != "manifest.json"):
        path.rename(aside / path.name)


def summarized(run: Run) -> bool:
    """Whether summary.json has the figures of all that is done."""
    path = run.folder / "summary.json"
    return path.is_file() and figures_of(run).items() <= read_json(path).items()


def summarize(run: Run, peak_bytes: int) -> None:
    """Write summary.json: the figures of each stage, its seconds, and the peak memory."""
    path = run.folder / "summary.json"
    # From the manifests, so it also holds stages of earlier commands; their peak is only here.
    before = read_json(path).get("peak_memory_bytes", 0) if path.is_file() else 0
    write_json(path, figures_of(run) | {"peak_memory_bytes": max(before, peak_bytes)})


def figures_of(run: Run) -> dict[str, Any]:
    """The figures of each stage that is done, and its seconds, by the manifests."""
    summary: dict[str, Any] = {"name": run.config.name, "seed": run.config.seed}
    seconds: dict[str, float] = {}
    for stage in STAGES:
        parts = [part for part in PARTS_OF.get(stage, (stage,)) if run.done(part)]
        manifests = {part: run.manifest(part) for part in parts}
        if not manifests:
            continue
        metrics = {part.split("/")[-1]: manifest["metrics"] for part, manifest in manifests.items()}
        summary[stage] = metrics if stage in PARTS_OF else metrics[stage]
        seconds[stage] = round(sum(manifest["seconds"] for manifest in manifests.values()), 3)
    suites = {part: run.manifest(part) for part in suite_parts(run.config) if run.done(part)}
    for part, manifest in suites.items():
        summary.setdefault("suites", {})[part.split("/")[1]] = manifest["metrics"]
        seconds[part] = manifest["seconds"]
    summary["seconds"] = seconds | {"total": round(sum(seconds.values()), 3)}
    return summary


def plan_text(config: Config, folder: Path, stages: Sequence[str], redo: Sequence[str] = ()) -> str:
    """What a command would do: stages, actors, resources and batch arithmetic; starts nothing."""
    run = Run(folder, config)
    made = to_make(run, stages, redo)
    lines = [
        f"run {config.name} -> {folder}",
        f"base model: {config.model.path or 'from scratch'}, template {config.model.template}, "
        f"{config.model.dtype}",
        "",
        "stages",
    ]
    for stage in stages:
        # Each state once: the algorithms of rl mostly share one.
        states = dict.fromkeys(_state(run, part, made) for part in parts(config, stage))
        words = ", ".join(states) or "-"
        lines.append(f"  {stage:<9} {words:<6} {stage_summary(config, stage)}")
        for suite in config.evaluate.suites if stage == "evaluate" and states else ():
            words = _state(run, suite.part, made)
            lines.append(f"  {suite.part:<9} {words:<6} {suite_summary(suite)}")
    lines += ["", "actors (of a stage, all at once)"]
    threads = planned(run)
    for stage in [stage for stage in stages if parts(config, stage)]:
        for name, role in roles(with_threads(config, threads[stage]), stage).items():
            has = f"{role.cpus:g} CPU, {role.gpus:g} GPU, {role.compute_threads} threads"
            lines.append(f"  {stage:<9} {name:<10} {_number(role)} x {has}")
    if "rl" in stages and parts(config, "rl"):
        lines += ["", "batch arithmetic of rl", *(f"  {line}" for line in arithmetic_lines(config))]
    return "\n".join(lines)


def _number(role: Role) -> str:
    least = fewest(role)
    return f"{least} to {role.workers}" if least < role.workers else str(role.workers)


def _state(run: Run, part: str, made: set[str]) -> str:
    return ("again" if run.done(part) else "to do") if part in made else run.state(part)
