"""Training rows that share long n-grams with evaluation sets are left out (data.decontaminate)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rayward.configs.sections.data import OWN_EVALUATION, Data
from rayward.data.decontaminate import EvaluationTexts, Shared
from rayward.data.formats.registry import Rejected, Report, located
from rayward.data.formats.rows.fields import ReadOptions
from rayward.pipelines.rows.spool import Entry
from rayward.pipelines.run.errors import StageError

WORDS = ReadOptions(words_only=True)


def add_file(texts: EvaluationTexts, path: str | Path) -> dict[str, Any]:
    """Add the rows of an evaluation set, in any format that is known; its account.

    ValueError for a set without a row that can be read.
    """
    report = Report(rejected_rows=_Dropped())
    before = texts.too_short
    for record, row in located(path, report=report, options=WORDS):
        texts.add(record, f"{row.file}:{row.line}")
    if not report.kept:
        why = ", ".join(f"{reason} ({count})" for reason, count in report.rejected.items())
        raise ValueError(
            f"{path}: no row of {report.read} can be read, so nothing is compared"
            + f": {why}" * bool(why)
        )
    return {
        "read": report.read,
        "rejected": dict(report.rejected),
        "too_short": texts.too_short - before,
    }


class _Dropped(list[Rejected]):
    """In place of a report's list of rows: their counts are enough."""

    def append(self, row: Rejected) -> None:
        """Keep nothing."""


def not_compared(sets: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A sentence on each evaluation set of which something is not compared, by their accounts."""
    for name, account in sets.items():
        refused, short = sum(account["rejected"].values()), account["too_short"]
        told = []
        if refused:
            why = ", ".join(f"{reason} ({n})" for reason, n in account["rejected"].items())
            told.append(
                f"{refused} of {account['read']} rows of {name} could not be read and are not "
                f"compared: {why}"
            )
        if short:
            told.append(f"{short} texts {'' if refused else f'of {name} '}are too short to compare")
        if told:
            yield "; ".join(told)


def require_texts(texts: EvaluationTexts) -> None:
    """ValueError where evaluation sets hold nothing that rows can be compared with."""
    if not len(texts):
        raise ValueError(
            f"nothing can be compared: all {texts.texts} texts of the evaluation sets are shorter "
            f"than {texts.shortest} words"
        )


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
            before, short = len(texts.places), texts.too_short
            for entry in evaluation_prompts:
                texts.add(entry.record, f"{entry.file}:{entry.line}" if entry.file else name)
            sets[name] = {
                "read": len(texts.places) - before,
                "rejected": {},
                "too_short": texts.too_short - short,
            }
            continue
        try:
            sets[name] = add_file(texts, data.at(name))
        except (FileNotFoundError, ValueError) as error:
            raise StageError(f"data.decontaminate.against: {error}") from error
    try:
        require_texts(texts)
    except ValueError as error:
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
