"""`rayward.data.verifiable.maths:math`: whether an answer ends in the value of the reference.

The answer is read and compared by math-verify (the extra `verify`), which works with expressions
that may be made to take for ever: in a process of its own, with a limit of memory, that is ended
and begun anew where one answer takes too long. Such an answer is wrong.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rayward.data.judging.thinking import without_thinking

SECONDS = 5.0
"""For one answer."""
START_S = 120.0
"""Until the process has imported what it needs."""
LONGEST = 20_000
"""Characters of an answer's end that are read: the value stands there."""


def math(
    *, completions: Sequence[str], references: Sequence[str | None], **_: Any
) -> list[float | None]:
    """1 where the value that an answer ends in is the reference's, else 0.

    None where there is no reference, or none with a value. Of a solution of GSM8K the text after
    "####" is the reference.
    """
    scores: list[float | None] = []
    with LOCK:
        for answer, reference in zip(completions, references, strict=True):
            gold = (reference or "").rpartition("####")[2].strip()
            text = without_thinking(answer)[0][-LONGEST:]
            scores.append(WORKER.compare(gold, text) if gold else None)
    return scores


class Worker:
    """The process that compares, begun when it is needed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.left = b""

    def compare(self, gold: str, answer: str) -> float | None:
        """1, 0, or None where `gold` has no value. RuntimeError: the process does not start."""
        if self.process is None or self.process.poll() is not None:
            self._begin()
        assert self.process and self.process.stdin
        try:
            self.process.stdin.write(json.dumps([gold, answer]).encode() + b"\n")
            self.process.stdin.flush()
            line = self._line(SECONDS)
        except BrokenPipeError:
            line = None
        if line is None:  # too long, or too much memory
            self.end()
            return 0.0
        score: float | None = json.loads(line)
        return score

    def _begin(self) -> None:
        self.left = b""
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "compare_values.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        if self._line(START_S) != b'"ready"':
            self.end()
            raise RuntimeError(
                "the process that compares mathematics did not start; is math-verify installed?"
            )

    def _line(self, seconds: float) -> bytes | None:
        """The next line that the process writes; None at the deadline, or where it ends."""
        assert self.process and self.process.stdout
        deadline = time.monotonic() + seconds
        while b"\n" not in self.left:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not select.select([self.process.stdout], [], [], remaining)[0]:
                return None
            more = os.read(self.process.stdout.fileno(), 1 << 16)
            if not more:
                return None
            self.left += more
        line, _, self.left = self.left.partition(b"\n")
        return line

    def end(self) -> None:
        """End the process; the next answer begins another."""
        if self.process:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe:
                    with suppress(BrokenPipeError):
                        pipe.close()
            self.process = None


WORKER, LOCK = Worker(), threading.Lock()
atexit.register(WORKER.end)
