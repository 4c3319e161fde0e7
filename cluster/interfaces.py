"""The network interface of a node's Ray address, for everything that connects processes.

Gloo takes the address that the host's name means, which on Debian is loopback, and NCCL the first
interface that it finds; others need not reach either. They reach the address that Ray has.
"""

from __future__ import annotations

import ipaddress
import json
import os

import psutil

DEFAULTS = "RAYWARD_DEFAULT_ENV"
"""Variable with the driver's NCCL_* and GLOO_* as JSON, for where a node has none of its own."""


def interface_of(address: str) -> str | None:
    """Name of the interface that has an address; None where no interface of this host has it, or
    where it is a name.

    All of 127.0.0.0/8 is the loopback interface's, of which only one address is listed.
    """
    try:
        wanted = ipaddress.ip_address(address)
    except ValueError:
        return None
    loopback = None
    for name, addresses in psutil.net_if_addrs().items():
        for entry in addresses:
            try:
                # A link-local IPv6 address is told with its interface: fe80::1%eth0.
                known = ipaddress.ip_address(entry.address.partition("%")[0])
            except ValueError:  # of hardware
                continue
            if known == wanted:
                return name
            if known.is_loopback:
                loopback = name
    return loopback if wanted.is_loopback else None


def is_loopback(host: str) -> bool:
    """Whether a host, by address or name, is reached from its own machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def of_groups() -> dict[str, str]:
    """What this process was given for the ways between processes.

    Only a default for others: a node may have values of its own, and a driver those of the head (as
    a job that is started there).
    """
    return {n: value for n, value in os.environ.items() if n.startswith(("NCCL_", "GLOO_"))}


def use_interface(address: str) -> None:
    """Let Gloo, NCCL and vLLM of this process speak from `address`; what the user has set stays.

    Before the first group of processes is made, and before vLLM is imported.
    """
    os.environ.setdefault("VLLM_HOST_IP", address)
    if name := interface_of(address):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        # "=": this very one, and not all whose names begin like it.
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")


def use_own_interface() -> None:
    """The same with the address by which Ray knows this node, after what the driver was given; of
    the address nothing without Ray.
    """
    import ray

    for name, value in json.loads(os.environ.get(DEFAULTS, "{}")).items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        use_interface(ray.util.get_node_ip_address())
