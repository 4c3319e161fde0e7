"""The whole road: run the stages in order, skip what is done, and keep summary.json and the report up to date."""

from __future__ import annotations

import difflib
import importlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.data import LISTS
from configs.load import ConfigError, dump
from configs.plan import INPUTS, decisive, followers, roles
from configs.schema import Config
from configs.stages import RL_PARTS, STAGES, all_parts, parts
from configs.summary import arithmetic_lines, stage_summary
from configs.threads import with_threads
from pipelines import models_named
from pipelines.machine import on_machine, planned
from pipelines.memory import PeakMemory
from pipelines.stage import Run, read_json, write_json

PARTS = {"rl": RL_PARTS}


def align(
    config: Config,
    folder: Path,
    stages: Sequence[str],
    redo: Sequence[str] = (),
    keep: bool = False,
    replay: Path | None = None,
) -> None:
    """Run `stages` into `folder`; `redo` makes those parts and all that follow again. `keep` leaves the endpoint up.
    RL trains on the rollouts in `replay`, where it is given.

    Raises ConfigError or StageError, before anything is removed or started, where that cannot be.
    """
    if keep and "publish" not in stages:
        raise ConfigError("--keep leaves the endpoint of publish up, and publish is not among the stages to run")
    run = Run(folder, config)
    check(run, stages, redo)
    if replay:
        check_replay(run, replay, redo)
    if any(parts(config, stage) for stage in stages if stage in ("sample", "rl", "evaluate")):
        check_functions(config)
    folder.mkdir(parents=True, exist_ok=True)
    models_named.fetch(run)
    forget(run, redo)
    models_named.check(run)
    if "rl" in stages and parts(config, "rl"):
        print("\n".join(arithmetic_lines(config)))
    made: dict[str, Any] | None = None
    with PeakMemory() as memory:
        for stage in stages:
            if not parts(config, stage):
                continue
            begun = time.perf_counter()
            module = importlib.import_module(f"pipelines.{stage}")
            print(f"== {stage}: {stage_summary(config, stage)}", flush=True)
            own = {"publish": {"keep": keep}, "rl": {"replay": replay}}
            made = module.run(on_machine(run, stage), **own.get(stage, {}))
            if made is None:
                print(f"   done before, nothing to do ({folder / stage})")
            else:
                print(f"   {time.perf_counter() - begun:.1f} s", flush=True)
                (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
                summarize(run, memory.peak_bytes)
    if run.done("evaluate"):
        from pipelines.report import write_report

        print(f"report: {write_report(run)}")
    print(f"summary: {folder / 'summary.json'}", flush=True)
    if keep and made is not None:
        from pipelines.publish import serve_until_interrupted

        serve_until_interrupted(run, made["metrics"])


def check(run: Run, stages: Sequence[str], redo: Sequence[str]) -> None:
    """Raise ConfigError where `redo` would remove what the command does not make, StageError where a stage that it
    runs or reads was made with other settings: now, not after hours of other stages."""
    named = [stage for stage in stages if not parts(run.config, stage)] if tuple(stages) != STAGES else []
    if named:
        raise ConfigError(f"this config leaves out {named[0]} ({named[0]}: null); give it a section, at least {{}}")
    wanted = [part for stage in stages for part in parts(run.config, stage)]
    gone = {name for part in redo for name in followers(part) if (run.folder / name).exists()}
    if left := [name for name in INPUTS if name in gone and name not in wanted]:
        raise ConfigError(
            f"--redo {','.join(redo)} would remove {', '.join(left)} too, which this command does not make again; "
            f"use rayward align with --redo, or name the stages with --stages"
        )
    configured = all_parts(run.config)
    for part in INPUTS:
        read = part in wanted or any(part in INPUTS[other] for other in wanted)
        if not read or part not in configured or part in gone or not run.done(part):
            continue
        if run.state(part) == "done with other settings":
            raise run.conflict(part, decisive(run.config, part))
        run.require_rows_of_today(part)


def check_replay(run: Run, replay: Path, redo: Sequence[str]) -> None:
    """Raise ConfigError where the command would empty the folder of the rollouts before it reads them, StageError
    where they are too few."""
    from pipelines.answers import replay_files

    for name in {*parts(run.config, "rl"), *(name for part in redo for name in followers(part))}:
        if replay.resolve().is_relative_to((run.folder / name).resolve()):
            raise ConfigError(
                f"--replay {replay} lies in {name}, which this command makes anew; move it elsewhere first"
            )
    replay_files(replay, run.config)


def check_functions(config: Config) -> None:
    """Import the functions of scoring.sources now: SourceDataError for one that is not there."""
    from actors.sources import function_source

    for source in config.scoring.sources:
        if source.kind == "function":
            function_source(source, str(Path(config.scoring.functions).resolve()))


def forget(run: Run, redo: Sequence[str]) -> None:
    """Remove the parts in `redo` and all that follows from them."""
    for name in [name for name in INPUTS if any(name in followers(part) for part in redo)]:
        if (run.folder / name).exists():
            print(f"removing {run.folder / name} to make it again")
            shutil.rmtree(run.folder / name)
    if (run.folder / "rl").is_dir() and not any((run.folder / "rl").iterdir()):
        (run.folder / "rl").rmdir()


def summarize(run: Run, peak_bytes: int) -> None:
    """Write summary.json: one object a stage with its figures, seconds of each, and the peak memory."""
    path = run.folder / "summary.json"
    summary: dict[str, Any] = {"name": run.config.name, "seed": run.config.seed}
    seconds: dict[str, float] = {}
    for stage in STAGES:
        parts = [part for part in PARTS.get(stage, (stage,)) if run.done(part)]
        manifests = {part: run.manifest(part) for part in parts}
        if not manifests:
            continue
        metrics = {part.split("/")[-1]: manifest["metrics"] for part, manifest in manifests.items()}
        summary[stage] = metrics if stage in PARTS else metrics[stage]
        seconds[stage] = round(sum(manifest["seconds"] for manifest in manifests.values()), 3)
    before = read_json(path).get("peak_memory_bytes", 0) if path.is_file() else 0
    summary["seconds"] = seconds | {"total": round(sum(seconds.values()), 3)}
    summary["peak_memory_bytes"] = max(before, peak_bytes)
    write_json(path, summary)


def plan_text(config: Config, folder: Path, stages: Sequence[str]) -> str:
    """What a command would do: stages, actors, resources and batch arithmetic, without starting anything."""
    lines = [
        f"run {config.name} -> {folder}",
        f"base model: {config.model.path or 'from scratch'}, template {config.model.template}, {config.model.dtype}",
        "",
        "stages",
    ]
    for stage in stages:
        states = dict.fromkeys(Run(folder, config).state(part) for part in parts(config, stage)) or {"-": None}
        lines.append(f"  {stage:<9} {', '.join(states):<6} {stage_summary(config, stage)}")
    lines += ["", "actors (of a stage, all at once)"]
    threads = planned(Run(folder, config))
    for stage in [stage for stage in stages if parts(config, stage)]:
        for name, role in roles(with_threads(config, threads[stage]), stage).items():
            has = f"{role.cpus:g} CPU, {role.gpus:g} GPU, {role.compute_threads} threads"
            lines.append(f"  {stage:<9} {name:<10} {role.workers} x {has}")
    if "rl" in stages and parts(config, "rl"):
        lines += ["", "batch arithmetic of rl", *(f"  {line}" for line in arithmetic_lines(config))]
    return "\n".join(lines)


def check_names(config: Config) -> None:
    """Raise ConfigError with the nearest name for a chat template or a data format that does not exist."""
    from data.formats import FORMATS
    from data.templates import TEMPLATES

    asked = [("model.template", config.model.template, tuple(TEMPLATES))]
    for name in LISTS:
        for number, source in enumerate(getattr(config.data, name)):
            asked.append((f"data.{name}.{number}.format", source.format, ("auto", *FORMATS)))
    for field, name, known in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{field} is {name!r}, which is unknown; {hint}")


def parse_stages(text: str | None) -> tuple[str, ...]:
    """Stage names of a comma-separated list, in the order of the road. Raises ConfigError for an unknown one."""
    return STAGES if text is None else _names(text, STAGES)


def parse_redo(text: str | None) -> tuple[str, ...]:
    """Parts to make again: stages, or `rl/ppo` and such; `rl` is all of them. ConfigError for an unknown one."""
    names = _names(text or "", (*STAGES, *PARTS["rl"]))
    return tuple(part for name in names for part in PARTS.get(name, (name,)))


def _names(text: str, known: Sequence[str]) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown stage {name!r}; stages: {', '.join(known)}")
    return tuple(stage for stage in known if stage in names)
