"""Rows of RewardBench 2 and RM-Bench with what their figures need: which answer stands where.

As rankings, these rows are read like any others; a ranking has its answers in its own order, each
once. RewardBench 2 (arXiv:2506.01937) has lists of right and wrong answers and a subset, whose Ties
have ids "ref:NUMBER" and "tied:NUMBER"; RM-Bench (arXiv:2410.16184) three right and three wrong
answers, concise, detailed, and detailed in Markdown, and a domain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rayward.data.formats.readers.chat import label_of
from rayward.data.formats.registry import files_of, format_of
from rayward.data.formats.rows.fields import as_object
from rayward.data.judging.annotations import BadRow
from rayward.data.records import RowError, describe

REWARDBENCH2, RM_BENCH = "RewardBench 2", "RM-Bench"
GROUPS = {"rewardbench": (REWARDBENCH2, "subset"), "rm_bench": (RM_BENCH, "domain")}
"""By the format of a file: the benchmark, and the field that says which part of it a row is of."""
TIES = "ties"
KINDS = ("ref", "tied")
SIDES = ("chosen", "rejected")


@dataclass(frozen=True, slots=True)
class BenchRow:
    """A row of a benchmark: `group` is its subset or domain; answers in the order of the row.

    `id`: of Ties, "ref:..." or "tied:...".
    """

    file: str
    line: int
    bench: str
    group: str
    id: str
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]

    @property
    def place(self) -> str:
        """FILE:LINE."""
        return f"{self.file}:{self.line}"


def bench_rows(path: str) -> Iterator[BenchRow | BadRow]:
    """The rows of the benchmarks among the files of `path`, and rows of Ties without its ids.

    None of other files; nor rows that no ranking is made of, which `outcomes` tells of.
    """
    for source in files_of(path, "auto"):
        form = format_of(source, "auto")
        if form is None or form.name not in GROUPS:
            continue
        bench, field = GROUPS[form.name]
        for line, value in source.rows():
            row = None if isinstance(value, RowError) else as_object(value)
            if not isinstance(row, dict) or not all(_texts(row.get(side)) for side in SIDES):
                continue
            try:
                yield _row(source.name, line, bench, field, row)
            except RowError as error:
                yield BadRow(source.name, line, error)


def _texts(value: object) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(text, str) for text in value)


def _row(file: str, line: int, bench: str, field: str, row: Mapping[str, Any]) -> BenchRow:
    group, name = label_of(row, field), label_of(row, "id")
    if bench == REWARDBENCH2 and group.lower() == TIES:
        kind, _, number = name.partition(":")
        if kind not in KINDS or not number:
            expected = "ref:NUMBER or tied:NUMBER, as in the subset Ties"
            raise RowError("id", describe(row.get("id")), expected, "no id of Ties")
    return BenchRow(file, line, bench, group, name, tuple(row["chosen"]), tuple(row["rejected"]))
