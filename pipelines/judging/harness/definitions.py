"""lm-eval's own task definitions, with our number of examples and local files: a YAML file a task.

Each includes the definition that is installed, so that prompts, choices and metrics are lm-eval's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayward.data.judging.task_files import Files

INSTALL = "make install-eval, or pip install 'rayward[eval]'"


@dataclass(frozen=True, slots=True)
class Measured:
    """A task as it is measured: with so many `shots`, by `metrics` of lm-eval's, the first of which
    stands in the table.

    `definition`: its file in lm-eval, with {subject}; `max_new_tokens`: 0 where none is generated.
    """

    title: str
    definition: str
    shots: int
    metrics: tuple[str, ...]
    max_new_tokens: int = 0


TASKS = {
    "mmlu": Measured("MMLU", "mmlu/default/mmlu_{subject}.yaml", 5, ("acc,none",)),
    "arc": Measured("ARC", "arc/arc_challenge.yaml", 25, ("acc_norm,none", "acc,none")),
    "truthfulqa": Measured("TruthfulQA", "truthfulqa/truthfulqa_mc2.yaml", 0, ("acc,none",)),
    "hellaswag": Measured(
        "HellaSwag", "hellaswag/hellaswag.yaml", 10, ("acc_norm,none", "acc,none")
    ),
    "gsm8k": Measured(
        "GSM8K",
        "gsm8k/gsm8k.yaml",
        5,
        ("exact_match,strict-match", "exact_match,flexible-extract"),
        256,
    ),
    "ifeval": Measured(
        "IFEval",
        "ifeval/ifeval.yaml",
        0,
        (
            "prompt_level_strict_acc,none",
            "inst_level_strict_acc,none",
            "prompt_level_loose_acc,none",
            "inst_level_loose_acc,none",
        ),
        1280,
    ),
}
COLUMNS = ("mmlu", "arc", "truthfulqa", "hellaswag")
"""Xwin's: the Open LLM Leaderboard as it was in 2023."""
SHOWN_SHOTS = {name: f"{task.title} {task.shots}" for name, task in TASKS.items()}


def lm_eval_tasks() -> Path:
    """The folder of lm-eval's definitions. ValueError: it is not installed."""
    found = importlib.util.find_spec("lm_eval")
    if found is None or not found.submodule_search_locations:
        raise ValueError(f"judge tasks measures with lm-eval, which is not installed: {INSTALL}")
    return Path(found.submodule_search_locations[0]) / "tasks"


def check_packages(names: list[str]) -> None:
    """ValueError where a task needs a package that is not installed."""
    needed = ["aiohttp", "requests", "tenacity", "tqdm"]
    if "ifeval" in names:
        needed += ["immutabledict", "langdetect", "nltk"]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{', '.join(names)}: lm-eval needs {', '.join(missing)}: {INSTALL}")


def subjects() -> list[str]:
    """The 57 of MMLU, as lm-eval has them."""
    files = sorted((lm_eval_tasks() / "mmlu" / "default").glob("mmlu_*.yaml"))
    return [path.stem.removeprefix("mmlu_") for path in files]


def write_definition(
    folder: Path, task: str, subject: str, files: Files | None
) -> tuple[str, Path]:
    """lm-eval's name of a task and the file that we write for it; without files from the hub.

    ValueError: lm-eval has no such definition.
    """
    import yaml

    measured = TASKS[task]
    source = lm_eval_tasks() / measured.definition.format(subject=subject)
    if not source.is_file():
        raise ValueError(f"{source}: not there; another lm-eval is needed: {INSTALL}")
    fields: dict[str, Any] = {"include": str(source), "num_fewshot": measured.shots}
    if files is not None:
        fields |= {
            "dataset_path": files.kind,
            "dataset_name": None,
            "dataset_kwargs": {"data_files": _paths(files.of_split)},
        }
    path = folder / source.name
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(fields, sort_keys=False, width=1000), encoding="utf-8")
    return source.stem, path


def _paths(of_split: Mapping[str, tuple[Path, ...]]) -> dict[str, list[str]]:
    return {split: [str(path.resolve()) for path in paths] for split, paths in of_split.items()}
