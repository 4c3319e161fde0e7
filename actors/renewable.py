"""Groups whose processes can be started anew: what they hold follows from their arguments.

Of a process that is lost, or hangs, the calls that it had not answered are made again to the new
one. Each is a function of what it is given, so nobody sees a difference but the clock.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError
from tqdm import tqdm

from rayward.actors.budget import Budget
from rayward.actors.calls import kill
from rayward.actors.group import Group
from rayward.actors.pulse import ProcessLost, Unanswered
from rayward.cluster.placement import another_seat, has_place, leave
from rayward.cluster.planning import fewest

LOSSES = (ProcessLost, Unanswered, ObjectLostError)
"""What a call to a process raises that is gone or hangs. (An answer is lost with its host.)"""
SOON_S = 5.0
"""In which a process that is gone is known to be."""
NO_ROOM_S = 10.0
"""After which a place that was lost with its host is not waited for."""
MOMENT_S = 1.0
"""Ray tells of an actor's end before it looks at the places of its host."""


@dataclass(frozen=True)
class _Waiting:
    """A process for which there was no room. `up`: a call that ends when it lives."""

    seat: Any
    actor: ActorHandle
    up: ray.ObjectRef


@dataclass(frozen=True)
class _Asked:
    """A call that waits for its answer, and to which process it was made."""

    actor: ActorHandle
    method: str
    arguments: tuple[Any, ...]


