"""The interface of an address, among those that this machine really has."""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
import sys

import psutil
import pytest

from rayward.cluster.interfaces import interface_of, use_interface

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "VLLM_HOST_IP")
LOOPBACK = next(
    name
    for name, addresses in psutil.net_if_addrs().items()
    if any(entry.address == "127.0.0.1" for entry in addresses)
)


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


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    use_interface("127.0.0.1")
    assert [os.environ[name] for name in VARIABLES] == ["ib0", f"={LOOPBACK}", "127.0.0.1"]


def test_an_address_of_no_interface_leaves_gloo_and_nccl_their_own_choice() -> None:
    use_interface("192.0.2.1")
    assert "GLOO_SOCKET_IFNAME" not in os.environ and "NCCL_SOCKET_IFNAME" not in os.environ


GROUP = """
import sys
from rayward.cluster.interfaces import use_interface
use_interface("127.0.0.1")
import torch
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{sys.argv[1]}", rank=int(sys.argv[2]), world_size=2
)
sum_of_ranks = torch.tensor([float(sys.argv[2]) + 1])
torch.distributed.all_reduce(sum_of_ranks)
print(sum_of_ranks.item())
"""


def test_gloo_meets_on_loopback_alone(tmp_path) -> None:
    """A laptop without a network, and one interface."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", GROUP, str(tmp_path / "store"), str(rank)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [rank.communicate(timeout=100)[0] for rank in ranks] == ["3.0\n", "3.0\n"]
