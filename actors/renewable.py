"""Groups whose processes can be started anew: what they hold follows from their arguments.

Of a process that is lost, or hangs, the calls that it had not answered are made again to the new
one. Each is a function of what it is given, so nobody sees a difference but the clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError
from tqdm import tqdm

from rayward.actors.budget import Budget
from rayward.actors.group import Group
from rayward.actors.pulse import ProcessLost, Unanswered

LOSSES = (ProcessLost, Unanswered, ObjectLostError)
"""What a call to a process raises that is gone or hangs. (An answer is lost with its host.)"""
SOON_S = 5.0
"""In which a process that is gone is known to be."""


@dataclass(frozen=True)
class _Asked:
    """A call that waits for its answer, and to which process it was made."""

    rank: int
    actor: Any
    method: str
    arguments: tuple[Any, ...]


class RenewableGroup(Group):
    """A group of which each process can be started anew, `cluster.retries` times within an hour.

    Raises what `Group` raises where there was one too many, or a new one does not come up.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.budget = Budget(self.cluster.retries)
        self.asked: dict[ray.ObjectRef, _Asked] = {}

    def begin(self, method: str, *arguments: Any) -> list[ray.ObjectRef]:
        """Start `method` on every actor."""
        return [self._ask(rank, method, arguments) for rank in range(len(self.actors))]

    def _ask(self, rank: int, method: str, arguments: tuple[Any, ...]) -> ray.ObjectRef:
        actor = self.actors[rank]
        call: ray.ObjectRef = getattr(actor, method).remote(*arguments)
        self.asked[call] = _Asked(rank, actor, method, arguments)
        return call

    def finish(self, calls: Sequence[ray.ObjectRef], timeout_s: float | None = None) -> list[Any]:
        """Results of `begin`, in rank order; what is lost meanwhile is started anew."""
        calls = list(calls)
        try:
            while True:
                # Of a process that was started anew since.
                calls = [self._again(call) for call in calls]
                try:
                    return super().finish(calls, timeout_s)
                except LOSSES as error:
                    if not all(call in self.asked for call in calls):
                        raise  # a call that is none of its work: of a start, say
                    self.renew(self._meant(error), error)
        finally:
            for call in calls:
                self.asked.pop(call, None)

    def _again(self, call: ray.ObjectRef) -> ray.ObjectRef:
        asked = self.asked.get(call)
        if asked is None or asked.actor is self.actors[asked.rank]:
            return call
        if _answered(call):
            return call
        del self.asked[call]
        return self._ask(asked.rank, asked.method, asked.arguments)

    def _meant(self, error: Exception) -> list[int]:
        """The ranks that an error is of."""
        ranks: list[int] = getattr(error, "ranks", [])
        if len(ranks) == 1 or isinstance(error, Unanswered):
            return ranks
        return self.gone() or list(range(len(self.actors)))

    def gone(self) -> list[int]:
        """The ranks whose processes do not live."""
        asked = [actor.__ray_call__.remote(_nothing) for actor in self.actors]
        # Those at work do not answer now, and they live.
        done, _ = ray.wait(asked, num_returns=len(asked), timeout=SOON_S)
        return [rank for rank, call in enumerate(asked) if call in done and not _answered(call)]

    def renew(self, ranks: Sequence[int], error: Exception) -> None:
        """Start these processes anew and wait for them. Raises `error` where the budget is used
        up, and what a start raises.
        """
        if not self.budget.take():
            raise error
        names = ", ".join(f"{self.name} {rank}" for rank in ranks)
        tqdm.write(
            f"   {error}\n   {names} started anew, and asked again "
            f"({len(self.budget.at)} of {self.budget.most} times within an hour, cluster.retries)"
        )
        for rank in ranks:
            self._end(rank)
            self.actors[rank] = self._start(rank)
        self.ready()


def lost_by_others(error: Exception) -> bool:
    """Whether it is what an actor raised that had asked another one, which is gone or late."""
    cause = error.cause if isinstance(error, RayTaskError) else None
    return isinstance(cause, (RayActorError, ObjectLostError, Unanswered))


def _nothing(_: Any) -> None:
    """Whoever answers lives."""


def _answered(call: ray.ObjectRef) -> bool:
    """Whether a call has its answer, which may be an error of its own."""
    done, _ = ray.wait([call], timeout=0)
    if not done:
        return False
    try:
        ray.get(call)
    except RayTaskError:
        return True
    except (RayActorError, ObjectLostError):
        return False
    return True
