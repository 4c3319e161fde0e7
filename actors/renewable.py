"""Groups whose processes can be started anew: what they hold follows from their arguments.

Of a process that is lost, or hangs, the calls that it had not answered are made again to the new
one. Each is a function of what it is given, so nobody sees a difference but the clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError
from tqdm import tqdm

from rayward.actors import pulse
from rayward.actors.budget import Budget
from rayward.actors.calls import kill, wait_for
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
        self.number_of: dict[str, int] = {}
        """By the id of an actor, its rank; of those that are gone too."""
        super().__init__(*arguments, **named)
        self.budget = Budget(self.cluster.retries)
        self.asked: dict[ray.ObjectRef, _Asked] = {}
        self.heirs: dict[str, ActorHandle | None] = {}
        """By the id of an actor that is gone, who stands in its place; None: nobody."""
        self.repeated: dict[ray.ObjectRef, ray.ObjectRef] = {}
        """By a call that a lost process had not answered, the one in its place."""
        self.waiting: list[_Waiting] = []
        self.found_seats: list[Any] = []
        """On hosts that were looked for in place of others."""
        for seat in later:
            self._wait_on(seat)

    def _start_on(self, seat: Any, rank: int) -> ActorHandle:
        actor = super()._start_on(seat, rank)
        self.number_of[_id(actor)] = rank
        return actor

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
                    if not all(call in self.asked or _answered(call) for call in calls):
                        raise  # a call that is none of its work: of a start, say
                    self.renew(self._meant(error, calls), error)
        finally:
            for call in calls:
                self.asked.pop(call, None)

    def _again(self, call: ray.ObjectRef) -> ray.ObjectRef | None:
        while call in self.repeated:
            call = self.repeated[call]
        asked = self.asked.get(call)
        if asked is None or _id(asked.actor) not in self.heirs or _answered(call):
            return call
        del self.asked[call]
        heir = self.heir(asked.actor)
        if heir is None:
            return None
        # Whoever has the old call may come with it once more.
        self.repeated[call] = self.ask(heir, asked.method, asked.arguments)
        return self.repeated[call]

    def heir(self, actor: ActorHandle) -> ActorHandle | None:
        """Who stands in the place of an actor now."""
        found: ActorHandle | None = actor
        while found is not None and _id(found) in self.heirs:
            found = self.heirs[_id(found)]
        return found

    def _meant(self, error: Exception, calls: Sequence[ray.ObjectRef]) -> list[ActorHandle]:
        """The actors that an error is of, and that live on in nobody yet."""
        asked = [self.asked[call].actor for call in calls if call in self.asked]
        if isinstance(error, Unanswered):
            return [self.asked[calls[number]].actor for number in error.ranks]
        key = getattr(error.__cause__, "actor_id", None)
        if key in self.heirs:
            return []
        return [actor for actor in asked if _id(actor) == key] or self.gone() or asked

    def watch_calls(self, calls: Sequence[ray.ObjectRef], numbers: Iterable[int]) -> pulse.Watch:
        """Of those who were asked, who may be gone."""
        if not all(call in self.asked for call in calls):
            return super().watch_calls(calls, numbers)
        return self.watch_actors([self.asked[call].actor for call in calls])

    def watch_actors(self, actors: Iterable[ActorHandle]) -> pulse.Watch:
        """The signs of life of actors, of which some may be gone."""
        keys = map(_id, actors)
        return pulse.Watch({f"{self.name} {self.number_of.get(key, '')}": key for key in keys})

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
        asked = lost = [actor for actor in dict.fromkeys(lost) if actor in self.actors]
        if not lost:
            return []
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
            new = [heir for actor in lost if (heir := self.heir(actor))]
            try:
                # For these alone: others are at work.
                self._wait_for(new)
            except RayActorError as again:
                # A host was lost, which Ray may notice only now, with what was to start there.
                lost = [actor for actor in self.gone() if actor in new]
                broken = getattr(again, "actor_init_failed", False)
                if broken or not lost or not self.budget.take():
                    raise
            else:
                return [heir for actor in asked if (heir := self.heir(actor))]

    def _wait_for(self, new: Sequence[ActorHandle]) -> None:
        limit = self.cluster.start_timeout_s

        def too_late(late: list[int]) -> Exception:
            return Unanswered(
                f"{self.name}: {len(late)} of those started anew are not up within {limit:.0f} s; "
                "if only slow, raise cluster.start_timeout_s"
            )

        wait_for([actor.__ray_ready__.remote() for actor in new], limit, too_late)

    def _replace(self, actor: ActorHandle, error: Exception) -> None:
        """Start another in its place, on another host where that is gone; or go on without where
        there is no room for it now. Raises `error` where the group may not.
        """
        rank = self.actors.index(actor)
        if not has_place(self.seats[rank], NO_ROOM_S):
            self._leave(self.seats[rank])
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
            try:
                ray.get(one.up)
            except RayActorError as error:
                tqdm.write(f"   {self.name} did not come up where there is room: {error}")
                broken = getattr(error, "actor_init_failed", False)
                if not broken and self.budget.take():
                    self._wait_on(one.seat)
                continue
            self.actors.append(one.actor)
            self.seats.append(one.seat)
            self.number_of[_id(one.actor)] = len(self.actors) - 1
            found += 1
        if found:
            tqdm.write(f"   there is room for {found} more: {self.name} has {len(self.actors)} now")
        return found

    def _leave(self, seat: Any) -> None:
        """Give a place back that was looked for, and lost."""
        if any(seat is one for one in self.found_seats):
            self.found_seats = [one for one in self.found_seats if one is not seat]
            leave(seat)

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
