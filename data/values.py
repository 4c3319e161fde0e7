"""Values of a row whose type is not known yet, and the error of a row that is not as it should be.

What is wrong is a `RowError`: where (`field`), what was there (`found`), what belongs there
(`expected`), and the short `reason` under which a report counts it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# White space, and what has no width: joiners, marks of direction, the soft hyphen, the BOM. `strip`
# without an argument keeps the latter.
BLANK = "".join(chr(code) for code in range(0x3001) if chr(code).isspace()) + (
    "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\u2064\ufeff"
)


class UnusableError(ValueError):
    """Rows that were given cannot be used, all or, where one is to stop, the first: what they are
    in is a file as it should be.
    """


class RowError(ValueError):
    """A row, or a part of one, that is not what it should be. `reason` quotes nothing of it."""

    def __init__(self, field: str, found: str, expected: str, reason: str = "") -> None:
        self.field = field
        self.found = found
        self.expected = expected
        # Reports count rows by reason. An index in it would make a reason of its own of every row.
        self.reason = reason or f"{re.sub('[0-9]+', '', field)} is not {expected}"
        super().__init__(f"{self.field}: found {self.found}, expected {self.expected}")

    def as_dict(self) -> dict[str, str]:
        """The error as JSON."""
        return {
            "field": self.field,
            "found": self.found,
            "expected": self.expected,
            "reason": self.reason,
        }


def describe(value: object) -> str:
    """`value` in a few words for an error message, however large it is."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else f"{value[:60]!r}... ({len(value)} characters)"
    if isinstance(value, list | tuple | dict):
        return f"{type(value).__name__} of {len(value)}"
    return str(value) if value is None or isinstance(value, bool | float) else type(value).__name__


def surrogate_in(text: str) -> str:
    """The first character that UTF-8 cannot encode, half of a surrogate pair; "" if there is none.

    JSON can hold one as an escape, `\\ud800`. Writing it to a file would raise much later.
    """
    try:
        text.encode()  # runs over every text of every row: ten times as fast as a pattern
    except UnicodeEncodeError as error:
        return text[error.start]
    return ""


def text_of(value: object, field: str) -> str:
    """`value` if it is text that says something and can be written as UTF-8. RowError otherwise."""
    if not isinstance(value, str):
        # In its place in the row: see data/formats/files/containers.py.
        if isinstance(value, RowError):
            raise RowError(field, value.found, value.expected, value.reason)
        raise RowError(
            field, describe(value), "text", "missing text" if value is None else "wrong type"
        )
    stripped = value.strip()
    # In two steps, as this runs over every text of every row: few begin with what has no width.
    if not stripped or (stripped[0] in BLANK and not stripped.strip(BLANK)):
        raise RowError(field, describe(value), "text that is not blank", "empty text")
    if found := surrogate_in(value):
        raise RowError(field, f"\\u{ord(found):04x}", "valid Unicode", "invalid Unicode")
    return value


def number_of(value: object, field: str) -> float:
    """`value` as a float if it is a finite number (a bool is not). RowError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float):  # bool is an int in Python
        raise RowError(field, describe(value), "a number", "wrong type")
    if not abs(value) <= sys.float_info.max:  # NaN compares false; an int may be beyond all floats
        raise RowError(field, describe(value), "a finite number", "number not finite")
    return float(value)


def list_of(value: object, field: str) -> Sequence[Any]:
    """`value` if it is a list. RowError otherwise."""
    if not isinstance(value, list | tuple):
        raise RowError(
            field, describe(value), "a list", "missing list" if value is None else "wrong type"
        )
    return value


def object_of(value: object, field: str) -> Mapping[str, Any]:
    """`value` if it is an object with fields. RowError otherwise."""
    if not isinstance(value, dict):
        raise RowError(field, describe(value), "an object", "wrong type")
    return value


def objects_of(value: object, field: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """("field[0]", object), ... of a list of objects. RowError if it is none or an item is none."""
    for index, item in enumerate(list_of(value, field)):
        yield f"{field}[{index}]", object_of(item, f"{field}[{index}]")