class RenewableGroup(Group):
    """A group of which each process can be started anew, `cluster.retries` times within an hour.

    Where its role may have fewer (workers {min, max}), it goes on without those for which there is
    no room, until `take_back`. Raises what `Group` raises where there was one loss too many, or a
    new process does not come up.
    """

    def __init__(self, *arguments: Any, later: Sequence[Any] = (), **named: Any) -> None:
        """`later`: where further processes will stand, once there is room (`Placement.later`)."""
        super().__init__(*arguments, **named)
        self.budget = Budget(self.cluster.retries)
        self.asked: dict[ray.ObjectRef, _Asked] = {}
        self.heirs: dict[str, ActorHandle | None] = {}
        """By the id of an actor that is gone, who stands in its place; None: nobody."""
        self.waiting: list[_Waiting] = []
        self.found_seats: list[Any] = []
        """On hosts that were looked for in place of others."""
        for seat in later:
            self._wait_on(seat)

    def begin(self, method: str, *arguments: Any) -> list[ray.ObjectRef]:
        """Start `method` on every actor."""
        return [self.ask(actor, method, arguments) for actor in self.actors]

    def ask(self, actor: ActorHandle, method: str, arguments: tuple[Any, ...]) -> ray.ObjectRef:
        """Start `method` on one actor."""
        call: ray.ObjectRef = getattr(actor, method).remote(*arguments)
        self.asked[call] = _Asked(actor, method, arguments)
        return call

    def finish(self, calls: Sequence[ray.ObjectRef], timeout_s: float | None = None) -> list[Any]:
        """Results of `begin`, in rank order; what is lost meanwhile is started anew. Of one that
        nobody stands in for there is none.
        """
        calls = list(calls)
        try:
            while True:
                # Of a process that was started anew since.
                calls = [call for one in calls if (call := self._again(one)) is not None]
                try:
                    return super().finish(calls, timeout_s)
                except LOSSES as error:
                    if not all(call in self.asked for call in calls):
                        raise  # a call that is none of its work: of a start, say
                    self.renew(self._meant(error, calls), error)
        finally:
            for call in calls:
                self.asked.pop(call, None)

    def _again(self, call: ray.ObjectRef) -> ray.ObjectRef | None:
        asked = self.asked.get(call)
        if asked is None or _id(asked.actor) not in self.heirs or _answered(call):
            return call
        del self.asked[call]
        heir = self.heir(asked.actor)
        return self.ask(heir, asked.method, asked.arguments) if heir else None

    def heir(self, actor: ActorHandle) -> ActorHandle | None:
        """Who stands in the place of an actor now."""
        found: ActorHandle | None = actor
        while found is not None and _id(found) in self.heirs:
            found = self.heirs[_id(found)]
        return found

    def _meant(self, error: Exception, calls: Sequence[ray.ObjectRef]) -> list[ActorHandle]:
        """The actors that an error is of."""
        ranks: list[int] = getattr(error, "ranks", [])
        if isinstance(error, Unanswered):  # of the calls
            return [self.asked[calls[number]].actor for number in ranks]
        if len(ranks) == 1:
            return [self.actors[ranks[0]]]
        return self.gone() or list(self.actors)

    def gone(self) -> list[ActorHandle]:
        """The actors that do not live."""
        asked = [actor.__ray_call__.remote(_nothing) for actor in self.actors]
        # Those at work do not answer now, and they live.
        done, _ = ray.wait(asked, num_returns=len(asked), timeout=SOON_S)
        return [
            actor
            for actor, call in zip(self.actors, asked, strict=True)
            if call in done and not _answered(call)
        ]

    def renew(self, lost: Sequence[ActorHandle], error: Exception) -> list[ActorHandle]:
        """Start processes anew and wait for them; the new ones, without those for which there is no
        room.

        Raises `error` where the budget is used up, and what a start raises.
        """
        asked = lost = [actor for actor in lost if actor in self.actors]
        if not self.budget.take():
            raise error
        ranks = [self.actors.index(actor) for actor in lost]
        names = ", ".join(f"{self.name} {rank}" for rank in ranks)
        tqdm.write(
            f"   {error}\n   {names} started anew, and asked again "
            f"({len(self.budget.at)} of {self.budget.most} times within an hour, cluster.retries)"
        )
        while True:
            for actor in lost:
                self._end(self.actors.index(actor))
            time.sleep(MOMENT_S)
            for actor in lost:
                self._replace(actor, error)
            try:
                self.ready()
            except RayActorError as again:
                # A host was lost, which Ray may notice only now, with what was to start there.
                lost = self.gone()
                broken = getattr(again, "actor_init_failed", False)
                if broken or not lost or not self.budget.take():
                    raise
            else:
                return [heir for actor in asked if (heir := self.heir(actor))]

    def _replace(self, actor: ActorHandle, error: Exception) -> None:
        """Start another in its place, on another host where that is gone; or go on without where
        there is no room for it now. Raises `error` where the group may not.
        """
        rank = self.actors.index(actor)
        if not has_place(self.seats[rank], NO_ROOM_S):
            self.seats[rank] = another_seat(self.role)
            self.found_seats.append(self.seats[rank])
        if has_place(self.seats[rank], NO_ROOM_S):
            self.actors[rank] = self.heirs[_id(actor)] = self._start(rank)
            return
        if len(self.actors) <= fewest(self.role):
            raise error
        tqdm.write(
            f"   there is no room for {self.name} {rank}: goes on with {len(self.actors) - 1} "
            "until there is"
        )
        self.actors.pop(rank)
        self.heirs[_id(actor)] = None
        self._wait_on(self.seats.pop(rank))

    def _wait_on(self, seat: Any) -> None:
        actor = self._start_on(seat, len(self.actors) + len(self.waiting))
        self.waiting.append(_Waiting(seat, actor, actor.__ray_call__.remote(_nothing)))

    def take_back(self) -> int:
        """Let those join for which there is room by now, and which are up; how many."""
        found = 0
        for one in list(self.waiting):
            if not ray.wait([one.up], timeout=0)[0]:
                continue
            self.waiting.remove(one)
            if not _answered(one.up):  # it came up, and was lost again
                self._wait_on(one.seat)
                continue
            self.actors.append(one.actor)
            self.seats.append(one.seat)
            found += 1
        if found:
            tqdm.write(f"   there is room for {found} more: {self.name} has {len(self.actors)} now")
        return found

    def stop(self) -> None:
        """End the processes and give their resources back."""
        for one in self.waiting:
            kill(one.actor)
        self.waiting = []
        super().stop()
        for seat in self.found_seats:
            leave(seat)


def lost_by_others(error: Exception) -> bool:
    """Whether it is what an actor raised that had asked another one, which is gone or late."""
    cause = error.cause if isinstance(error, RayTaskError) else None
    return isinstance(cause, (RayActorError, ObjectLostError, Unanswered))


def _id(actor: ActorHandle) -> str:
    return str(actor._actor_id.hex())


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
