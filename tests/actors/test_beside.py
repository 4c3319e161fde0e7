"""What is written beside the training: by one thread, and of copies only where memory is free."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil
import pytest

from rayward.actors import beside as of_beside
from rayward.actors.beside import beside, done, free_bytes, memory_allows

GIB = 2**30


def test_one_thing_after_the_other_and_what_it_raised_is_kept() -> None:
    may, order = threading.Event(), []
    first = beside(lambda: may.wait() and order.append("first"))
    second = beside(lambda: order.append("second"))

    def full() -> None:
        raise OSError("No space left on device")

    third = beside(full)
    assert not (first.done() or second.done() or third.done()) and done().done()
    may.set()
    second.result(10)
    assert order == ["first", "second"]
    with pytest.raises(OSError, match="No space left"):
        third.result(10)


def group(folder: Path, names: tuple[str, str, str], values: tuple[str, str, int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names[:2], values[:2], strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 7\n{names[2]} {values[2]}\n")


def test_the_least_of_all_control_groups_counts(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    said = tmp_path / "proc/self/cgroup"
    said.write_text("0::/slurm/job_7/step\n")
    base, names = tmp_path / "sys/fs/cgroup", of_beside.VERSION_2
    group(base / "slurm/job_7/step", names, ("max", str(GIB), 0))
    group(base / "slurm/job_7", names, (str(2 * GIB), str(2 * GIB - GIB // 2), GIB // 4))
    group(base / "slurm", names, (str(64 * GIB), str(GIB), 0))
    assert free_bytes(tmp_path) == 3 * GIB // 4
    # A container whose group is the root, while the path is that of the host.
    said.write_text("0::/kubepods/pod1\n")
    group(base, names, (str(GIB), str(GIB // 4), 0))
    assert free_bytes(tmp_path) == 3 * GIB // 4
    # The first version has a folder of its own for memory.
    said.write_text("5:cpu:/a\n4:memory:/a\n")
    group(base / "memory/a", of_beside.VERSION_1, (str(GIB), str(GIB // 2), 0))
    assert free_bytes(tmp_path) == GIB // 2
    said.unlink()
    assert free_bytes(tmp_path) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_copies_take_half_of_what_is_free_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_beside, "free_bytes", lambda: 800)
    assert memory_allows(100, 4) and memory_allows(400, 1)
    assert not memory_allows(101, 4) and not memory_allows(100, 5)
