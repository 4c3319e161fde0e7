"""A line of what `rayward doctor` finds."""

from __future__ import annotations

from typing import NamedTuple


class Found(NamedTuple):
    """What was looked at and found. `problem`: why no run can start; `note`: what may hinder."""

    what: str
    found: str
    problem: str = ""
    note: str = ""
