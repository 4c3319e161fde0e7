"""Training rows that share long n-grams with evaluation sets are left out (data.decontaminate)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rayward.configs.sections.data import OWN_EVALUATION, Data
from rayward.data.decontaminate import EvaluationTexts, Shared
from rayward.data.formats.fields import ReadOptions
from rayward.data.formats.registry import Report, located
from rayward.pipelines.rows.spool import Entry
from rayward.pipelines.run.errors import StageError


def add_file(texts: EvaluationTexts, path: str | Path) -> Report:
    """Add the rows of an evaluation set, in any format that is known; what became of them.

    Also of rows with several reference answers: their questions are what training may have seen.
    """
    report = Report()
    for record, row in located(path, report=report, options=ReadOptions(any_reference=True)):
        texts.add(record, f"{row.file}:{row.line}")
    return report


def set_account(texts: EvaluationTexts, path: str | Path) -> dict[str, Any]:
    """`add_file`, and its account as JSON; `too_short` of its texts are not looked for."""
    before = texts.too_short
    rows = add_file(texts, path)
    account = {"read": rows.read, "rejected": dict(rows.rejected), "repaired": dict(rows.repaired)}
    return account | {"too_short": texts.too_short - before}


def evaluation_texts(
    data: Data, evaluation_prompts: Iterable[Entry]
) -> tuple[EvaluationTexts, dict[str, Any]] | None:
    """The texts that no training row may share n-grams with, and their account for the report;
    None if the config asks for nothing. StageError for a set that cannot be read.
    """
    settings = data.decontaminate
    if settings is None:
        return None
    texts = EvaluationTexts(settings.ngram)
    sets: dict[str, Any] = {}
    for name in settings.against:
        if name == OWN_EVALUATION:
            before = len(texts.places)
            for entry in evaluation_prompts:
                texts.add(entry.record, f"{entry.file}:{entry.line}" if entry.file else name)
            sets[name] = {"read": len(texts.places) - before, "rejected": {}}
            continue
        try:
            path = name if name.startswith("hf:") else Path(data.root) / name
            sets[name] = set_account(texts, path)
        except (FileNotFoundError, ValueError) as error:
            raise StageError(f"data.decontaminate.against: {error}") from error
    return texts, {
        "ngram": settings.ngram,
        "against": sets,
        "texts": texts.texts,
        "too_short": texts.too_short,
    }


def left_out_row(entry: Entry, texts: EvaluationTexts) -> dict[str, Any] | None:
    """What the report says of a record that shares n-grams with `texts`; None of another one."""
    shared = texts.shared_with(entry.record)
    if shared is None:
        return None
    why = told(shared, texts.n)
    place = {"file": entry.file, "line": entry.line} if entry.file else {}
    return {
        "where": entry.record.id or entry.record.source or "a row",
        "reason": why["rule"],
        "found": why["found"],
        "expected": why["expected"],
        "evaluation": shared.place,
    } | place


def told(shared: Shared, n: int) -> dict[str, str]:
    """Why a row is left out: the rule, what it shares with which row, and what is expected."""
    return {
        "rule": f"shares {n} words with an evaluation set",
        "found": f"{shared.shown!r}, as in {shared.place}",
        "expected": f"no {n} words in a row of an evaluation set, nor a shorter text of it",
    }
