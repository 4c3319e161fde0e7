"""Python programs of strangers, each in a process that has nothing but itself.

It sees the interpreter and the system's libraries, read-only, and a folder in memory; no network,
no process but its own, none of our variables; memory, processor time, files and processes have
limits, and all of it ends at the deadline. Namespaces of the Linux kernel do that, as bubblewrap
has it (data/verifiable/enter.py). Where the kernel or a container forbids them nothing is run.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ENTER = Path(__file__).parent / "enter.py"
MEMORY_BYTES = 1 << 30
OUTPUT_BYTES = 1 << 20
START_S = 5.0
"""Beside the time that a program has."""


class NotConfinedError(RuntimeError):
    """This machine cannot keep a program by itself."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended: its status (None: at the deadline), and the beginning of its output."""

    status: int | None
    out: str


def run(
    program: str, stdin: str = "", seconds: float = 10.0, memory_bytes: int = MEMORY_BYTES
) -> Ended:
    """Run a program. NotConfinedError: it was not even started."""
    setting = {
        "program": program,
        "seconds": max(1, math.ceil(seconds)),
        "memory_bytes": memory_bytes,
        "base": sys.base_prefix,
        # Not that of a virtual environment, which may be a copy outside of `base`.
        "python": os.path.realpath(getattr(sys, "_base_executable", sys.executable)),
    }
    # In the parent's temporary folder only the name of the new root lies; its contents are memory.
    with (
        tempfile.TemporaryDirectory(prefix="rayward-confined-") as root,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as text,
    ):
        text.write(stdin.encode(errors="replace"))
        text.seek(0)
        ready, told = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(ENTER), root, str(told)],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.DEVNULL,
            pass_fds=(told, text.fileno()),
            env={"STDIN_FD": str(text.fileno())},
            start_new_session=True,
        )
        os.close(told)
        try:
            with suppress(subprocess.TimeoutExpired):
                process.communicate(json.dumps(setting).encode(), timeout=seconds + START_S)
        finally:
            # With the first process of its namespace all others end.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            timed_out = process.wait() == -signal.SIGKILL
            with os.fdopen(ready, "rb") as pipe:
                said = pipe.read(2000).decode(errors="replace")
        if not said.startswith("ready"):
            raise NotConfinedError(said or "the process ended before it was confined")
        out.seek(0)
        return Ended(
            None if timed_out or said.endswith("late") else process.returncode,
            out.read(OUTPUT_BYTES).decode(errors="replace"),
        )


@cache
def check() -> None:
    """NotConfinedError, with what to do, where programs cannot be confined on this machine."""
    try:
        ended = run("print('confined')")
    except (OSError, NotConfinedError) as error:
        raise NotConfinedError(
            f"programs of a model cannot be run safely here: {error}. The kernel must allow user "
            "namespaces (in a container: --security-opt seccomp=unconfined or a runtime that has "
            "them); or run them elsewhere, behind a source of kind http"
        ) from None
    if (ended.status, ended.out) != (0, "confined\n"):
        raise NotConfinedError(f"a program for a trial ended with {ended.status}: {ended.out!r}")
