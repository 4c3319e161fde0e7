"""The whole road: run the stages in order, skip what is done, and keep summary.json and the report up to date."""

from __future__ import annotations

import importlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.load import ConfigError, dump
from configs.plan import STAGES, arithmetic_lines, parts, roles, stage_summary
from configs.schema import Config
from pipelines.memory import PeakMemory
from pipelines.stage import Run, read_json, write_json

PARTS = {"rl": ("rl/ppo", "rl/apa")}


def align(config: Config, folder: Path, stages: Sequence[str], redo: Sequence[str] = (), keep: bool = False) -> None:
    """Run `stages` into `folder`; `redo` makes those and all that follow again. `keep` leaves the endpoint up."""
    run = Run(folder, config)
    folder.mkdir(parents=True, exist_ok=True)
    forget(run, redo)
    with PeakMemory() as memory:
        for stage in stages:
            begun = time.perf_counter()
            module = importlib.import_module(f"pipelines.{stage}")
            print(f"== {stage}: {stage_summary(config, stage)}", flush=True)
            made = module.run(run, keep) if stage == "publish" else module.run(run)
            if made is None:
                print(f"   done before, nothing to do ({folder / stage})")
            else:
                print(f"   {time.perf_counter() - begun:.1f} s", flush=True)
                (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
                summarize(run, memory.peak_bytes)
    if run.done("evaluate"):
        from pipelines.report import write_report

        print(f"report: {write_report(run)}")
    print(f"summary: {folder / 'summary.json'}")


def forget(run: Run, redo: Sequence[str]) -> None:
    """Remove the stages in `redo` and every stage after the first of them."""
    if not redo:
        return
    first = min(STAGES.index(stage) for stage in redo)
    for stage in STAGES[first:]:
        if (run.folder / stage).exists():
            print(f"removing {run.folder / stage} to make it again")
            shutil.rmtree(run.folder / stage)


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
        states = dict.fromkeys(Run(folder, config).state(part) for part in parts(config, stage))
        lines.append(f"  {stage:<9} {', '.join(states):<6} {stage_summary(config, stage)}")
    lines += ["", "actors (of a stage, all at once)"]
    for stage in stages:
        for name, role in roles(config, stage).items():
            lines.append(
                f"  {stage:<9} {name:<10} {role.workers} x {role.cpus:g} CPU, {role.gpus:g} GPU, {role.threads} threads"
            )
    if "rl" in stages:
        lines += ["", "batch arithmetic of rl", *(f"  {line}" for line in arithmetic_lines(config))]
    return "\n".join(lines)


def parse_stages(text: str | None) -> tuple[str, ...]:
    """Stage names of a comma-separated list, in the order of the road. Raises ConfigError for an unknown one."""
    if text is None:
        return STAGES
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in STAGES:
            raise ConfigError(f"unknown stage {name!r}; stages: {', '.join(STAGES)}")
    return tuple(stage for stage in STAGES if stage in names)
