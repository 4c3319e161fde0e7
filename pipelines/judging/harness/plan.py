"""What `judge tasks` is to measure: definitions, data that is there, and what is done already."""

from __future__ import annotations

import argparse
import difflib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayward.data.feedback.prompt_files import digest
from rayward.data.judging.annotations import BadRow
from rayward.data.judging.task_files import BENCHMARKS, Files, expected, find, look_at
from rayward.pipelines.judging.harness.definitions import (
    SHOWN_SHOTS,
    TASKS,
    subjects,
    write_definition,
)

MAX_PRINTED = 5
NEED_PUNKT = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
"""Instructions of IFEval whose checks read NLTK's punkt_tab."""


@dataclass
class Task:
    """A task with its files by subject, "" where it has none. `files` is empty with the hub's.

    `left_out`: prompts of IFEval that are not asked, by the instruction that cannot be checked.
    """

    name: str
    subjects: list[str]
    files: dict[str, Files] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    prompts_left_out: int = 0


def chosen(options: argparse.Namespace) -> list[str]:
    """The names of --tasks. ValueError: one is unknown."""
    names = [name.strip() for name in options.tasks.split(",") if name.strip()]
    for name in names:
        if name not in TASKS:
            hint = _hint(name, TASKS)
            raise ValueError(f"--tasks: unknown task {name!r}{hint}; known: {', '.join(TASKS)}")
    if not names:
        raise ValueError(f"--tasks names none of {', '.join(TASKS)}")
    return list(dict.fromkeys(names))


def tasks_of(options: argparse.Namespace) -> list[Task]:
    """The tasks with their local files. ValueError: what is missing, and where it is expected."""
    tasks = [Task(name, _subjects(options) if name == "mmlu" else [""]) for name in chosen(options)]
    if options.data is None:
        return tasks
    if not options.data.is_dir():
        raise ValueError(f"--data {options.data}: no such folder")
    missing: list[str] = []
    for task in tasks:
        without = []
        for subject in task.subjects:
            files = find(options.data, task.name, subject)
            if files is None:
                without.append(subject)
            else:
                task.files[subject] = files
        if without:
            missing.append(_missing(task, without))
    if missing:
        told = "\n".join(missing)
        raise ValueError(f"--data {options.data} lacks what is to be measured:\n{told}")
    for task in tasks:
        _check(task)
    return tasks


def _hint(name: str, known: Iterable[str]) -> str:
    """The known name that is meant, where one is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f", did you mean {near[0]}" if near else ""


def _subjects(options: argparse.Namespace) -> list[str]:
    known = subjects()
    if not options.subjects:
        return known
    given = [name.strip() for name in options.subjects.split(",") if name.strip()]
    for name in given:
        if name not in known:
            hint = _hint(name, known)
            raise ValueError(f"--subjects: MMLU has no {name!r}{hint}; it has {', '.join(known)}")
    return sorted(set(given))


def _missing(task: Task, without: Sequence[str]) -> str:
    if task.subjects == [""]:
        return f"  {task.name}: expected {expected(task.name)}"
    shown = ", ".join(without[:3]) + (", ..." if len(without) > 3 else "")
    count = f"{len(without)} of {len(task.subjects)} subjects ({shown})"
    return f"  {task.name}: {count}: expected {expected(task.name)}; --subjects takes some of them"


def _check(task: Task) -> None:
    """ValueError: rows are no items of the task, or too few to show."""
    bad: list[BadRow] = []
    for files in task.files.values():
        counts, of_files = look_at(task.name, files)
        bad += of_files
        shown, shots = BENCHMARKS[task.name].splits[0], TASKS[task.name].shots
        where = files.of_split[shown][0]
        if counts[shown] < shots:
            raise ValueError(
                f"{where}: {counts[shown]} rows, and {task.name} shows {shots} examples of it"
            )
        if not all(counts.values()):
            raise ValueError(f"{where.parent}: no row of {task.name} in one of its files")
    if bad:
        first = "\n".join(f"  {row.file}:{row.line}: {row.error}" for row in bad[:MAX_PRINTED])
        raise ValueError(
            f"{task.name}: {len(bad)} rows are no items of it; without them it would be another "
            f"benchmark:\n{first}"
        )


def define(task: Task, folder: Path) -> list[str]:
    """Write lm-eval's definitions of a task; its names there."""
    names = []
    for subject in task.subjects:
        name, _ = write_definition(folder, task.name, subject, task.files.get(subject))
        names.append(name)
    return names


def leave_out_unchecked(task: Task, folder: Path) -> None:
    """Take the prompts of IFEval out whose instructions need NLTK's punkt_tab, where it is not."""
    from rayward.data.formats.files.containers import rows
    from rayward.pipelines.run.files import write_jsonl

    kept: list[dict[str, Any]] = []
    for path in task.files[""].of_split["train"]:
        for _, row in rows(path):
            needing = [name for name in NEED_PUNKT if name in row["instruction_id_list"]]
            task.left_out.update(needing)
            task.prompts_left_out += bool(needing)
            if not needing:
                kept.append(row)
    if not kept:
        raise ValueError(
            "ifeval: each of its prompts has an instruction whose check needs NLTK's punkt_tab, "
            "which is not here: put it into --data DIR as nltk_data/tokenizers/punkt_tab"
        )
    if task.left_out:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "ifeval.jsonl"
        write_jsonl(path, kept)
        task.files[""] = Files("json", {"train": (path,)})


def has_punkt(data: Path | None) -> bool:
    """Whether NLTK finds the data of its sentences and words, also in --data."""
    import nltk

    own = [] if data is None else [str(data / "nltk_data")]
    try:
        nltk.data.find("tokenizers/punkt_tab/english", [*own, *nltk.data.path])
    except LookupError:
        return False
    return True


def done(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What is measured already; None where it is not. ValueError: with other settings."""
    if not path.is_file():
        return None
    made: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "error" in made:
        return None
    if made["settings"] != settings:
        before = made["settings"]
        differ = [
            f"{name} was {before.get(name)!r} and is {settings.get(name)!r}"
            for name in {**before, **settings}
            if before.get(name) != settings.get(name)
        ]
        raise ValueError(
            f"{path} was made with other settings ({'; '.join(differ)}): give another --out, or "
            "delete it"
        )
    return made


def settings_of(task: Task, **shared: Any) -> dict[str, Any]:
    """All that decides a task's figures."""
    data = " ".join(files.digest() for _, files in sorted(task.files.items()))
    return {
        **shared,
        "shots": TASKS[task.name].shots,
        "subjects": task.subjects if task.name == "mmlu" else None,
        "data": digest(data) if data else "the hub's",
    }


def title(task: Task, chat: bool) -> str:
    """A part in words."""
    return f"{SHOWN_SHOTS[task.name]}-shot, {'with' if chat else 'without'} the chat template"
