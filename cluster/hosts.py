"""The hosts of the cluster that this process has joined: what they have, and who has gone."""

from __future__ import annotations

import sys
import time
from contextlib import suppress

from rayward.cluster.planning import Host

HEAD = "node:__internal_head__"
"""Resource that Ray gives the head node alone."""

_seen: dict[str, str] = {}
"""Address of each node that was there while this process was connected, by Ray's id."""


def hosts(free: bool = False) -> list[Host]:
    """All nodes that are up, with what they have; `free`: with what nobody has taken."""
    import ray
    from ray._private.state import available_resources_per_node

    now = available_resources_per_node() if free else {}
    found = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        _seen[node["NodeID"]] = node["NodeManagerAddress"]
        # One that has just joined has not told what is free.
        amounts = now.get(node["NodeID"], {}) if free else node["Resources"]
        cpus, gpus = float(amounts.get("CPU", 0)), float(amounts.get("GPU", 0))
        found.append(Host(node["NodeID"], node["NodeManagerAddress"], cpus, gpus))
    return found


def own_address(_: object = None) -> str:
    """Ray's address of the node that this process runs on; for an actor to answer with."""
    import ray

    return str(ray.util.get_node_ip_address())


def several() -> bool:
    """Whether the cluster has more than one host."""
    return len({host.address for host in hosts()}) > 1


def head_address() -> str:
    """Ray's address of the head node, where Serve listens."""
    import ray

    heads = [node for node in ray.nodes() if node["Alive"] and HEAD in node["Resources"]]
    return str(heads[0]["NodeManagerAddress"]) if heads else "127.0.0.1"


def lost(wait_s: float = 0) -> list[str]:
    """Addresses of nodes that Ray took for dead while this process was connected.

    `wait_s`: on several hosts, for how long one may come to be taken for dead; says that it waits.
    """
    if (gone := _gone()) or not wait_s or len(set(_seen.values())) < 2:
        return gone
    print(
        f"rayward: is a host gone? Ray tells within {wait_s:.0f} s (Ctrl-C: do not wait)",
        file=sys.stderr,
        flush=True,
    )
    until = time.monotonic() + wait_s
    with suppress(KeyboardInterrupt):
        while not (gone := _gone()) and time.monotonic() < until:
            time.sleep(0.5)
    return gone


def _gone() -> list[str]:
    # Nothing is lost of a Ray that was never there; what only looks at errors must not start one.
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return []
    return sorted(
        {_seen[n["NodeID"]] for n in ray.nodes() if not n["Alive"] and n["NodeID"] in _seen}
    )
