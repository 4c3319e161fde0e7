"""What the prepare stage starts from: the records of every source in a config's data, or those of
the toy world.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rayward.configs.schema import Config
from rayward.configs.sections.data import LISTS, Data, DataSource
from rayward.data.formats.registry import Report, read
from rayward.data.records import Conversation, Preference, Prompt, Ranking, Turn
from rayward.data.toy import toyworld
from rayward.pipelines.run.stage import StageError


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


def read_all(data: Data, name: str, report: dict[str, Any]) -> Iterator[Any]:
    """The records of a list of sources, brought to the kind that the list needs."""
    for source in getattr(data, name):
        rows = Report()
        made: Counter[str] = Counter()
        for record in itertools.islice(_open(data, name, source, rows), source.limit):
            converted = _as_kind(record, name)
            made[
                "records"
                if converted
                else f"a {type(record).__name__.lower()} is no use for data.{name}"
            ] += 1
            if converted:
                yield converted
        entry = {**rows.as_dict(), **made}
        rejected = entry.pop("rejected_rows")
        files = report.setdefault("sources", {}).setdefault(name, {})
        files[source.path if source.path not in files else f"{source.path} ({len(files) + 1})"] = (
            entry
        )
        told = ("file", "line", "field", "found", "expected")
        report.setdefault("rejected_rows", []).extend(
            {name: row[name] for name in told} for row in rejected
        )


def contents(data: Data) -> dict[str, str]:
    """A hash of every source file, so that a changed file is not taken for the old one."""
    sources = {source.path for name in LISTS for source in getattr(data, name)}
    found: dict[str, str] = {}
    for path in sorted(
        Path(data.root) / source for source in sources if not source.startswith("hf:")
    ):
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                with file.open("rb") as opened:
                    digest = hashlib.file_digest(opened, "sha256").hexdigest()[:16]
                found[os.path.relpath(file, data.root)] = digest
    return found


def _open(data: Data, name: str, source: DataSource, rows: Report) -> Iterator[Any]:
    path = source.path if source.path.startswith("hf:") else Path(data.root) / source.path
    try:
        return iter(read(path, source.format, rows))
    except (FileNotFoundError, ValueError) as error:
        raise StageError(
            f"data.{name}: {error}; data.root is {Path(data.root).resolve()}"
        ) from error


def _as_kind(record: Any, name: str) -> Any:
    if name == "conversations":
        return record if isinstance(record, Conversation) else None
    if name == "preferences":
        return (
            record.as_ranking()
            if isinstance(record, Preference)
            else record
            if isinstance(record, Ranking)
            else None
        )
    if isinstance(record, Conversation):
        asked = to_first_answer(record.turns)
        return Prompt(asked, record.source, record.id, reference=record.turns[len(asked)].content)
    reference = record.reference if isinstance(record, Prompt) else None
    return Prompt(record.turns, record.source, record.id, reference=reference)


def to_first_answer(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The turns before the first answer: what a conversation asks."""
    first = next(index for index, turn in enumerate(turns) if turn.role == "assistant")
    return turns[:first]
