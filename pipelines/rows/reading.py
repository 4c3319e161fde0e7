"""What the prepare stage starts from: the records of a config's sources, or of the toy world."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rayward.configs.schema import Config
from rayward.configs.sections.data import LISTS, OWN_EVALUATION, Data, DataSource
from rayward.data.formats.dataset_info import infos_of
from rayward.data.formats.files.containers import data_files
from rayward.data.formats.registry import Outcome, Rejected, Report, located
from rayward.data.formats.rows.fields import ReadOptions
from rayward.data.records import Conversation, Labelled, Preference, Prompt, Ranking, Record, Turn
from rayward.data.toy import toyworld
from rayward.pipelines.rows.left_out import Listing
from rayward.pipelines.rows.set_aside import no_use
from rayward.pipelines.rows.spool import Entry
from rayward.pipelines.run.errors import StageError


def generate(config: Config) -> tuple[dict[str, list], float]:
    """The toy world's records, and the share of ranked pairs that contradict its gold judge."""
    world, seed = config.data.toyworld, config.seed
    assert world is not None
    rankings, noise = toyworld.rankings(
        world.rankings, world.answers_per_ranking, world.label_noise, seed
    )
    return {
        "conversations": toyworld.demonstrations(world.demonstrations, seed),
        "preferences": rankings,
        "prompts": toyworld.prompts(world.prompts, seed, "train"),
        "evaluation_prompts": toyworld.prompts(world.evaluation_prompts, seed, "evaluation"),
    }, noise


def read_all(data: Data, name: str, report: dict[str, Any], rejected: Listing) -> Iterator[Entry]:
    """The records of a list of sources, brought to the kind that the list needs.

    `rejected` is told the rows that cannot be used, and those that the list has no use for.
    """
    for number, source in enumerate(getattr(data, name)):
        rows = Report(rejected_rows=_HandedOn(rejected=rejected))
        outcomes: Counter[str] = Counter()
        for record, row in itertools.islice(_open(data, name, source, rows), source.limit):
            converted = _as_kind(record, name)
            if converted:
                outcomes["records"] += 1
                yield Entry(converted, row.file, row.line, number)
            else:
                rule, why = no_use(record, name)
                outcomes[rule] += 1
                rejected.add({"file": row.file, "line": row.line, **why})
        # After the last record: the reader fills `rows` as it goes.
        entry = {**rows.as_dict(), **outcomes}
        del entry["rejected_rows"]
        files = report.setdefault("sources", {}).setdefault(name, {})
        # The same file may stand in a list twice, with other limits or formats.
        key = source.path
        if key in files:
            key = f"{source.path} ({len(files) + 1})"
        files[key] = entry


class _HandedOn(list[Rejected]):
    """In place of a report's list of the rows that a reader could not use: it does not grow with
    the file.
    """

    def __init__(self, rows: Iterable[Rejected] = (), rejected: Listing | None = None) -> None:
        super().__init__(rows)
        self.rejected = rejected or Listing()

    def append(self, row: Rejected) -> None:
        values = asdict(row)
        del values["reason"]
        self.rejected.add(values)


def paths(data: Data) -> set[str]:
    """Whatever prepare reads: the sources, and sets that their rows are compared with."""
    read = {source.path for name in LISTS for source in getattr(data, name)}
    if data.decontaminate:
        read |= {*data.decontaminate.against} - {OWN_EVALUATION}
    return read


def contents(data: Data) -> dict[str, str]:
    """A hash of every source file by its path from `data.root`; none of data sets on the hub.

    Also of every dataset_info.json that may name the fields of one. They are among the settings of
    prepare, so a changed file is not taken for the old one.
    """
    digests: dict[str, str] = {}
    for files in _local_files(data):
        infos = {info for file in files for info in infos_of(file)}
        for file in {*files, *infos}:
            if file.is_file():
                with file.open("rb") as opened:
                    digest = hashlib.file_digest(opened, "sha256").hexdigest()[:16]
                digests[os.path.relpath(file, data.root)] = digest
    return digests


def local_bytes(data: Data) -> int:
    """The size of all files that prepare reads, but for data sets on the hub."""
    every = {file for files in _local_files(data) for file in files}
    return sum(file.stat().st_size for file in every if file.is_file())


def _local_files(data: Data) -> Iterator[list[Path]]:
    """The files of each source, or set to compare with, that is no data set on the hub."""
    local = (Path(data.root) / path for path in paths(data) if not path.startswith("hf:"))
    for path in sorted(local):
        yield _files(path) if path.is_dir() else [path]


def _files(folder: Path) -> list[Path]:
    """What decides on the rows of a folder: all that lies in it, and data in folders below."""
    try:
        below = data_files(folder)
    except FileNotFoundError:
        below = []  # told where it is read
    return sorted({*folder.iterdir(), *below})


def _open(
    data: Data, name: str, source: DataSource, rows: Report
) -> Iterator[tuple[Record, Outcome]]:
    try:
        asked = ReadOptions(
            frozenset(source.ignore), source.imitate_good, source.fields, source.roles
        )
        return located(data.at(source.path), source.format, rows, options=asked)
    except (FileNotFoundError, ValueError) as error:
        raise StageError(
            f"data.{name}: {error}; data.root is {Path(data.root).resolve()}"
        ) from error


def _as_kind(record: Record, name: str) -> Record | None:
    """A record of the kind that the list `name` needs, made of this one; None where none can be."""
    if name == "conversations":
        return record if isinstance(record, Conversation) else None
    if name == "preferences":
        if isinstance(record, Preference):
            return record.as_ranking()
        return record if isinstance(record, Ranking | Labelled) else None
    # A prompt can be had from every kind. The first answer of a conversation is its reference, for
    # sources of reward that compare with one.
    if isinstance(record, Conversation):
        question = to_first_answer(record.turns)
        answer = record.turns[len(question)]
        # What calls a tool is no text to compare with.
        reference = None if answer.tool_calls else answer.content
        return Prompt(question, record.source, record.id, reference=reference, tools=record.tools)
    reference = record.reference if isinstance(record, Prompt) else None
    return Prompt(record.turns, record.source, record.id, reference=reference, tools=record.tools)


def to_first_answer(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The turns before the first answer: what a conversation asks."""
    first = next(index for index, turn in enumerate(turns) if turn.role == "assistant")
    return turns[:first]
