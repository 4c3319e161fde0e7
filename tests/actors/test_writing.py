"""A checkpoint that two ranks write beside the training: whole, or nothing of it counts."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from rayward.actors.beside import beside
from rayward.actors.checkpoints import Checkpoints
from rayward.actors.group import TrainingGroup
from rayward.actors.process import Rendezvous
from rayward.actors.training.writing import Writing
from rayward.configs.sections.machines import Role


class Rank:
    def __init__(self, world_size, rank):
        self.rendezvous = Rendezvous(rank, world_size, timeout_s=60)

    def open(self):
        return self.rendezvous.open()

    def start(self, host, port):
        self.context = self.rendezvous.join(host, port, 0)

    def begin(self, folder, step, fails=None):
        """One whose large file is written when `write` says so."""
        rank, self.made = self.context.rank, Checkpoints(folder)
        if rank == 0:
            self.made.new(step)
        self.writing = Writing(step, rank, self.context.world_size, self.made.writing(step))
        self.may = threading.Event()

        def write():
            self.may.wait()
            if rank == fails:
                raise OSError("No space left on device")
            (self.writing.folder / f"weights-{rank}.pt").write_text(f"{step}")

        self.writing.part = beside(write)
        self.writing.begin(lambda: self.made.complete(step, {}))

    def write(self):
        self.may.set()

    def ended(self, wait=False):
        return self.writing.ended(wait)

    def close(self):
        try:
            self.writing.close()
        except OSError as error:
            return str(error)
        return ""

    def waited(self):
        return self.writing.waited_s


@pytest.fixture(scope="module")
def group(local_ray, tiny_config):
    made = TrainingGroup("policy", Rank, Role(workers=2, cpus=0.1), tiny_config().cluster, (2,))
    made.finish(made.begin_start(), 120)
    yield made
    made.stop()


def test_it_is_whole_without_a_word_when_all_have_written(group, tmp_path: Path) -> None:
    made = Checkpoints(tmp_path)
    group.call("begin", str(tmp_path), 3)
    assert group.call("ended") == [False, False]
    group.actors[0].write.remote()
    # One of two is not enough.
    time.sleep(0.5)
    assert group.call("ended") == [False, False] and not list(tmp_path.glob("step-*"))
    group.call("write")
    until = time.monotonic() + 20
    while not list(tmp_path.glob("step-*")):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert group.call("ended", True) == [True, True] and group.call("close") == ["", ""]
    found, _ = made.latest({"weights"})
    assert found and found.step == 3 and found.parts == {"weights"}
    assert sorted(path.name for path in found.folder.iterdir()) == [
        "manifest.json",
        "weights-0.pt",
        "weights-1.pt",
    ]


@pytest.mark.parametrize("fails", [0, 1])
def test_one_that_cannot_write_costs_that_checkpoint(group, tmp_path: Path, fails: int) -> None:
    made = Checkpoints(tmp_path)
    for step, who in ((1, None), (2, fails), (3, None)):
        group.call("begin", str(tmp_path), step, who)
        group.call("write")
        assert group.call("ended", True) == [True, True]
        reasons = ["No space left on device" * (rank == who) for rank in range(2)]
        assert group.call("close") == reasons
        found, broken = made.latest({"weights"})
        assert found and found.step == (step if who is None else step - 1) and not broken
