"""Signs of life: a process tells every few seconds how far its work has come, and where it is.

A call that takes long is not one that hangs. Work calls `tick` at each small piece; a thread of the
process writes the count to Ray's key-value store, which answers while the process is busy. Whoever
waits for it looks there when it is late.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

EVERY_S, SILENT_S = 2.0, 20.0
"""Seconds between two signs, and after which a process is taken for silent."""
PREFIX = "rayward-pulse-"
_ticks = 0


class ProcessLost(RuntimeError):
    """A process of the run is gone; the message says which. `ranks`: those that may be meant."""

    def __init__(self, message: str, ranks: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.ranks = list(ranks)


class Unanswered(TimeoutError):
    """A process that was at work gave no answer in time. `ranks`: those of its group that are
    late.
    """

    def __init__(self, message: str, ranks: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.ranks = list(ranks)


def tick() -> None:
    """A piece of work is done: a micro-batch, an engine's step, a tensor written."""
    global _ticks
    _ticks += 1


@dataclass(frozen=True)
class Beat:
    """What a process last told of itself."""

    at: float
    """When, in seconds since the epoch."""
    still_s: float
    """Seconds since its count had last changed, by a clock that nobody sets."""
    where: str
    """The innermost lines that its thread of work was in, and its process."""
    peak_bytes: int
    """Most memory that it has had."""


def start(_: Any) -> None:
    """Tell of this process from now on, under the id of the actor it is, which calls it once."""
    import ray

    tell_of(ray.get_runtime_context().get_actor_id())


def tell_of(key: str) -> None:
    """Tell of this process, and where this thread of it is, under a key from now on."""
    arguments = (key, threading.get_ident())
    threading.Thread(target=_tell, args=arguments, daemon=True, name="pulse").start()


def _tell(key: str, thread: int) -> None:
    from ray.experimental.internal_kv import _internal_kv_put

    known, moved_at = -1, time.monotonic()
    while True:
        if _ticks != known:
            known, moved_at = _ticks, time.monotonic()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
        beat = [time.time(), time.monotonic() - moved_at, _where(thread), peak]
        with suppress(Exception):  # of a cluster that ends, or is not to be reached now
            _internal_kv_put(PREFIX + key, json.dumps(beat), overwrite=True)
        time.sleep(EVERY_S)


def _where(thread: int) -> str:
    frame = sys._current_frames().get(thread)
    lines = dict.fromkeys(filter(None, (_first(frame, "rayward"), _first(frame, ""))))
    return f"in {', '.join(lines)} (process {os.getpid()} on {socket.gethostname()})"


def _first(frame: FrameType | None, part: str) -> str:
    """The innermost line of a file with `part` in its module's name."""
    while frame:
        if frame.f_globals.get("__name__", "").startswith(part):
            code = frame.f_code
            return f"{code.co_name} ({Path(code.co_filename).name}:{frame.f_lineno})"
        frame = frame.f_back
    return ""


def read(key: str) -> Beat | None:
    """The last sign of a process; None of one that has given none."""
    from ray.experimental.internal_kv import _internal_kv_get

    told = _internal_kv_get(PREFIX + key)
    return Beat(*json.loads(told)) if told else None


def forget(key: str) -> None:
    """Its process is ended."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(PREFIX + key)


@dataclass(frozen=True)
class Watch:
    """Of processes that somebody waits for: whether one moves, and what each does."""

    keys: dict[str, str]
    """By the name that is told, `policy 1` say."""

    def only(self, ranks: Sequence[int]) -> Watch:
        """Of some of them."""
        names = list(self.keys)
        return Watch({names[rank]: self.keys[names[rank]] for rank in ranks})

    def moved(self, within_s: float) -> bool:
        """Whether one has done a piece of work in the last `within_s` seconds, and still tells."""
        if self._moved(within_s):
            return True
        # A clock that was set between two signs makes one look silent: until the next.
        time.sleep(2 * EVERY_S)
        return self._moved(within_s)

    def _moved(self, within_s: float) -> bool:
        beats = [beat for key in self.keys.values() if (beat := read(key))]
        now = time.time()
        return any(beat.still_s < within_s and now - beat.at < SILENT_S for beat in beats)

    def told(self) -> str:
        """A sentence each: since when, and where."""
        return "; ".join(f"{name} {_sentence(read(key))}" for name, key in self.keys.items())

    def lost(self, error: Exception) -> ProcessLost:
        """What Ray's error of a dead actor means: which one, and how much memory it had."""
        actor = getattr(error, "actor_id", None)
        names = [name for name, key in self.keys.items() if key == actor] or list(self.keys)
        ranks = [number for number, name in enumerate(self.keys) if name in names]
        beat = read(self.keys[names[0]]) if len(names) == 1 else None
        peak = f"; it had used up to {beat.peak_bytes / 2**30:.1f} GiB" if beat else ""
        role = names[0].split(" ")[0]
        help_text = f" ({LESS_MEMORY[role]})" if role in LESS_MEMORY else ""
        if type(error).__name__ == "OutOfMemoryError":
            how = "was ended by Ray, since its host ran low on memory"
        else:
            how = "died without a word: killed, or by the kernel for want of memory"
        return ProcessLost(f"{' or '.join(names)} {how}{peak}{help_text}", ranks)


LESS_MEMORY = {
    **{
        stage: f"less memory: {stage}.optimizer.micro_batch_tokens, "
        f"{stage}.optimizer.gradient_checkpointing"
        for stage in ("sft", "dpo", "sample")
    },
    "rollout": "less memory: rollout.max_sequences, rollout.gpu_memory_fraction",
    "policy": "less memory: rl.optimizer.micro_batch_tokens, rl.optimizer.gradient_checkpointing",
    "critic": "less memory: rl.optimizer.micro_batch_tokens, rl.optimizer.gradient_checkpointing",
    "reward": "less memory: reward.optimizer.micro_batch_tokens",
    "reference": "less memory: rl.optimizer.micro_batch_tokens",
}
"""By role, the settings that help most."""


def _sentence(beat: Beat | None) -> str:
    if beat is None:
        return "has given no sign of life"
    silent_s = time.time() - beat.at
    if silent_s > SILENT_S:
        return f"has been silent for {silent_s:.0f} s, when it was {beat.where}"
    return f"has not moved for {beat.still_s:.0f} s, {beat.where}"
