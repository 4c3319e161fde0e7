"""`rayward data`: convert, stats and check: what is in data files, and from one format to another."""

from __future__ import annotations

from typing import Any


def add(actions: Any) -> None:
    """Declare the commands."""
