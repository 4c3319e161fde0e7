"""Waiting for calls to actors: never without a deadline, and the first error is raised at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.actor import ActorHandle


def wait_for(
    calls: Sequence[ray.ObjectRef],
    timeout_s: float,
    too_late: Callable[[list[int]], Exception],
    moved: Callable[[list[int]], bool] | None = None,
) -> list[Any]:
    """Results in the order of the calls.

    Raises the first error that a call ends with, without waiting for the others (which may hang
    because of it), or `too_late(numbers of the late calls)` after `timeout_s` seconds. The time
    begins anew where one of those has `moved`: what works is waited for.
    """
    # One deadline for all calls: it does not begin anew with each that is done.
    deadline = time.monotonic() + timeout_s
    pending = list(calls)
    while pending:
        # With a timeout of 0 it still takes what is ready.
        ready, pending = ray.wait(
            pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic())
        )
        if not ready:
            late = [number for number, call in enumerate(calls) if call in pending]
            if moved and moved(late):
                deadline = time.monotonic() + timeout_s
                continue
            raise too_late(late)
        # For its error. A rank that fails leaves the others waiting in a collective, so waiting for
        # all calls first would end in their timeout and hide the cause.
        ray.get(ready)
    return ray.get(list(calls))


KILLING_S = 5.0
"""Longest wait for Ray to take note of an actor's end."""


def kill(actor: ActorHandle) -> None:
    """End an actor's process, whatever it does.

    Of an actor that ends by itself just then Ray's answer (2.60) may never come, so it is not
    waited for without end.
    """

    def ask() -> None:
        with suppress(Exception):  # of one that is gone
            ray.kill(actor)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(KILLING_S)
