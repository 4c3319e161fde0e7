"""Do processes on different nodes reach each other as training groups will, and how fast?"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from rayward.pipelines.model_tools.found import Found

START_S, WITHIN_S = 300, 90
"""Until all processes are there, which import torch; and until they have found each other."""
BYTES = 32 * 2**20
REPEATS = 3


class Rank:
    """A process of one node."""

    def __init__(self, rank: int, ranks: int) -> None:
        from rayward.actors.process import Rendezvous

        self.rendezvous = Rendezvous(rank, ranks, WITHIN_S)

    def open(self) -> tuple[str, int]:
        """Rank 0: (host, port) for the others."""
        return self.rendezvous.open()

    def measure(self, host: str, port: int, gpus: int) -> float:
        """Seconds that the best of some all-reduces of BYTES takes. A collective."""
        import torch

        context = self.rendezvous.join(host, port, gpus)
        block, seconds = torch.ones(BYTES // 4, device=context.device), []
        for _ in range(REPEATS):
            torch.distributed.barrier()
            started_at = time.perf_counter()
            torch.distributed.all_reduce(block)
            block[0].item()  # waits for the device
            seconds.append(time.perf_counter() - started_at)
        torch.distributed.destroy_process_group()
        return min(seconds)


def between_nodes(nodes: Sequence[dict[str, Any]]) -> Iterator[Found]:
    """One process a node over Gloo, and one a node with a GPU over NCCL; nothing of one node."""
    if len(nodes) > 1:
        yield _over("Gloo", nodes, 0)
    import torch

    with_gpus = [node for node in nodes if node["Resources"].get("GPU", 0) >= 1]
    # A cluster may count what it calls GPUs where torch knows none.
    if len(with_gpus) > 1 and torch.version.cuda:
        yield _over("NCCL", with_gpus, 1)


def _over(name: str, nodes: Sequence[dict[str, Any]], gpus: int) -> Found:
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    what, addresses = f"{name} between nodes", [node["NodeManagerAddress"] for node in nodes]
    actors = [
        ray.remote(num_cpus=0, num_gpus=gpus)(Rank)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote(rank, len(nodes))
        for rank, node in enumerate(nodes)
    ]
    try:
        try:
            ray.get([actor.__ray_ready__.remote() for actor in actors], timeout=START_S)
        except GetTimeoutError:
            busy = f"no process on each of {', '.join(addresses)} within {START_S} s"
            return Found(what, "not measured", note=f"{busy}: others use them, or they are slow")
        host, port = ray.get(actors[0].open.remote(), timeout=WITHIN_S)
        asked = [actor.measure.remote(host, port, gpus) for actor in actors]
        seconds = max(ray.get(asked, timeout=WITHIN_S))
    except GetTimeoutError:
        apart = f"{', '.join(addresses)} do not reach each other within {WITHIN_S} s"
        ask = "are the ports between them open, and is that the right interface?"
        other = f"{name.upper()}_SOCKET_IFNAME names another"
        return Found(what, "no answer", f"{apart}: {ask} {other}")
    except RayError as error:
        said = str(getattr(error, "cause", None) or error).strip().splitlines()
        reason = (said or [type(error).__name__])[-1]
        return Found(what, "failed", f"{', '.join(addresses)}: {reason}")
    finally:
        for actor in actors:
            ray.kill(actor)
    rate = BYTES / seconds / 1e9
    return Found(what, f"{len(nodes)} nodes, {BYTES >> 20} MiB summed at {rate:.2f} GB/s")
