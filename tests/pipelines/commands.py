"""The `rayward` command in this process, with what is imported already: a new one takes seconds."""

from __future__ import annotations

import io
import signal
import subprocess
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

from rayward.pipelines import cli


def rayward(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What a shell in `cwd` would see of it: its status, and all that it printed."""
    given = [str(argument) for argument in arguments]
    out, errors = io.StringIO(), io.StringIO()
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        with chdir(cwd), redirect_stdout(out), redirect_stderr(errors):
            status = cli.main(given)
    except SystemExit as end:  # argparse's, for a line that it cannot read
        status = end.code if isinstance(end.code, int) else 1
    finally:
        signal.signal(signal.SIGTERM, on_term)  # the command put one of its own there
    return subprocess.CompletedProcess(given, status, out.getvalue(), errors.getvalue())
