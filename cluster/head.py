"""Ray's head: this process ends with it, in words of ours instead of Ray's."""

from __future__ import annotations

import os
import sys
import threading
import time

from ray._private import worker
from ray._private.node import Node
from ray.exceptions import RpcError

EVERY_S = 5.0
"""Between two looks at the head."""
# Ray's names of such settings are not all of capitals.
WAITS_S = float(os.environ.get("RAY_gcs_rpc_server_reconnect_timeout_s") or 60)  # noqa: SIM112
"""For so long Ray waits for a head to be started anew (KubeRay sets 600 where that may take long),
and then ends the process from C++, where no handler of ours runs.
"""
SOONER_S = 15.0
"""Before that the process ends by itself."""


def watch_head() -> None:
    """End this process with status 1 where the head that it has joined does not answer any more."""
    threading.Thread(target=_watch, args=(worker._global_node,), name="head", daemon=True).start()


def _watch(joined: Node) -> None:
    answered, looks = time.monotonic(), 0
    limit_s = max(WAITS_S - SOONER_S, EVERY_S)
    # Until ray.shutdown(). (To ask ray.is_initialized() would not tell this Ray from a next one.)
    while worker._global_node is joined:
        began, looks = time.monotonic(), looks + 1
        if _answers(joined):
            answered, looks = time.monotonic(), 0
        # Several looks too: this process may have slept.
        elif (silent_s := time.monotonic() - answered) > limit_s and looks > 2:
            _end(
                f"Ray's head at {joined.gcs_address} has not answered for {silent_s:.0f} s, and "
                "nothing outlives it: once there is one, run the same command again to go on"
            )
        time.sleep(max(0.0, began + EVERY_S - time.monotonic()))


def _answers(joined: Node) -> bool:
    """Whether it answers a question: one that is stopped would still accept connections."""
    try:
        joined.get_gcs_client().internal_kv_get(b"head", b"rayward", timeout=EVERY_S)
    except RpcError:
        return False
    return True


def _end(message: str) -> None:
    try:
        sys.stdout.flush()
        print(f"\nrayward: {message}", file=sys.stderr, flush=True)
    finally:
        # Not by an exception: the main thread waits in Ray, and what it would tidy up asks the
        # head.
        os._exit(1)
