"""The peak of a process tree is that of all its processes together, also where one of them is gone
by the end.
"""

from __future__ import annotations

import subprocess
import sys

WATCHED = """
import subprocess, sys, time
from rayward.pipelines.run import memory

memory.SAMPLE_SECONDS = 0.1
child = "import time; held = b'1' * 150_000_000; time.sleep(1.5)"
with memory.PeakMemory() as watched:
    until = time.monotonic() + 30
    while not watched.peak_bytes and time.monotonic() < until:
        time.sleep(0.1)
    alone = watched.peak_bytes
    children = [subprocess.Popen([sys.executable, "-c", child]) for _ in range(2)]
    for child in children:
        child.wait()
    time.sleep(0.3)
print(alone, watched.peak_bytes)
"""


def test_the_peak_counts_children_that_have_ended() -> None:
    """In a process of its own: below that of the tests there are whole clusters, which grow and
    shrink.
    """
    done = subprocess.run(
        [sys.executable, "-c", WATCHED], capture_output=True, text=True, timeout=120, check=True
    )
    alone, peak = map(int, done.stdout.split())
    assert alone > 0
    assert 300_000_000 < peak - alone < 400_000_000
