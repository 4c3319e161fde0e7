"""Training rows that share long n-grams with evaluation sets are left out (data.decontaminate)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rayward.configs.sections.data import OWN_EVALUATION, Data
from rayward.data.decontaminate import EvaluationTexts, Shared
from rayward.data.formats.registry import Report, located
from rayward.pipelines.rows.left_out import LeftOut, Places
from rayward.pipelines.run.errors import StageError

TRAINED = {"conversations": "conversations", "preferences": "rankings", "prompts": "prompts"}
"""The lists that are trained on, and the file of records that what they leave out is counted at."""


def add_file(texts: EvaluationTexts, path: str | Path) -> Report:
    """Add the rows of an evaluation set, in any format that is known; what became of them."""
    report = Report()
    for record, row in located(path, report=report):
        texts.add(record, f"{row.file}:{row.line}")
    return report


def evaluation_texts(
    data: Data, evaluation_prompts: Sequence[Any], places: Places, report: dict[str, Any]
) -> EvaluationTexts | None:
    """The texts that no training row may share n-grams with; None if the config asks for nothing.

    `report` gets their account. StageError for a set that cannot be read.
    """
    settings = data.decontaminate
    if settings is None:
        return None
    texts = EvaluationTexts(settings.ngram)
    sets: dict[str, Any] = {}
    for name in settings.against:
        if name == OWN_EVALUATION:
            for record in evaluation_prompts:
                place = places.of(record)
                texts.add(record, f"{place['file']}:{place['line']}" if place else name)
            sets[name] = {"read": len(evaluation_prompts), "rejected": {}}
            continue
        try:
            rows = add_file(texts, name if name.startswith("hf:") else Path(data.root) / name)
        except (FileNotFoundError, ValueError) as error:
            raise StageError(f"data.decontaminate.against: {error}") from error
        sets[name] = {"read": rows.read, "rejected": dict(rows.rejected)}
    report["decontaminate"] = {
        "ngram": settings.ngram,
        "against": sets,
        "texts": texts.texts,
        "too_short": texts.too_short,
    }
    return texts


def without_shared(
    records: Mapping[str, list[Any]], texts: EvaluationTexts | None, dropped: Mapping[str, LeftOut]
) -> dict[str, list[Any]]:
    """The records of each list; those that are trained without what shares n-grams with `texts`."""
    if texts is None:
        return dict(records)
    return {
        name: list(_clean(rows, texts, dropped[TRAINED[name]])) if name in TRAINED else rows
        for name, rows in records.items()
    }


def _clean(records: list[Any], texts: EvaluationTexts, dropped: LeftOut) -> Iterator[Any]:
    for record in records:
        shared = texts.shared_with(record)
        if shared is None:
            yield record
            continue
        where = record.id or record.source or "a row"
        place = dropped.places.of(record)
        dropped.add(where, **told(shared, texts.n), evaluation=shared.place, **place)


def told(shared: Shared, n: int) -> dict[str, str]:
    """Why a row is left out: the rule, what it shares with which row, and what is expected."""
    return {
        "rule": f"shares {n} words with an evaluation set",
        "found": f"{shared.shown!r}, as in {shared.place}",
        "expected": f"no {n} words in a row of an evaluation set, nor a shorter text of it",
    }
