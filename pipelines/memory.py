"""Peak memory of a run on the driver's machine: this process and all below it, Ray's included."""

from __future__ import annotations

import threading

import psutil

SAMPLE_SECONDS = 1.0


class PeakMemory:
    """Samples the memory of the process tree in the background.

    Memory that processes share (the object store, libraries) is counted once: each process counts with its
    proportional share (PSS). Processes of a Ray cluster that somebody else started are not below this one.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
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
        while not self._stop.wait(SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, sum(map(_bytes, [me, *me.children(recursive=True)])))


def _bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return 0
