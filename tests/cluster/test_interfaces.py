"""The interface of an address, among those that this machine really has."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psutil
import pytest
import torch

from rayward.cluster.interfaces import DEFAULTS, interface_of, use_interface, use_own_interface

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "VLLM_HOST_IP")
LOOPBACK = next(
    name
    for name, addresses in psutil.net_if_addrs().items()
    if any(entry.address == "127.0.0.1" for entry in addresses)
)
# The first one of loopback and of one other interface: Gloo takes the first.
FIRST = {
    name: next(entry.address for entry in addresses if entry.family == socket.AF_INET)
    for name, addresses in psutil.net_if_addrs().items()
    if any(entry.family == socket.AF_INET for entry in addresses)
    and psutil.net_if_stats()[name].isup
}
ADDRESSES = [
    FIRST.pop(LOOPBACK),
    *list(FIRST.values())[:1],
]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that the end of the test puts them back
        monkeypatch.delenv(name)


def test_every_address_of_this_machine_has_its_interface() -> None:
    found = 0
    for name, addresses in psutil.net_if_addrs().items():
        for entry in addresses:
            if entry.family in (socket.AF_INET, socket.AF_INET6):
                address = entry.address.partition("%")[0]
                if ipaddress.ip_address(address).is_link_local:
                    continue  # several interfaces may have the same
                assert interface_of(address) == name
                found += 1
    assert found


def test_all_of_loopback_is_one_interface_and_others_have_none() -> None:
    assert interface_of("127.0.0.7") == LOOPBACK
    # Of a documentation network (RFC 5737), which no machine has.
    assert interface_of("192.0.2.1") is None
    # A cluster may be started with names of hosts.
    assert interface_of("localhost") is None


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    use_interface("127.0.0.1")
    assert [os.environ[name] for name in VARIABLES] == ["ib0", f"={LOOPBACK}", "127.0.0.1"]


def test_what_a_node_has_goes_before_what_the_driver_has(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "ib0"}
    monkeypatch.setenv(DEFAULTS, json.dumps(given))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eno1")
    use_own_interface()
    assert [os.environ[name] for name in VARIABLES[:2]] == ["eno1", "ib0"]


def test_an_address_of_no_interface_leaves_gloo_and_nccl_their_own_choice() -> None:
    use_interface("192.0.2.1")
    assert "GLOO_SOCKET_IFNAME" not in os.environ and "NCCL_SOCKET_IFNAME" not in os.environ


def ways() -> set[tuple[str, int]]:
    """Addresses and ports at which this process listens or is connected."""
    return {(way.laddr.ip, way.laddr.port) for way in psutil.Process().net_connections("inet")}


@pytest.mark.parametrize("address", ADDRESSES)
def test_gloo_meets_at_the_address_given(address: str) -> None:
    """The host's name means one of them at most."""
    use_interface(address)
    store, before = torch.distributed.HashStore(), ways()

    def member(rank: int) -> tuple[Any, float]:
        group = torch.distributed.ProcessGroupGloo(store, rank, 2, timedelta(seconds=60))
        number = torch.tensor([rank + 1.0])
        group.allreduce([number]).wait()
        return group, number.item()

    # Two ranks in one process, which meet as those of two do.
    with ThreadPoolExecutor(2) as pool:
        members = list(pool.map(member, range(2)))
    assert [total for _, total in members] == [3, 3]
    assert {ip for ip, _ in ways() - before} == {address}
