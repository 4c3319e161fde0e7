"""What `judge tasks` has measured, on the terminal and as JSON in lm-eval's names."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rayward.pipelines.judging.harness.definitions import COLUMNS, SHOWN_SHOTS, TASKS
from rayward.pipelines.judging.harness.figures import POOLED, Value, figures, leaderboard

if TYPE_CHECKING:
    from rayward.pipelines.judging.harness.plan import Task

Made = Mapping[tuple[str, str], Mapping[str, Any]]
IN_WORDS = {"plain": "without chat template", "chat": "with chat template"}


def tell(options: argparse.Namespace, name: str, tasks: list[Task], made: Made) -> int:
    """Print and write all; 1 where a part is missing or failed."""
    from rayward.pipelines.judging.options import write_result
    from rayward.pipelines.run.files import write_json

    ways = list(dict.fromkeys(way for way, _ in made))
    measured: dict[str, dict[str, dict[str, Value]]] = {
        way: {
            task: figures(task, of)
            for (of_way, task), of in made.items()
            if of_way == way and "error" not in of
        }
        for way in ways
    }
    failed = {key: of["error"] for key, of in made.items() if "error" in of}
    _tell_columns(name, measured)
    _tell_all(measured, made)
    notes = _notes(options, tasks, made)
    notes += [
        f"{task}, {IN_WORDS[way]}: not measured: {why}" for (way, task), why in failed.items()
    ]
    for note in notes:
        print(note)
    result = _as_json(name, measured, made, notes)
    write_json(options.out / "results.json", result)
    write_result(options.json, result)
    return int(bool(failed))


def _tell_columns(name: str, measured: Mapping[str, Mapping[str, Mapping[str, Value]]]) -> None:
    """The columns as Xwin's table has them, and their mean, a row for each way."""
    from rayward.pipelines.run.metrics import table

    columns = (name, *(SHOWN_SHOTS[task] for task in COLUMNS), "mean")
    lines = [
        (IN_WORDS[way], *("-" if value is None else str(value) for value in leaderboard(of)))
        for way, of in measured.items()
    ]
    if any(cell != "-" for line in lines for cell in line[1:]):
        table("Open LLM Leaderboard of 2023, in % ± 95 %", lines, columns)


def _tell_all(measured: Mapping[str, Mapping[str, Mapping[str, Value]]], made: Made) -> None:
    """Every metric of every task, with the items whose examples were cut."""
    from rayward.pipelines.run.metrics import table

    lines = []
    for way, of_way in measured.items():
        for task, values in of_way.items():
            cut = sum(made[way, task]["cut"].values())
            for metric, value in values.items():
                metric = metric.replace(",none", "")
                lines.append((SHOWN_SHOTS[task], way, metric, value.items, str(value), cut))
    if lines:
        columns = ("task", "prompts", "metric", "items", "in % ± 95 %", "cut")
        table("all metrics", lines, columns)


def _notes(options: argparse.Namespace, tasks: list[Task], made: Made) -> list[str]:
    """What these figures are not."""
    notes = []
    if options.limit:
        notes.append(
            f"--limit {options.limit}: the first items only, which are no figures of the benchmarks"
        )
    for task in tasks:
        if task.name == "mmlu" and options.subjects:
            notes.append(f"mmlu: {len(task.subjects)} of its 57 subjects: {options.subjects}")
        if task.left_out:
            named = ", ".join(f"{name} ({count})" for name, count in task.left_out.items())
            notes.append(
                f"ifeval: {task.prompts_left_out} prompts are left out, since checks of theirs "
                f"need NLTK's punkt_tab, which is not here: {named}"
            )
    for (way, name), of in made.items():
        cut, items = sum(of.get("cut", {}).values()), sum(of.get("items", {}).values())
        if cut:
            notes.append(
                f"{name}, {IN_WORDS[way]}: the context is too small for {cut} of {items} items, "
                f"whose prompts were cut at their beginning ({TASKS[name].shots} examples)"
            )
    return notes


def _as_json(
    name: str,
    measured: Mapping[str, Mapping[str, Mapping[str, Value]]],
    made: Made,
    notes: list[str],
) -> dict[str, Any]:
    """`results` and `n-samples` as lm-eval writes them, by task, and the table's columns."""
    results: dict[str, dict[str, Any]] = {}
    counts: dict[str, dict[str, int]] = {}
    columns: dict[str, dict[str, float | None]] = {}
    for way, of_way in measured.items():
        behind = "" if way == "plain" else f", {IN_WORDS[way]}"
        for task, values in of_way.items():
            for metric, value in values.items():
                key = _named(task, metric) + behind
                plain = metric.partition(", ")[0]
                of = results.setdefault(key, {})
                of[plain] = value.mean
                of[plain.replace(",", "_stderr,", 1)] = value.error
                counts[key] = {"effective": value.items}
        shown = zip((*COLUMNS, "mean"), leaderboard(of_way), strict=True)
        columns[way] = {
            column: None if value is None else 100 * value.mean for column, value in shown
        }
    of_part = ("settings", "versions", "items", "cut", "seconds", "error")
    return {
        "model_name": name,
        "results": results,
        "n-samples": counts,
        "columns": columns,
        "notes": notes,
        "parts": [
            {"task": task, "way": way, **{key: of[key] for key in of_part if key in of}}
            for (way, task), of in made.items()
        ],
    }


def _named(task: str, metric: str) -> str:
    """lm-eval's name of a task; of MMLU `mmlu` is all questions, as there."""
    if task == "mmlu":
        return "mmlu" if metric.endswith(POOLED) else "mmlu, mean of subjects"
    return TASKS[task].definition.partition("/")[2].removesuffix(".yaml")
