"""What is left out of the rows, counted by the rule that left it out.

Every record that comes in is kept or stands in a count, and `prepare` proves the sum: data that
shrinks without a word is how a wrong template or a short context goes unseen. Rules that begin with
"kept" count records that stay.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from typing import Any

from rayward.data.records import Conversation, Labelled, Prompt, Ranking, Record, RowError, describe

NO_ANSWER = "no answer token within the context"
FURTHER = "kept, further segments"
IN_PIECES = (
    "kept, encoded in pieces: a token would lie across the end of a prompt, or a text has "
    "special tokens"
)


class Places:
    """The file and line of every record, in 8 bytes a record beside the record itself."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.lines = array("q")
        self.files: list[tuple[int, str]] = []  # (number of its first record, name)
        self.number_of: dict[int, int] = {}  # made when it is asked for: mostly nobody does

    def add(self, record: Record, file: str, line: int) -> None:
        if not self.files or self.files[-1][1] != file:
            self.files.append((len(self.lines), file))
        self.records.append(record)
        self.lines.append(line)

    def of(self, record: Record) -> dict[str, Any]:
        """{"file", "line"} of a record that was read; {} of one that was not, or was made anew."""
        # By identity: equal rows stand in several lines.
        if len(self.number_of) < len(self.records):
            self.number_of = {id(known): number for number, known in enumerate(self.records)}
        number = self.number_of.get(id(record))
        if number is None:
            return {}
        last = bisect_right(self.files, number, key=lambda file: file[0]) - 1
        return {"file": self.files[last][1], "line": self.lines[number]}


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
