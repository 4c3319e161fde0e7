"""Verdicts of files, by who was judged and who judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rayward.data.judging.annotations import BadRow, Verdict
    from rayward.pipelines.rows.left_out import LeftOut

REPEATED = "repeated: the last verdict on the same answers counts"


class Compared(NamedTuple):
    """A model, the baseline it was compared with, and the judge."""

    model: str
    baseline: str
    annotator: str


@dataclass
class Comparison:
    """All verdicts on a model against a baseline by one judge, in the order of the files."""

    of: Compared
    verdicts: list[Verdict]

    @property
    def preferences(self) -> list[float]:
        """From 1, the baseline's answer is better, to 2; NaN where a verdict is missing."""
        return [number_or_nan(verdict.preference) for verdict in self.verdicts]


def number_or_nan(value: float | None) -> float:
    """NaN for None."""
    return float("nan") if value is None else float(value)


def comparisons(
    files: Sequence[str], left_out: LeftOut, keep_rows: bool = False
) -> list[Comparison]:
    """The verdicts of files by model, baseline and judge; rows that are none are in `left_out`.

    A verdict on the same two answers again takes the place of the first. ValueError: there is no
    verdict in the files, or the same model's in both shapes, which cannot be told apart.
    """
    from rayward.data.judging.annotations import BadRow, verdicts

    found: dict[Compared, dict[bytes | int, Verdict]] = {}
    for path in files:
        for verdict in verdicts(path, keep_rows):
            if isinstance(verdict, BadRow):
                add_bad_row(left_out, verdict)
                continue
            of = Compared(verdict.model, verdict.baseline, verdict.annotator)
            known = found.setdefault(of, {})
            key = verdict.digest if verdict.place is None else verdict.place
            if key in known:
                who = f"{of.model} against {of.baseline} by {of.annotator}"
                left_out.add(who, REPEATED, "a verdict again", "one")
            known[key] = verdict
            if isinstance(key, int) != isinstance(next(iter(known)), int):
                raise ValueError(
                    f"{path}: verdicts on {of.model} are in these files as rows and as lists; give "
                    "one of the two"
                )
    if not found:
        raise no_row(files, "verdict", left_out)
    return [Comparison(of, list(verdicts.values())) for of, verdicts in found.items()]


def add_bad_row(left_out: LeftOut, row: BadRow) -> None:
    """Count a row that is set aside."""
    error = row.error
    left_out.add(f"{row.file}:{row.line}: {error.field}", error.reason, error.found, error.expected)


def no_row(files: Sequence[str], kind: str, left_out: LeftOut) -> ValueError:
    """What to raise where no row of the files is what was asked for: with the first one's fault."""
    names = ", ".join(map(str, files))
    first = ["{where}: found {found}, expected {expected}".format(**row) for row in left_out.rows]
    return ValueError(": ".join([f"{names}: no {kind} in it", *first[:1]]))
