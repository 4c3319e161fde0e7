"""What is written beside the training: by one thread, and of copies only where memory is free."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil
import pytest

from rayward.actors.beside import beside, done, free_bytes, memory_allows


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


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    gib = 2**30
    (tmp_path / "memory.max").write_text(f"{2 * gib}\n")
    (tmp_path / "memory.current").write_text(f"{gib + gib // 2}\n")
    (tmp_path / "memory.stat").write_text(f"anon {gib}\ninactive_file {gib // 4}\n")
    assert free_bytes(tmp_path) == 3 * gib // 4
    (tmp_path / "memory.max").write_text("max\n")
    plain = free_bytes(tmp_path)
    assert plain == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    assert plain == pytest.approx(free_bytes(tmp_path / "gone"), rel=0.2)


def test_copies_take_half_of_what_is_free_at_most() -> None:
    free = free_bytes()
    assert memory_allows(free // 100, 10) and memory_allows(free // 8, 2)
    assert not memory_allows(free, 1) and not memory_allows(free // 8, 16)
