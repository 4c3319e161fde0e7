"""The terminal, as rich draws on it."""

from __future__ import annotations

from rich.console import Console


class Terminal(Console):
    """A Console that leaves a closed pipe to the command; rich's own ends the process with 1."""

    def on_broken_pipe(self) -> None:
        """Called while a BrokenPipeError is handled."""
        raise
