"""Sockets in a folder for temporary files whose path is too long for them.

Schedulers set such a TMPDIR, with the job's number and more. A socket's path has room for 107 bytes
on Linux, and Ray's and vLLM's lie deep below that folder.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

LONGEST = 30
"""Bytes of a path with which Ray's longest one below it is short enough:
ray/session_YYYY-MM-DD_HH-MM-SS_MICROS_PID/sockets/plasma_store."""
SHORT = Path("/tmp")


def shorten_tmpdir() -> None:
    """Where TMPDIR is too long, let it be a link to the same folder, for this process and those
    that it starts.

    The link stays, since Ray's processes may write after this one has ended; those whose folder is
    gone are removed by the next call. Where there can be no link, TMPDIR stays as it is.
    """
    given = os.environ.get("TMPDIR", "")
    if len(os.fsencode(given)) <= LONGEST:
        return
    target = Path(given).resolve()
    # A folder of ours alone: nobody else can put another link there.
    links = SHORT / f"rw{os.getuid()}"
    with suppress(OSError):
        links.mkdir(mode=0o700, exist_ok=True)
        if links.is_symlink() or links.stat().st_uid != os.getuid():
            return
        for link in links.iterdir():
            if not link.exists():
                link.unlink()
        link = links / blake2b(os.fsencode(target), digest_size=4).hexdigest()
        with suppress(FileExistsError):
            link.symlink_to(target, target_is_directory=True)
        if link.resolve() == target:
            os.environ["TMPDIR"] = tempfile.tempdir = str(link)
