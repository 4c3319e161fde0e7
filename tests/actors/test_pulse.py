"""What works is waited for, however long; what hangs is named, with its place."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import suppress

import pytest

from rayward.actors import pulse
from rayward.actors.group import Group
from rayward.actors.pulse import ProcessLost, Unanswered, tick
from rayward.configs.sections.machines import Cluster, Role
from rayward.pipelines.run.errors import explain, of_infrastructure

pytestmark = pytest.mark.timeout(200)


class Worker:
    def __init__(self, rank: int) -> None:
        self.rank = rank

    def pid(self) -> int:
        return os.getpid()

    def work(self, seconds: float) -> int:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.1)
            tick()
        return self.rank

    def hang(self, seconds: float, who: int) -> int:
        if self.rank == who:
            time.sleep(seconds)
        return self.rank


@pytest.fixture(scope="module")
def group(local_ray: None):
    made = Group("worker", Worker, Role(workers=2, cpus=0.01), Cluster(call_timeout_s=3), ())
    made.ready()
    made.call("pid")
    yield made
    made.stop()


def test_what_works_is_waited_for_and_what_hangs_is_named(group: Group) -> None:
    started_at = time.monotonic()
    assert group.call("work", 8.0) == [0, 1] and time.monotonic() - started_at > 7
    with pytest.raises(Unanswered) as caught:
        group.call("hang", 20.0, 1)
    said = str(caught.value)
    assert "worker 1 has not moved for " in said and "worker 0" not in said
    assert "in hang (test_pulse.py:" in said and "raise cluster.call_timeout_s" in said


def test_a_process_that_dies_is_named_with_its_memory(local_ray: None) -> None:
    made = Group("policy", Worker, Role(workers=2, cpus=0.01), Cluster(), ())
    made.ready()
    pids = made.call("pid")
    time.sleep(pulse.EVERY_S + 1)
    calls = made.begin("work", 30.0)
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(ProcessLost) as caught:
        made.finish(calls)
    assert re.fullmatch(
        r"policy 1 died without a word: killed, or by the kernel for want of memory; it had used "
        r"up to \d\.\d GiB \(less memory: rl.optimizer.micro_batch_tokens, .*\)",
        str(caught.value),
    )
    assert of_infrastructure(caught.value) and explain(caught.value) == str(caught.value)
    made.stop()


def test_a_process_that_is_stopped_is_silent(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "SILENT_S", 5.0)
    pids: list[int] = []
    while not pids:  # one may still be in the test before
        with suppress(Unanswered):
            pids = group.call("pid")
    time.sleep(pulse.EVERY_S + 1)
    os.kill(pids[0], signal.SIGSTOP)
    with pytest.raises(Unanswered, match=r"worker 0 has been silent for \d+ s, when it was in "):
        group.call("work", 1.0)
