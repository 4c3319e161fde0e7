"""One driver at a time on a run's folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO

from rayward.configs.load import ConfigError
from rayward.pipelines.run.files import sweep

NAME = ".lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run's folder, which is made. ConfigError where it cannot be, and, with its owner and
    age, where another process has it.

    The system gives it back with the process, however that ends. A file system without locks has
    none, which is told.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / NAME).open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--run {folder}: nothing can be written there: {error.strerror}; name another folder"
        ) from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{folder} is at work already: {_owner(file)}; two would overwrite each other. "
                "Wait for that one, or stop it first"
            ) from None
        except OSError as error:
            print(
                f"   the file system of {folder} has no locks ({error.strerror}): see to it that "
                "no second rayward works in it",
                flush=True,
            )
            yield
            return
        file.truncate(0)
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        file.write(json.dumps(owner))
        file.flush()
        sweep(folder)
        # The file stays: who removes one that another has just opened has a lock on nothing.
        yield


def _owner(file: IO[str]) -> str:
    file.seek(0)
    try:
        owner = json.loads(file.read())
        since = datetime.fromtimestamp(owner["since"]).strftime("%Y-%m-%d %H:%M:%S")
        age = timedelta(seconds=round(time.time() - owner["since"]))
        return f"process {owner['pid']} on {owner['host']}, since {since} ({age} h)"
    except (ValueError, KeyError, TypeError):  # it has just opened the file
        return "by another process"
