"""The peak of a process tree is that of all its processes together, also where one of them is gone by the end."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from pipelines import memory

CHILD = "import time; held = b'1' * {size}; time.sleep(1.5)"


def test_the_peak_counts_children_that_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SAMPLE_SECONDS", 0.1)
    with memory.PeakMemory() as watched:
        until = time.monotonic() + 30
        while not watched.peak_bytes and time.monotonic() < until:
            time.sleep(0.1)
        alone = watched.peak_bytes
        children = [subprocess.Popen([sys.executable, "-c", CHILD.format(size=150_000_000)]) for _ in range(2)]
        for child in children:
            child.wait()
        time.sleep(0.3)
    assert alone > 0
    assert 300_000_000 < watched.peak_bytes - alone < 400_000_000
