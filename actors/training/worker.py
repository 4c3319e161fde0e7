"""What all training loops do in a Ray Train worker: start, sum over ranks, report to the driver."""

from __future__ import annotations

import time
from typing import Any

import ray.train
import ray.train.torch
import torch
from torch import Tensor

from rayward.actors.models.forward import RankContext
from rayward.actors.models.heads import TokenPolicy, TokenScalar
from rayward.actors.pulse import tell_of
from rayward.actors.training.engine import MetricSums, TrainEngine
from rayward.actors.training.job import Job
from rayward.configs.plan import optimizer_steps

REPORT_EVERY_S = 0.5


def start(job: Job) -> RankContext:
    """This worker's context, its threads and seeds set; from now on it gives signs of life."""
    context = ray.train.get_context()
    if job.signs:
        tell_of(f"{job.signs}-{context.get_world_rank()}")
        job.queue.put([{"worker": ray.get_runtime_context().current_actor}])
    torch.set_num_threads(job.role.compute_threads)
    torch.manual_seed(job.seed)
    # Ray Train shows a worker all GPUs that the run has on its node, and says which one is its own.
    device = ray.train.torch.get_device() if job.role.gpus else torch.device("cpu")
    return RankContext(context.get_world_rank(), context.get_world_size(), device)


def make_engine(
    job: Job, module: TokenPolicy | TokenScalar, rows: int, context: RankContext
) -> TrainEngine:
    """The engine that trains a module on so many rows (or rankings) an epoch."""
    # The schedule ends with the last step, so the engine has to know how many there will be.
    steps = optimizer_steps(rows, job.rows_per_step, job.epochs)
    return TrainEngine(
        module, job.optimizer, job.optimizer.learning_rate, steps, job.dtype, context.device
    )


def announce(job: Job, context: RankContext, doing: str) -> None:
    """Tell the driver that the model is loaded, and what comes before the first step.

    Its deadline for the start ends with this message: what comes now may take long.
    """
    if context.rank == 0:
        job.queue.put([{"doing": doing}])


def sum_over_ranks(sums: MetricSums) -> MetricSums:
    """Every sum over all ranks, which have the same names. A collective."""
    # One all-reduce for all of them; sorted, so that a number means the same on every rank.
    names = sorted(sums)
    values = add_over_ranks(torch.tensor([sums[name] for name in names], dtype=torch.float64))
    return dict(zip(names, values.tolist(), strict=True))


def add_over_ranks(values: Tensor) -> Tensor:
    """The sum of all ranks' values, on the CPU. A collective."""
    # NCCL has no collectives for tensors on the CPU.
    if torch.distributed.get_backend() == "nccl":
        values = values.to(ray.train.torch.get_device())
    torch.distributed.all_reduce(values)
    return values.cpu()


class Reporter:
    """What rank 0 tells the driver, in few messages: one costs as much as a small training step."""

    def __init__(self, job: Job, context: RankContext):
        self.queue, self.silent = job.queue, context.rank != 0
        self.waiting: list[dict[str, Any]] = []
        # Of all steps, for checkpoints: the driver may die before it has written what it was told.
        self.history: list[dict[str, Any]] = []
        self.sent_at = time.monotonic()

    def tell(self, message: dict[str, Any]) -> None:
        """Send the message, and those that wait, if the last were sent some time ago."""
        # All ranks have the same sums; one report of them is enough.
        if not self.silent:
            self.waiting.append(message)
            if "step" in message:
                self.history.append(message)
        if time.monotonic() - self.sent_at > REPORT_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Send what waits."""
        if self.waiting:
            self.queue.put(self.waiting)
        self.waiting, self.sent_at = [], time.monotonic()
