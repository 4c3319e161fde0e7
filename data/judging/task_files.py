"""Where local copies of benchmarks lie: a folder for each, as the hub has it or by the task's name.

`hf download cais/mmlu --repo-type dataset --local-dir DIR/mmlu` makes such a folder; so do parquet
or JSON lines files that are named by their split.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rayward.data.formats.files.containers import rows
from rayward.data.judging.annotations import BadRow
from rayward.data.judging.task_rows import CHECKS
from rayward.data.records import RowError, object_of


@dataclass(frozen=True, slots=True)
class Benchmark:
    """`hub`: its data set there; `inner`: the folder in it, by name of a subject where {subject}.

    `names`: further names of its folder. `splits`: what is read, few-shot examples first.
    """

    hub: str
    inner: str
    names: tuple[str, ...]
    splits: tuple[str, ...]

    def folders(self, subject: str) -> list[str]:
        """Where its files may lie below the folder that is given, the hub's name first."""
        inner = self.inner.format(subject=subject)
        repositories = (self.hub, self.hub.partition("/")[2])
        within = [f"{name}/{inner}" if inner else name for name in repositories]
        named = [f"{name}/{subject}" if subject else name for name in self.names]
        return list(dict.fromkeys((*within, *named)))


BENCHMARKS = {
    "mmlu": Benchmark("cais/mmlu", "{subject}", (), ("dev", "test")),
    "arc": Benchmark(
        "allenai/ai2_arc",
        "ARC-Challenge",
        ("ARC-Challenge", "arc_challenge", "arc"),
        ("train", "test"),
    ),
    "truthfulqa": Benchmark(
        "truthfulqa/truthful_qa",
        "multiple_choice",
        ("truthfulqa_mc2", "truthfulqa"),
        ("validation",),
    ),
    "hellaswag": Benchmark("Rowan/hellaswag", "", (), ("train", "validation")),
    "gsm8k": Benchmark("openai/gsm8k", "main", ("gsm8k",), ("train", "test")),
    "ifeval": Benchmark("google/IFEval", "", ("ifeval",), ("train",)),
}
KINDS = {"parquet": (".parquet",), "json": (".jsonl", ".json", ".jsonl.gz", ".json.gz")}
"""What `datasets` calls them, and how their names end."""
ALSO_NAMED = {"validation": ("validation", "val")}


@dataclass(frozen=True, slots=True)
class Files:
    """A benchmark's files by split, all of one kind: parquet or json."""

    kind: str
    of_split: Mapping[str, tuple[Path, ...]]

    def digest(self) -> str:
        """Of what is in them."""
        digest = hashlib.sha256()
        for split, paths in sorted(self.of_split.items()):
            for path in paths:
                digest.update(f"{split} {path.stat().st_size} ".encode())
                with path.open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
        return digest.hexdigest()[:16]


def find(data: Path, task: str, subject: str = "") -> Files | None:
    """The files of a task, or of its subject, below a folder; None where a split has none."""
    benchmark = BENCHMARKS[task]
    for folder in benchmark.folders(subject):
        for where in (data / folder, data / folder / "data"):
            names = sorted(path for path in where.glob("*") if path.is_file())
            for kind, ends in KINDS.items():
                of_split = {
                    split: _of_split(names, split, ends, benchmark.splits)
                    for split in benchmark.splits
                }
                if all(of_split.values()):
                    return Files(kind, of_split)
    return None


def _of_split(
    files: Sequence[Path], split: str, ends: tuple[str, ...], splits: tuple[str, ...]
) -> tuple[Path, ...]:
    """Files whose names have the split as a word of theirs; of a single split, any file."""
    those = [path for path in files if path.name.endswith(ends)]
    words = "|".join(ALSO_NAMED.get(split, (split,)))
    named = [path for path in those if re.search(rf"(^|[-_.])({words})[-_.]", path.name)]
    if not named and len(splits) == 1 and len(those) == 1:
        named = those  # IFEval's ifeval_input_data.jsonl
    return tuple(named)


def expected(task: str) -> str:
    """Where the files of a task are looked for, in words."""
    benchmark = BENCHMARKS[task]
    subject = "SUBJECT" if "{subject}" in benchmark.inner else ""
    folders = " or ".join(f"{folder}/" for folder in benchmark.folders(subject))
    splits = " and ".join(f"{split}*.parquet or {split}*.jsonl" for split in benchmark.splits)
    return f"{folders} with {splits}, in the shape of {benchmark.hub} on the hub"


def look_at(task: str, files: Files) -> tuple[dict[str, int], list[BadRow]]:
    """How many rows each split has, and those that are no items of the task."""
    counts, bad = dict.fromkeys(files.of_split, 0), []
    for split, paths in files.of_split.items():
        for path in paths:
            for line, value in rows(path):
                counts[split] += 1
                try:
                    if isinstance(value, RowError):
                        raise value
                    CHECKS[task](object_of(value, "row"))
                except RowError as error:
                    bad.append(BadRow(str(path), line, error))
    return counts, bad
