"""How a process of a training group finds the others, and what it computes on."""

from __future__ import annotations

import datetime
import os
import socket
import time

import torch
from torch.distributed import ProcessGroup, TCPStore  # type: ignore[attr-defined]

from rayward.actors.models.forward import RankContext
from rayward.cluster.interfaces import use_own_interface
from rayward.configs.schema import Config


def device(gpus: float) -> torch.device:
    """The device of a process that was given `gpus` GPUs (Ray shows it only its own)."""
    return torch.device("cuda", 0) if gpus else torch.device("cpu")


def workers_per_engine(config: Config) -> int:
    """GPUs, and so processes, that a rollout engine splits the model over; 1 on the CPU."""
    return max(1, int(config.resources.rollout.gpus))


def peak_flops(dtype: str, device: torch.device, seconds: float = 0.2) -> float:
    """Operations a second of the product of two square matrices on a device: the best of many."""
    size = 8192 if device.type == "cuda" else 1024  # so large that launch and wait do not count
    a = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    best, until = 0.0, time.perf_counter() + seconds
    while (started_at := time.perf_counter()) < until:
        (a @ a)[0, 0].item()  # waits for the device
        # A product takes a multiplication and an addition for each of size^3 terms.
        best = max(best, 2 * size**3 / (time.perf_counter() - started_at))
    return best


def copy_rate(size_bytes: int = 2**27) -> float:
    """Bytes a second of a copy in the machine's memory, the best of three.

    A weight transfer is held against it.
    """
    # Both are written before, so that the copy does not pay for the first touch of their pages.
    source = torch.ones(size_bytes, dtype=torch.uint8)
    target = torch.zeros(size_bytes, dtype=torch.uint8)
    seconds = []
    for _ in range(3):
        started_at = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - started_at)
    return size_bytes / min(seconds)


class Rendezvous:
    """Rank 0 opens a key-value store, everybody joins it.

    The system picks its port: none is guessed, so none is taken.
    """

    def __init__(self, rank: int, world_size: int, timeout_s: float):
        self.rank, self.world_size = rank, world_size
        self.timeout = datetime.timedelta(seconds=timeout_s)
        self.store: TCPStore | None = None

    def open(self) -> tuple[str, int]:
        """Rank 0: start the store; (host, port) for the others."""
        host = _own_address()
        # It must not wait for the others here: they get to know its port from what this returns.
        self.store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=self.timeout)
        return host, self.store.port

    def join(self, host: str, port: int, gpus: float) -> RankContext:
        """Enter the process group: NCCL with GPUs, gloo without. Every rank must call it."""
        use_own_interface()
        if self.store is None:
            self.store = TCPStore(host, port, is_master=False, timeout=self.timeout)
        ours = device(gpus)
        # As torchrun sets them: DeepSpeed insists on LOCAL_RANK also where a group exists. It is 0
        # everywhere, as Ray shows a process its own GPU only.
        os.environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.world_size),
            LOCAL_RANK="0",
            MASTER_ADDR=host,
            MASTER_PORT=str(port),
            DS_ACCELERATOR=ours.type,
        )
        if ours.type == "cuda":
            torch.cuda.set_device(ours)
        torch.distributed.init_process_group(
            "nccl" if ours.type == "cuda" else "gloo",
            store=self.store,
            rank=self.rank,
            world_size=self.world_size,
            timeout=self.timeout,
        )
        return RankContext(self.rank, self.world_size, ours)

    def subgroup(self, size: int) -> ProcessGroup | None:
        """This rank's group of `size` consecutive ranks, None for 1.

        After `join`; every rank must call it, also of the groups that are not its own.
        """
        if size == 1:
            return None
        group, _ = torch.distributed.new_subgroups(size, timeout=self.timeout)
        return group


def _own_address() -> str:
    import ray

    # Ray knows the address by which other nodes reach this one.
    if ray.is_initialized():
        return ray.util.get_node_ip_address()
    return socket.gethostbyname(socket.gethostname())
