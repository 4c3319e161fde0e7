"""What was set aside of each source of prepare, in few words: lines for people, from its account.

The account of a source is that of data/formats/registry.py, and beside it the rows that a list has
no use for, by a sentence that says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rayward.data.records import Record

MAX_TOLD = 5  # reasons, or fields, of a source
NO_USE = "is no use for data."
NEEDED = {
    "conversations": "a question and its answer",
    "preferences": "answers to compare, or one with a verdict",
}
"""What a row of a list has, where not every record will do."""

Sources = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""By list and path, the account of a source."""


def no_use(record: Record, name: str) -> tuple[str, dict[str, str]]:
    """Why a list has no use for a record: the rule, and the field, found and expected of a row."""
    kind = type(record).__name__.lower()
    return f"a {kind} {NO_USE}{name}", {
        "field": "row",
        "found": f"a {kind}",
        "expected": NEEDED.get(name, "another kind of row"),
    }


def told(sources: Sources) -> Iterator[str]:
    """A line for each source of which something was set aside or passed over."""
    for name, files in sources.items():
        for path, account in files.items():
            parts = []
            lost = _lost(account)
            if lost:
                parts.append(f"set aside: {_counted(lost)}")
            if account["passed_over"]:
                parts.append(f"fields passed over: {_counted(account['passed_over'])}")
            if parts:
                kept = account["read"] - sum(lost.values())
                rows = f"{account['read']} rows read, {kept} kept"
                yield "; ".join((f"data.{name}, {path}: {rows}", *parts))


def reasons(sources: Sources, name: str) -> str:
    """Why rows of a list were set aside, with counts; "" where none was."""
    total: dict[str, int] = {}
    for account in sources.get(name, {}).values():
        for reason, count in _lost(account).items():
            total[reason] = total.get(reason, 0) + count
    return _counted(total)


def _lost(account: Mapping[str, Any]) -> dict[str, int]:
    unused = {rule: count for rule, count in account.items() if NO_USE in rule}
    return {**account["rejected"], **unused}


def _counted(counts: Mapping[str, int]) -> str:
    """The most frequent ones with their counts, and how many more there are."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shown = [f"{what} ({count})" for what, count in ordered[:MAX_TOLD]]
    more = len(ordered) - MAX_TOLD
    return ", ".join([*shown, f"and {more} more"] if more > 0 else shown)
