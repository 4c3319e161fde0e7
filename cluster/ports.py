"""Ports: one that nobody listens on, and whether somebody listens on one."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A free local port; somebody else may take it before it is used."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def knock(address: str, timeout_s: float) -> None:
    """OSError where nobody listens at HOST:PORT, or [HOST]:PORT."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
