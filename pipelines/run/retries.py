"""Going on by itself after a process or a host was lost, from what the stage has kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from rayward.pipelines.run.errors import explain, of_infrastructure

T = TypeVar("T")
WINDOW_S = 3600.0


@dataclass
class Retries:
    """At most so many within an hour, over all stages of a command."""

    most: int
    at: list[float] = field(default_factory=list)
    """When there was one, on the clock of time.monotonic."""

    def run(self, title: str, work: Callable[[], T]) -> T:
        """What `work` returns, which is called again where it is worth it. Raises what it raises
        elsewhere.
        """
        while True:
            try:
                return work()
            except Exception as error:
                if not of_infrastructure(error):
                    raise
                now = time.monotonic()
                self.at = [one for one in self.at if now - one < WINDOW_S]
                if len(self.at) >= self.most:
                    raise
                self.at.append(now)
                print(
                    f"   {title} lost a process: {_short(error)}\n"
                    f"   goes on from what is kept ({len(self.at)} of {self.most} times within an "
                    "hour, cluster.retries)",
                    flush=True,
                )


def _short(error: Exception) -> str:
    return explain(error).split("\n")[0][:300]
