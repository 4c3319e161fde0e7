"""How often something may go wrong before it is no accident."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

WINDOW_S = 3600.0


@dataclass
class Budget:
    """At most so many within an hour."""

    most: int
    at: list[float] = field(default_factory=list)
    """When there was one, on the clock of time.monotonic."""

    def take(self) -> bool:
        """Whether there is one more; it is used up then."""
        now = time.monotonic()
        self.at = [one for one in self.at if now - one < WINDOW_S]
        if len(self.at) >= self.most:
            return False
        self.at.append(now)
        return True
