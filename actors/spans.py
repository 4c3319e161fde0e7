"""When an actor worked on what: the material of timelines and of a role's idle seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rayward.actors.pulse import tick

Span = tuple[str, float, float]
"""Name, start and end, in seconds since the epoch by the clock of the machine."""


class Timed:
    """Remembers what it did and when; whoever asks takes the memory along."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Everything under it is work called `name`."""
        # Not the monotonic clock: spans of several processes stand on one timeline.
        started_at = time.time()
        tick()
        try:
            yield
        finally:
            tick()
            self.spans.append((name, started_at, time.time()))

    def take_spans(self) -> list[Span]:
        """What was done since the last time."""
        spans, self.spans = self.spans, []
        return spans
