"""SIGTERM and SIGUSR1 as wishes that a stage grants at its next step, not as an instant end."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def wishes(ask: Callable[[bool], None], edge: str = "step") -> Iterator[None]:
    """Within it SIGTERM calls `ask(True)`: a checkpoint and the end, SIGUSR1 `ask(False)`: a
    checkpoint. A second SIGTERM ends at once. `edge`: after what the stage ends, as told. Raises
    KeyboardInterrupt at its end where the end was asked for, though nobody came to grant it.
    """
    # Python lets only the main thread set handlers.
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    ends = False

    def heard(number: int, _: FrameType | None) -> None:
        nonlocal ends
        stop = number == signal.SIGTERM
        ends = ends or stop
        ask(stop)
        if stop:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            sys.stderr.write(f"rayward: SIGTERM: ends after the {edge}, with a checkpoint\n")

    before = {number: signal.signal(number, heard) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if ends:
        raise KeyboardInterrupt
