"""A field of a row by its path: names with dots, and places in lists, `choices[0].message`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from rayward.data.records import RowError

STEP = re.compile(r"(?:^|\.)([^.\[\]]+)|\[(-?\d+)\]")


def look_up(row: Mapping[str, Any], path: str) -> tuple[bool, Any]:
    """(whether it is there, value) of a path in a row. RowError for a value that is unreadable."""
    if path in row:  # a name that has dots itself
        value: Any = row[path]
    else:
        value = row
        for step in steps(path):
            try:
                # A place in a text, or a name in a list, is none.
                if not isinstance(value, dict if isinstance(step, str) else list | tuple):
                    return False, None
                value = value[step]  # type: ignore[index]
            except (KeyError, IndexError):
                return False, None
    if isinstance(value, RowError):
        raise RowError(path, value.found, value.expected, value.reason)
    return True, value


@cache
def steps(path: str) -> tuple[str | int, ...]:
    """Names and places of a path; the path itself where it is not made of such."""
    found: list[str | int] = []
    end = 0
    while match := STEP.match(path, end):
        found.append(match[1] if match[1] is not None else int(match[2]))
        end = match.end()
    return tuple(found) if found and end == len(path) else (path,)
