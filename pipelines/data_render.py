"""`rayward data`: show a conversation in a chat template, the trained part marked."""

from __future__ import annotations

from typing import Any


def add(actions: Any) -> None:
    """Declare the commands."""
