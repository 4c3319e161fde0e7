"""A process that is lost or hangs is started anew, and nobody sees it but by the clock."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from rayward.actors import pulse
from rayward.actors.budget import WINDOW_S, Budget
from rayward.actors.group import Group
from rayward.actors.pulse import ProcessLost
from rayward.actors.renewable import RenewableGroup, lost_by_others
from rayward.configs.sections.machines import Cluster, Role

pytestmark = pytest.mark.timeout(200)


class Worker:
    def __init__(self, start: int, rank: int) -> None:
        self.start, self.rank = start, rank

    def pid(self) -> int:
        return os.getpid()

    def add(self, number: int, seconds: float = 0.0) -> tuple[int, int]:
        time.sleep(seconds)
        return self.rank, self.start + number

    def refuse(self) -> None:
        raise ValueError("not this")


class Asker:
    """An actor that asks another one, as the policy does."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def pid_of(self, other: ray.actor.ActorHandle) -> int:
        answer: int = ray.get(other.pid.remote())
        return answer


@pytest.fixture(scope="module")
def group(local_ray: None) -> Iterator[RenewableGroup]:
    cluster = Cluster(call_timeout_s=4, retries=2)
    made = RenewableGroup("worker", Worker, Role(workers=2, cpus=0.01), cluster, (10,))
    made.ready()
    yield made
    made.stop()


def test_calls_of_a_killed_process_are_made_again(
    group: RenewableGroup, capfd: pytest.CaptureFixture[str]
) -> None:
    pids = group.call("pid")
    calls = group.begin("add", 1, 2.0)
    later = group.begin("add", 2)
    os.kill(pids[1], signal.SIGKILL)
    assert group.finish(calls) == [(0, 11), (1, 11)]
    # Asked of the old one too, before anybody knew.
    assert group.finish(later) == [(0, 12), (1, 12)]
    after = group.call("pid")
    assert after[0] == pids[0] and after[1] != pids[1]
    said = capfd.readouterr().out
    assert "worker 1 died without a word" in said
    assert "worker 1 started anew, and asked again (1 of 2 times within an hour" in said
    assert not group.asked, "nothing is remembered of what is answered"


def test_one_that_hangs_is_ended(group: RenewableGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "SILENT_S", 3.0)
    pids = group.call("pid")
    os.kill(pids[0], signal.SIGSTOP)
    assert group.call("add", 5) == [(0, 15), (1, 15)]
    assert group.call("pid")[0] != pids[0] and group.call("pid")[1] == pids[1]
    assert not Path(f"/proc/{pids[0]}").exists()


def test_whom_an_actor_asked_in_vain_is_not_taken_for_that_actor(group: RenewableGroup) -> None:
    """And what is lost too often is told; an error of the work itself is not repeated."""
    with pytest.raises(ValueError, match="not this"):
        group.call("refuse")
    group.budget.at = [time.monotonic()] * 2
    askers = Group("policy", Asker, Role(cpus=0.01), Cluster(), ())
    askers.ready()
    (pid,) = askers.call("pid_of", group.actors[0])
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        askers.call("pid_of", group.actors[0])
    assert lost_by_others(caught.value) and not lost_by_others(ValueError())
    assert group.gone() == [group.actors[0]]
    with pytest.raises(ProcessLost, match="worker 0 died"):
        group.call("add", 1)
    askers.stop()


def test_an_hour_later_it_may_happen_again() -> None:
    budget = Budget(2)
    assert [budget.take() for _ in range(3)] == [True, True, False]
    budget.at = [at - WINDOW_S - 1 for at in budget.at]
    assert budget.take()
