"""Groups of actors of one role: where they are placed, and calling all of them with a deadline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from rayward.actors import pulse
from rayward.actors.calls import kill, wait_for
from rayward.actors.critic import Critic
from rayward.actors.policy import Policy
from rayward.actors.pulse import Unanswered
from rayward.cluster.hosts import own_address, several
from rayward.cluster.placement import Placement
from rayward.configs.schema import Config
from rayward.configs.sections.machines import Cluster, Role


class Group:
    """Actors of one role."""

    def __init__(
        self,
        name: str,
        cls: type,
        role: Role,
        cluster: Cluster,
        arguments: tuple[Any, ...],
        seats: Sequence[Any] | None = None,
    ):
        """Starts `role.workers` actors of a plain class, each with `arguments` and its rank.

        Does not wait for them (`ready`), but for their places where it is given none. `seats`:
        Ray's scheduling strategy for each rank (`Placement.seats`).
        """
        self.name, self.role, self.cluster = name, role, cluster
        # Places of the group's own, which end with it; those of a stage are the stage's.
        self.own = None if seats else Placement({name: role}, cluster)
        seats = self.own.seats(name) if self.own else seats
        assert seats is not None
        threads = str(role.compute_threads)
        # Read by OpenMP and MKL when they are loaded, so the process starts with them. Ray would
        # set the first to the number of CPUs, and here shares of CPUs are reserved.
        environment = {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
        }
        remote = ray.remote(
            num_cpus=role.cpus, num_gpus=role.gpus, runtime_env={"env_vars": environment}
        )(cls)
        self.seats, self.make = (
            list(seats),
            lambda seat, rank: remote.options(scheduling_strategy=seat).remote(*arguments, rank),
        )
        try:
            self.actors = [self._start(rank) for rank in range(len(self.seats))]
        except BaseException:  # of arguments that cannot be sent
            if self.own:
                self.own.remove()
            raise

    def _start(self, rank: int) -> ActorHandle:
        return self._start_on(self.seats[rank], rank)

    def _start_on(self, seat: Any, rank: int) -> ActorHandle:
        actor = self.make(seat, rank)
        actor.__ray_call__.remote(pulse.start)  # as soon as its constructor is through
        return actor

    def begin(self, method: str, *arguments: Any) -> list[ray.ObjectRef]:
        """Start `method` on every actor."""
        return [getattr(actor, method).remote(*arguments) for actor in self.actors]

    def finish(self, calls: Sequence[ray.ObjectRef], timeout_s: float | None = None) -> list[Any]:
        """Results of `begin`, in rank order; `timeout_s` None: cluster.call_timeout_s.

        A call may take longer while its process is seen to work. Raises TimeoutError that names the
        late ranks and where they are, or the first error of a rank.
        """
        limit = timeout_s or self.cluster.call_timeout_s
        is_start = timeout_s == self.cluster.start_timeout_s
        setting = "start_timeout_s" if is_start else "call_timeout_s"

        def asked(numbers: Iterable[int]) -> pulse.Watch:
            return self.watch_calls([calls[number] for number in numbers], numbers)

        def too_late(ranks: list[int]) -> TimeoutError:
            if is_start:
                late = ", ".join(map(str, ranks))
                return TimeoutError(
                    f"{self.name} {late} did not answer within {limit:.0f} s; if only slow, raise "
                    f"cluster.{setting}"
                )
            return Unanswered(
                f"{asked(ranks).told()}: no answer within {limit:.0f} s; if only slow, raise "
                f"cluster.{setting}",
                ranks,
            )

        def moved(ranks: list[int]) -> bool:
            return not is_start and asked(ranks).moved(limit)

        try:
            return wait_for(calls, limit, too_late, moved)
        except (RayActorError, OutOfMemoryError) as error:
            # Of an actor that ours had asked something (the policy of an engine), it is theirs.
            of_others = isinstance(error, RayTaskError)
            if is_start or of_others or getattr(error, "actor_init_failed", False):
                raise
            raise asked(range(len(calls))).lost(error) from error

    def watch(self, ranks: Iterable[int]) -> pulse.Watch:
        """The signs of life of these ranks."""
        ids = {f"{self.name} {rank}": self.actors[rank]._actor_id.hex() for rank in ranks}
        return pulse.Watch(ids)

    def watch_calls(self, calls: Sequence[ray.ObjectRef], numbers: Iterable[int]) -> pulse.Watch:
        """Of those who were asked, by the `numbers` of the calls."""
        return self.watch(number % len(self.actors) for number in numbers)

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """`begin` and `finish`."""
        return self.finish(self.begin(method, *arguments))

    def ready(self) -> None:
        """Wait until every actor is up. Raises TimeoutError, or what its constructor raised."""
        self.finish(
            [actor.__ray_ready__.remote() for actor in self.actors], self.cluster.start_timeout_s
        )

    def stop(self) -> None:
        """End the processes and give their resources back."""
        for rank in range(len(self.actors)):
            self._end(rank)
        if self.own:
            self.own.remove()

    def _end(self, rank: int) -> None:
        # Killed, not asked: an actor that waits in a collective would never come to an answer.
        kill(self.actors[rank])
        pulse.forget(self.actors[rank]._actor_id.hex())

    def addresses(self) -> list[str]:
        """The host of each rank, as the actor itself says."""
        calls = [actor.__ray_call__.remote(own_address) for actor in self.actors]
        return [str(address) for address in self.finish(calls)]


def tell_hosts(groups: Sequence[Group]) -> None:
    """Print who stands where, on a cluster of several hosts. All must be up."""
    if several():
        for group in groups:
            print(f"   {group.name} on {', '.join(group.addresses())}", flush=True)


@contextmanager
def running(*groups: Group) -> Iterator[None]:
    """Wait until all actors are up; end them with the block, or where one does not come up."""
    try:
        for group in groups:
            group.ready()
        tell_hosts(groups)
        yield
    finally:
        for group in groups:
            group.stop()


class TrainingGroup(Group):
    """A group whose processes train one model together."""

    def begin_start(self) -> list[ray.ObjectRef]:
        """Let the ranks find each other and load; wait with `finish`."""
        # Rank 0 alone first: the others need the port that it was given.
        host, port = self.finish([self.actors[0].open.remote()], self.cluster.start_timeout_s)[0]
        return self.begin("start", host, port)


def policy_group(
    folder: str, config: Config, algorithm: str, seats: Sequence[Any] | None = None
) -> TrainingGroup:
    """The ranks of the policy, which starts from the model of a folder."""
    role, arguments = config.resources.policy, (folder, config, algorithm)
    return TrainingGroup("policy", Policy, role, config.cluster, arguments, seats)


def critic_group(
    folder: str, config: Config, seats: Sequence[Any] | None = None, new_head: bool = False
) -> TrainingGroup:
    """The ranks of the critic, which starts from a reward model, or with a new head."""
    role, arguments = config.resources.critic, (folder, new_head, config)
    return TrainingGroup("critic", Critic, role, config.cluster, arguments, seats)
