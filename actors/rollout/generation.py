"""Responses on their way from the rollout engines: parts of whole prompts, in the order in which
they are complete.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError

from rayward.actors.pulse import Unanswered, Watch
from rayward.data.rollouts import Rollouts, concatenated, gather


@dataclass(eq=False)
class _Share:
    """What one engine was asked."""

    engine: ActorHandle
    rows: np.ndarray
    """Of the request, in its order."""
    stream: ray.ObjectRefGenerator


class Engines(Protocol):
    """Who answers: rollout engines, of which each can be asked for any rows of the request."""

    def ask(self, engine: ActorHandle, rows: np.ndarray) -> ray.ObjectRefGenerator:
        """What `RolloutEngine.generate` sends."""

    def renew(self, engines: list[ActorHandle], error: Exception) -> list[ActorHandle]:
        """Who answers in place of these, which are lost. Raises `error` where nobody does."""

    def numbers(self, engines: list[ActorHandle]) -> list[int]:
        """Their ranks."""

    def watch(self, engines: list[ActorHandle]) -> Watch:
        """Their signs of life."""


class Generation:
    """Responses on their way: a part is complete as soon as every engine has sent its share.

    What a lost engine had not sent is drawn again, with the same seeds.
    """

    def __init__(
        self,
        engines: Engines,
        rows_of: Sequence[tuple[ActorHandle, np.ndarray]],
        part_of: np.ndarray,
        timeout_s: float,
    ):
        """`rows_of`: the rows of the request that each engine is asked for; `part_of`: the part
        that each row comes with.
        """
        self.engines, self.part_of, self.timeout_s = engines, part_of, timeout_s
        self.shares = [_Share(engine, rows, engines.ask(engine, rows)) for engine, rows in rows_of]
        self.arrived_rows: dict[int, list[tuple[np.ndarray, Rollouts]]] = {
            part: [] for part in dict.fromkeys(part_of.tolist())
        }
        self.known = np.zeros(len(part_of), bool)
        self.started_at = time.time()
        self.seconds = 0.0
        """What the slowest engine took, after `parts`."""

    def running(self) -> list[int]:
        """Numbers of the engines that are still at work on it."""
        ends = [share.stream.completed() for share in self.shares]
        _, pending = ray.wait(ends, num_returns=len(ends), timeout=0)
        ended = zip(self.shares, ends, strict=True)
        return self.engines.numbers([share.engine for share, end in ended if end in pending])

    def parts(self) -> Iterator[tuple[int, Rollouts]]:
        """(number, responses) of each part, in the order in which they are complete.

        Raises Unanswered where no engine sends anything for `timeout_s` seconds, ProcessLost where
        one is gone and nobody takes its place, and what an engine raises.
        """
        running = list(self.shares)
        while running:
            # Ready is a stream whose next item exists; `ray.get` below brings it here.
            streams = [share.stream for share in running]
            ready, _ = ray.wait(streams, num_returns=1, timeout=self.timeout_s, fetch_local=False)
            if not ready:
                watch = self.engines.watch([share.engine for share in running])
                if watch.moved(self.timeout_s):
                    continue
                late = Unanswered(
                    f"{watch.told()}: no answers for {self.timeout_s:.0f} s; if only slow, "
                    "raise cluster.call_timeout_s or generate fewer tokens"
                )
                running = self._again(running, late)
                continue
            # Ray's streams are told apart by identity.
            share = next(share for share in running if share.stream is ready[0])
            try:
                part, payload = ray.get(next(share.stream))
            except StopIteration:
                running.remove(share)
                continue
            except (RayActorError, OutOfMemoryError, ObjectLostError) as error:
                running.remove(share)
                running += self._again([share], self._named(share, error))
                continue
            if part < 0:  # the engine's last item: its seconds
                self.seconds = max(self.seconds, payload)
                continue
            rows, arrived = share.rows[self.part_of[share.rows] == part], self.arrived_rows[part]
            if self.known[rows].all():
                continue  # of an engine that was lost after it had sent this
            arrived.append((rows, payload))
            self.known[rows] = True
            if self.known[self.part_of == part].all():
                yield part, _merged(arrived)
                arrived.clear()  # a part that was handed on is not kept

    def _named(self, share: _Share, error: Exception) -> Exception:
        lost = self.engines.watch([share.engine]).lost(error)
        lost.__cause__ = error
        return lost

    def _again(self, lost: list[_Share], error: Exception) -> list[_Share]:
        """Ask anew for what these shares have not brought; the shares in their place.

        All rows of a share, and not only the missing ones: on some processors the last bits of
        log-probs depend on the batch.
        """
        engines = self.engines.renew([share.engine for share in lost], error)
        new = []
        for share, engine in zip(lost, engines, strict=True):
            self.shares.remove(share)
            if not self.known[share.rows].all():
                new.append(_Share(engine, share.rows, self.engines.ask(engine, share.rows)))
        self.shares += new
        return new

    def arrived(self) -> Arrived:
        """All parts, in the order in which they were complete; waits for them."""
        parts = list(self.parts())
        return Arrived(parts, self.started_at, self.seconds)

    def all(self) -> Rollouts:
        """Every response, in the order of the requests."""
        parts = dict(self.parts())
        return concatenated([parts[number] for number in sorted(parts)])


def _merged(shares: list[tuple[np.ndarray, Rollouts]]) -> Rollouts:
    """The shares of a part in the order of the request, whatever engine had which row."""
    rows = np.concatenate([rows for rows, _ in shares])
    return gather([rollouts for _, rollouts in shares], np.argsort(rows))


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
