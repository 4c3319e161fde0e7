"""Responses on their way from the rollout engines: parts of whole prompts, in the order in which
they are complete.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import ray
from ray.exceptions import OutOfMemoryError, RayActorError

from rayward.actors.pulse import Unanswered, Watch
from rayward.data.rollouts import Rollouts, concatenated, gather


class Generation:
    """Responses on their way: a part is complete as soon as every engine has sent its share."""

    def __init__(
        self,
        streams: Sequence[ray.ObjectRefGenerator],
        rows_of: dict[int, list[np.ndarray]],
        timeout_s: float,
        watch: Callable[[list[int]], Watch],
    ):
        """`streams`: what `RolloutEngine.generate` sends, of engine 0, 1, ...; `rows_of`: of each
        part, the rows of the request that every engine with a share in it has, in that order;
        `watch`: the signs of life of engines.
        """
        self.streams, self.rows_of, self.timeout_s = streams, rows_of, timeout_s
        self.watch = watch
        # Ray's streams are told apart by identity.
        self.engine_of = {id(stream): engine for engine, stream in enumerate(streams)}
        self.started_at = time.time()
        self.seconds = 0.0
        """What the slowest engine took, after `parts`."""

    def running(self) -> list[int]:
        """Numbers of the engines that are still at work on it."""
        ends = [stream.completed() for stream in self.streams]
        _, pending = ray.wait(ends, num_returns=len(ends), timeout=0)
        return [engine for engine, end in enumerate(ends) if end in pending]

    def parts(self) -> Iterator[tuple[int, Rollouts]]:
        """(number, responses) of each part, in the order in which they are complete.

        Raises Unanswered where no engine sends anything for `timeout_s` seconds, and what an
        engine raises.
        """
        shares: dict[int, dict[int, Rollouts]] = {part: {} for part in self.rows_of}
        running = list(self.streams)
        while running:
            # Ready is a stream whose next item exists; `ray.get` below brings it here.
            ready, _ = ray.wait(running, num_returns=1, timeout=self.timeout_s, fetch_local=False)
            if not ready:
                watch = self.watch([self.engine_of[id(stream)] for stream in running])
                if watch.moved(self.timeout_s):
                    continue
                raise Unanswered(
                    f"{watch.told()}: no answers for {self.timeout_s:.0f} s; if only slow, "
                    "raise cluster.call_timeout_s or generate fewer tokens"
                )
            stream = ready[0]
            try:
                part, payload = ray.get(next(stream))
            except StopIteration:
                running.remove(stream)
                continue
            except (RayActorError, OutOfMemoryError) as error:
                raise self.watch([self.engine_of[id(stream)]]).lost(error) from error
            if part < 0:  # the engine's last item: its seconds
                self.seconds = max(self.seconds, payload)
                continue
            shares[part][self.engine_of[id(stream)]] = payload
            if len(shares[part]) == len(self.rows_of[part]):
                # Popped: a part that was handed on is not kept.
                yield part, self._merged(part, shares.pop(part))

    def _merged(self, part: int, share_of: dict[int, Rollouts]) -> Rollouts:
        """The shares of a part in the order of the request, whatever engine had which row."""
        # By engine, as in `rows_of`, not by the order in which the shares came.
        shares = [share_of[engine] for engine in sorted(share_of)]
        return gather(shares, np.argsort(np.concatenate(self.rows_of[part])))

    def arrived(self) -> Arrived:
        """All parts, in the order in which they were complete; waits for them."""
        parts = list(self.parts())
        return Arrived(parts, self.started_at, self.seconds)

    def all(self) -> Rollouts:
        """Every response, in the order of the requests."""
        parts = dict(self.parts())
        return concatenated([parts[number] for number in sorted(parts)])


@dataclass
class Arrived:
    """A generation that has ended and waits to be taken: in the hands of a checkpoint, say."""

    known: list[tuple[int, Rollouts]]
    started_at: float
    seconds: float

    def running(self) -> list[int]:
        """No engine."""
        return []

    def parts(self) -> Iterator[tuple[int, Rollouts]]:
        """(number, responses) of each part."""
        return iter(self.known)

    def arrived(self) -> Arrived:
        return self
