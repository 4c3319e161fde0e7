"""What is left out of the rows, counted by the rule that left it out.

Every record that comes in is kept or stands in a count, and `prepare` proves the sum: data that
shrinks without a word is how a wrong template or a short context goes unseen. Rules that begin with
"kept" count records that stay.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import IO, Any

from rayward.data.records import Conversation, Labelled, Prompt, Ranking, Record, RowError, describe
from rayward.pipelines.rows.spool import Entry

NO_ANSWER = "no answer token within the context"
FURTHER = "kept, further segments"
IN_PIECES = (
    "kept, encoded in pieces: a token would lie across the end of a prompt, or a text has "
    "special tokens"
)
LISTED = 1000
"""Rows of one kind that a report lists."""


class Places:
    """The file and line of some records; those that are generated have none."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        # By identity: equal rows stand in several lines. The entries keep their records alive, so
        # none of these numbers is given to another one meanwhile.
        self._entries = list(entries)
        self._known = {id(entry.record): entry for entry in self._entries if entry.file}

    def of(self, record: Record) -> dict[str, Any]:
        """{"file", "line"} of a record that was read; {} of one that was not, or was made anew."""
        entry = self._known.get(id(record))
        return {"file": entry.file, "line": entry.line} if entry else {}


class Listing:
    """Rows for a report: the first of them here, and all of them in a file where there is one.

    A set in which a million rows are wrong shall not fill the memory with them.
    """

    def __init__(self, file: IO[str] | None = None) -> None:
        self.first: list[dict[str, Any]] = []
        self.count = 0
        self._file = file

    def add(self, row: dict[str, Any]) -> None:
        """One more row."""
        self.count += 1
        if self.count <= LISTED:
            self.first.append(row)
        if self._file is not None:
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")


class LeftOut(Counter[str]):
    """Counts of what was left out by rule, and each one with what would keep it in."""

    def __init__(self, places: Places | None = None) -> None:
        super().__init__()
        self.places = places or Places()
        self.rows: list[dict[str, Any]] = []

    def add(self, where: str, rule: str, found: str, expected: str, **more: Any) -> None:
        self[rule] += 1
        row = {"where": where, "reason": rule, "found": found, "expected": expected}
        self.rows.append(row | more)


def set_aside(
    dropped: Counter[str], record: Conversation | Prompt | Ranking | Labelled, error: RowError
) -> None:
    """Count a row that the chat template cannot render; a LeftOut lists it too."""
    if not isinstance(dropped, LeftOut):
        dropped[error.reason] += 1
        return
    question = next((turn.content for turn in record.turns if turn.role == "user"), "")
    where = f"{record.source or 'a row'} {record.id or describe(question)}"
    place = dropped.places.of(record)
    field = {"field": error.field} if place else {}
    found = f"{error.field}: {error.found}"
    dropped.add(where, error.reason, found, error.expected, **place, **field)
