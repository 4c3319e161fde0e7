"""Peak memory of a run on the driver's machine: this process and all below it, Ray's included."""

from __future__ import annotations

import threading

import psutil

SAMPLE_SECONDS = 1.0
LEAST_GROWTH = 1.01  # of the private memory, before the shared is read again


class PeakMemory:
    """Samples the memory of the process tree in the background.

    Memory that processes share (the object store, libraries) is counted once: each process counts
    with its proportional share (PSS). Reading that takes a tenth of a second, so it is read only
    where the private memory, which is had for nothing, has grown. Processes of a Ray cluster that
    somebody else started are not below this one.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._private_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        # The first look is after one period: `wait` returns True only when the run ends.
        while not self._stop.wait(SAMPLE_SECONDS):
            # Anew each time: Ray starts and ends workers while a stage runs.
            processes = [me, *me.children(recursive=True)]
            private = sum(map(_private, processes))
            if private > self._private_bytes * LEAST_GROWTH:
                self._private_bytes = private
                self.peak_bytes = max(self.peak_bytes, sum(map(_proportional, processes)))


def _private(process: psutil.Process) -> int:
    try:
        memory = process.memory_info()
        return int(memory.rss - memory.shared)
    # A process may end between being listed and being read; it then counts nothing.
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return 0


def _proportional(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return 0
