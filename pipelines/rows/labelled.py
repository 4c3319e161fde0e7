"""Labelled answers, each good or bad, and their rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from rayward.data.records import Labelled, RowError, Turn
from rayward.data.templates.template import Encoded
from rayward.pipelines.rows.left_out import IN_PIECES, LeftOut, set_aside
from rayward.pipelines.rows.records import load_records
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.run.files import read_jsonl
from rayward.pipelines.run.folder import Run


def fit_labelled(
    records: Iterable[Labelled], renderer: Renderer, dropped: Counter[str]
) -> tuple[list[Labelled], list[Encoded]]:
    """Labelled answers and their rows, weight 1 at the answer, without those that do not fit."""
    kept: list[Labelled] = []
    rows: list[Encoded] = []
    for record in records:
        # Earlier answers of the conversation are part of the prompt: only the last has a label.
        turns = [replace(turn, weight=0.0) for turn in record.turns]
        try:
            row = renderer.scored((*turns, Turn("assistant", record.answer)), tools=record.tools)
        except RowError as error:
            set_aside(dropped, record, error)
            continue
        if len(row.ids) > renderer.context_tokens:
            _leave_out(dropped, record, len(row.ids), renderer.context_tokens)
            continue
        dropped.update([IN_PIECES] * row.apart)  # no entry where it is False
        kept.append(record)
        rows.append(row)
    return kept, rows


def _leave_out(dropped: Counter[str], record: Labelled, tokens: int, limit: int) -> None:
    # Not cut, as conversations are: the label is of the whole answer.
    rule = "the labelled answer does not fit the context"
    if not isinstance(dropped, LeftOut):
        dropped[rule] += 1
        return
    where = record.id or record.source or "a labelled answer"
    found, expected = f"a conversation of {tokens} tokens", f"at most {limit} tokens"
    dropped.add(where, rule, found, expected, **dropped.places.of(record))


def prepared_labels(run: Run, name: str) -> list[Labelled]:
    """The labelled answers in `name`.jsonl of the prepare stage; earlier versions left none."""
    path = run.folder / "prepare" / f"{name}.jsonl"
    return load_records(path) if path.is_file() else []


def label_count(run: Run, name: str) -> int:
    """How many those are."""
    path = run.folder / "prepare" / f"{name}.jsonl"
    return sum(1 for _ in read_jsonl(path)) if path.is_file() else 0


def good_and_bad(run: Run, name: str) -> tuple[int, int]:
    """How many of them are good, and how many are bad."""
    path = run.folder / "prepare" / f"{name}.jsonl"
    kinds = Counter(row["good"] for row in read_jsonl(path)) if path.is_file() else Counter()
    return kinds[True], kinds[False]
