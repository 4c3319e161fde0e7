"""Waiting for calls to actors: never without a deadline, and an error is raised as soon as one call
has it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray


def wait_for(
    calls: Sequence[ray.ObjectRef], timeout_s: float, too_late: Callable[[str], Exception]
) -> list[Any]:
    """Results in the order of the calls. Raises the first error that a call ends with, without
    waiting for the others (which may hang because of it), or `too_late(numbers of the late calls)`
    after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    pending = list(calls)
    while pending:
        ready, pending = ray.wait(
            pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic())
        )
        if not ready:
            raise too_late(
                ", ".join(str(number) for number, call in enumerate(calls) if call in pending)
            )
        ray.get(ready)
    return ray.get(list(calls))
