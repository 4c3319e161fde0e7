"""Ray's head: this process ends with it, in words of ours instead of Ray's."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

from ray._private import worker

EVERY_S = 5.0
"""Between two looks at the head."""
GIVES_UP_S = 45.0
"""Until the head is taken for gone. Ray waits 60 s for one to be started anew, and then ends the
process from C++, where no handler of ours runs.
"""


def watch_head() -> None:
    """End this process with status 1 where the head that it has joined does not answer any more."""
    threading.Thread(target=_watch, args=(worker._global_node,), name="head", daemon=True).start()


def _watch(joined: worker.Node) -> None:
    answered = time.monotonic()
    # Until ray.shutdown(). (To ask ray.is_initialized() would not tell this Ray from a next one.)
    while worker._global_node is joined:
        if _answers(joined.gcs_address):
            answered = time.monotonic()
        elif (silent_s := time.monotonic() - answered) > GIVES_UP_S:
            _end(
                f"Ray's head at {joined.gcs_address} has not answered for {silent_s:.0f} s, and no "
                "run outlives it: once there is one, run the same command again to go on"
            )
        time.sleep(EVERY_S)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=EVERY_S).close()
    except OSError:
        return False
    return True


def _end(message: str) -> None:
    print(f"\nrayward: {message}", file=sys.stderr, flush=True)
    # Not by an exception: the main thread waits in Ray, and what it would tidy up asks the head.
    os._exit(1)
