"""Answers on their way from the rollout engines: parts of whole prompts, in the order in which they
are complete.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray

from rayward.data.rollouts import Rollouts, concatenated, gather


class Generation:
    """Answers on their way: parts of whole prompts, each as soon as every engine has sent its
    share.
    """

    def __init__(self, streams: list[Any], rows_of: dict[int, list[np.ndarray]], timeout_s: float):
        self.streams, self.rows_of, self.timeout_s = streams, rows_of, timeout_s
        self.number = {id(stream): number for number, stream in enumerate(streams)}
        # The latter: of the slowest engine, after `parts`.
        self.begun, self.seconds = time.time(), 0.0

    def running(self) -> list[int]:
        """Numbers of the engines that are still at work on it."""
        ends = [stream.completed() for stream in self.streams]
        at_work = ray.wait(ends, num_returns=len(ends), timeout=0)[1]
        return [number for number, end in enumerate(ends) if end in at_work]

    def parts(self) -> Iterator[tuple[int, Rollouts]]:
        """(number, answers) of each part, in the order in which they are complete.

        Raises TimeoutError where no engine sends anything for `timeout_s` seconds, and what an
        engine raises.
        """
        shares: dict[int, dict[int, Rollouts]] = {part: {} for part in self.rows_of}
        running = list(self.streams)
        while running:
            ready, _ = ray.wait(running, num_returns=1, timeout=self.timeout_s, fetch_local=False)
            if not ready:
                late = ", ".join(str(self.number[id(stream)]) for stream in running)
                raise TimeoutError(
                    f"rollout {late} sent no answers for {self.timeout_s:.0f} s; if only slow, "
                    "raise cluster.call_timeout_s or generate fewer tokens"
                )
            try:
                part, rollouts = ray.get(next(ready[0]))
            except StopIteration:
                running.remove(ready[0])
                continue
            if part < 0:
                self.seconds = max(self.seconds, rollouts)
                continue
            shares[part][self.number[id(ready[0])]] = rollouts
            if len(shares[part]) == len(self.rows_of[part]):
                own = shares.pop(part)
                yield (
                    part,
                    gather(
                        [own[engine] for engine in sorted(own)],
                        np.argsort(np.concatenate(self.rows_of[part])),
                    ),
                )

    def all(self) -> Rollouts:
        """Every answer, in the order of the requests."""
        found = dict(self.parts())
        return concatenated([found[part] for part in sorted(found)])
