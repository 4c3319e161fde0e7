"""How a process of a training group finds the others, and what it computes on."""

from __future__ import annotations

import datetime
import os
import socket
import time

import torch

from rayward.actors.models.forward import RankContext
from rayward.configs.schema import Config


def device(gpus: float) -> torch.device:
    """The device of a process that was given `gpus` GPUs (Ray shows it only its own)."""
    return torch.device("cuda", 0) if gpus else torch.device("cpu")


def workers_per_engine(config: Config) -> int:
    """GPUs, and so processes, that a rollout engine splits the model over; 1 on the CPU."""
    return max(1, int(config.resources.rollout.gpus))


def peak_flops(dtype: str, where: torch.device, seconds: float = 0.2) -> float:
    """Floating-point operations a second of the product of two square matrices here and now: the
    best of many.
    """
    size = 8192 if where.type == "cuda" else 1024  # so large that launch and wait do not count
    a = torch.randn(size, size, device=where, dtype=getattr(torch, dtype))
    best, until = 0.0, time.perf_counter() + seconds
    while (begun := time.perf_counter()) < until:
        (a @ a)[0, 0].item()  # waits for the device
        best = max(best, 2 * size**3 / (time.perf_counter() - begun))
    return best


def copy_rate(size_bytes: int = 2**27) -> float:
    """Bytes a second of a copy in the machine's memory, the best of three: what a weight transfer
    is held against.
    """
    source, target = (
        torch.ones(size_bytes, dtype=torch.uint8),
        torch.zeros(size_bytes, dtype=torch.uint8),
    )
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - begun)
    return size_bytes / min(seconds)


class Rendezvous:
    """Rank 0 opens a key-value store on a free port, everybody joins it: no port is guessed, so
    none is taken.
    """

    def __init__(self, rank: int, world_size: int, timeout_s: float):
        self.rank, self.world_size = rank, world_size
        self.timeout = datetime.timedelta(seconds=timeout_s)
        self.store: torch.distributed.TCPStore | None = None

    def open(self) -> tuple[str, int]:
        """Rank 0: start the store; (host, port) for the others."""
        host = _own_address()
        self.store = torch.distributed.TCPStore(
            host, 0, is_master=True, wait_for_workers=False, timeout=self.timeout
        )
        return host, self.store.port

    def join(self, host: str, port: int, gpus: float) -> RankContext:
        """Enter the process group: NCCL with GPUs, gloo without."""
        if self.store is None:
            self.store = torch.distributed.TCPStore(
                host, port, is_master=False, timeout=self.timeout
            )
        where = device(gpus)
        os.environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.world_size),
            LOCAL_RANK="0",
            MASTER_ADDR=host,
            MASTER_PORT=str(port),
            DS_ACCELERATOR=where.type,
        )
        if where.type == "cuda":
            torch.cuda.set_device(where)
        torch.distributed.init_process_group(
            "nccl" if where.type == "cuda" else "gloo",
            store=self.store,
            rank=self.rank,
            world_size=self.world_size,
            timeout=self.timeout,
        )
        return RankContext(self.rank, self.world_size, where)

    def subgroup(self, size: int) -> torch.distributed.ProcessGroup | None:
        """This rank's group of `size` consecutive ranks, None for 1. After `join`; every rank must
        call it.
        """
        return torch.distributed.new_subgroups(size, timeout=self.timeout)[0] if size > 1 else None


def _own_address() -> str:
    import ray

    if ray.is_initialized():
        return ray.util.get_node_ip_address()
    return socket.gethostbyname(socket.gethostname())
