"""What is left out of the rows, counted by the rule that left it out.

Every record that comes in is kept or stands in a count, and `prepare` proves the sum: data that
shrinks without a word is how a wrong template or a short context goes unseen. Rules that begin with
"kept" count records that stay.
"""

from __future__ import annotations

from collections import Counter

from rayward.data.records import Conversation, Prompt, Ranking, RowError, describe

NO_ANSWER = "no answer token within the context"
FURTHER = "kept, further segments"
IN_PIECES = (
    "kept, encoded in pieces: a token would lie across the end of a prompt, or a text has "
    "special tokens"
)


class LeftOut(Counter[str]):
    """Counts of what was left out by rule, and each one with what would keep it in."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, str]] = []

    def add(self, where: str, rule: str, found: str, expected: str) -> None:
        self[rule] += 1
        self.rows.append({"where": where, "reason": rule, "found": found, "expected": expected})


def set_aside(
    dropped: Counter[str], record: Conversation | Prompt | Ranking, error: RowError
) -> None:
    """Count a row that the chat template cannot render; a LeftOut lists it too."""
    if not isinstance(dropped, LeftOut):
        dropped[error.reason] += 1
        return
    question = next((turn.content for turn in record.turns if turn.role == "user"), "")
    where = f"{record.source or 'a row'} {record.id or describe(question)}"
    dropped.add(where, error.reason, f"{error.field}: {error.found}", error.expected)
