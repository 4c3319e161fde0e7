"""`rayward data`: ShareGPT pages to conversations."""

from __future__ import annotations

from typing import Any


def add(actions: Any) -> None:
    """Declare the commands."""
