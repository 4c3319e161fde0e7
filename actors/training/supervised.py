"""What Ray Train runs in each worker: the training loop of SFT, and what all loops share
(actors/training/ranked.py has others).

A loop streams metrics to the driver through a queue and ends by writing a Hugging Face folder.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.train.torch
import torch
from torch import Tensor, nn

from rayward.actors.models.attention import attend_to_packs
from rayward.actors.models.cpu.lean import skip_unread
from rayward.actors.models.forward import (
    RankContext,
    packed_inputs,
    weighted_inputs,
)
from rayward.actors.models.load import load_policy
from rayward.actors.training.engine import MetricSums, TrainEngine
from rayward.actors.training.job import Job
from rayward.actors.training.validation import Validation
from rayward.algorithms.sequence import weighted_nll
from rayward.configs.plan import optimizer_steps
from rayward.data.packing import epoch_order, step_batches
from rayward.data.ragged import Ragged
from rayward.data.templates.tokenizer import load_tokenizer

REPORT_EVERY_S = 0.5


@dataclass(frozen=True)
class WeightedRows:
    """Token rows of SFT: ids and the loss weight of each token."""

    ids: Ragged
    weights: Ragged


def start(job: Job) -> RankContext:
    """This worker's place, its threads and seeds set."""
    context = ray.train.get_context()
    torch.set_num_threads(job.role.compute_threads)
    torch.manual_seed(job.seed)
    # Ray Train shows a worker all GPUs that the run has on its node, and says which one is its own.
    where = ray.train.torch.get_device() if job.role.gpus else torch.device("cpu")
    return RankContext(context.get_world_rank(), context.get_world_size(), where)


def engine_of(job: Job, module: nn.Module, rows: int, place: RankContext) -> TrainEngine:
    """The engine that trains a module on so many rows (or rankings)."""
    steps = optimizer_steps(rows, job.rows_per_step, job.epochs)
    return TrainEngine(
        module, job.optimizer, job.optimizer.learning_rate, steps, job.dtype, place.device
    )


def say(job: Job, place: RankContext, doing: str) -> None:
    """Tell the driver that the model is loaded, and what comes before the first step: it may take
    long.
    """
    if place.rank == 0:
        job.queue.put([{"doing": doing}])


def sum_over_ranks(sums: MetricSums) -> MetricSums:
    """Every sum over all ranks, which have the same names."""
    names = sorted(sums)
    values = add_over_ranks(torch.tensor([sums[name] for name in names], dtype=torch.float64))
    return dict(zip(names, values.tolist(), strict=True))


def add_over_ranks(values: Tensor) -> Tensor:
    """The sum of all ranks' values, on the CPU."""
    if torch.distributed.get_backend() == "nccl":
        values = values.to(ray.train.torch.get_device())
    torch.distributed.all_reduce(values)
    return values.cpu()


class Reporter:
    """What rank 0 tells the driver, in few messages: a call to the queue costs as much as a small
    training step.
    """

    def __init__(self, job: Job, place: RankContext):
        self.queue, self.silent = job.queue, place.rank != 0
        self.waiting: list[dict[str, Any]] = []
        self.sent = time.monotonic()

    def tell(self, message: dict[str, Any]) -> None:
        """Send now and then."""
        if not self.silent:
            self.waiting.append(message)
        if time.monotonic() - self.sent > REPORT_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Send what waits."""
        if self.waiting:
            self.queue.put(self.waiting)
        self.waiting, self.sent = [], time.monotonic()


def sft_loop(job: Job) -> None:
    """Supervised fine-tuning: weighted mean of the token losses of each optimizer step."""
    place = start(job)
    reporter = Reporter(job, place)
    train, heldout = ray.get(job.train), ray.get(job.heldout)
    policy = load_policy(job.model, job.dtype)
    packs_well = job.packing is not False and attend_to_packs(policy.lm, place.device, job.packing)
    packed = packs_well if job.packing is None else job.packing
    skip_unread(policy)
    engine = engine_of(job, policy, len(train.ids), place)

    cut, as_inputs = (
        (place.packs, packed_inputs) if packed else (place.micro_batches, weighted_inputs)
    )
    if packed:
        require_separate_rows(engine)

    def loss(module: Any, rows: list[int], data: WeightedRows = train) -> tuple[Tensor, MetricSums]:
        inputs, weights_N = as_inputs(data.ids.take(rows), data.weights.take(rows), place.device)
        return weighted_nll(module(*inputs)[0], weights_N), {}

    def heldout_loss() -> float:
        if not len(heldout.ids):
            return math.nan
        total = 0.0
        for rows in cut(heldout.ids.lengths, job.optimizer.micro_batch_tokens):
            total += float(engine.infer(lambda module, rows=rows: loss(module, rows, heldout)[0]))
        return sum_over_ranks({"loss": total})["loss"] / float(heldout.weights.values.sum())

    def write() -> None:
        engine.save(
            job.output, load_tokenizer(job.tokenizer), lambda path: load_policy(path, job.dtype)
        )

    watch = Validation(
        "heldout_loss", False, job, engine.total_steps, heldout_loss, write, at_end=True
    )
    say(job, place, "held-out loss before training")
    reporter.tell({"heldout_loss_before": heldout_loss()})
    for epoch in range(job.epochs):
        for rows in step_batches(epoch_order(len(train.ids), job.seed, epoch), job.rows_per_step):
            begun = time.perf_counter()
            part = train.ids.take(rows)
            weight = float(train.weights.take(rows).values.sum())
            plan = cut(part.lengths, job.optimizer.micro_batch_tokens)
            sums = engine.step([[rows[i] for i in micro] for micro in plan], loss, weight)
            total = sum_over_ranks({"loss": sums["loss_sum"]})["loss"]
            reporter.tell(
                {
                    "step": engine.steps_done,
                    "epoch": epoch,
                    "loss": total / weight,
                    "grad_norm": sums["grad_norm"],
                    "learning_rate": sums["learning_rate"],
                    "time": {
                        "tokens_per_s": int(part.lengths.sum()) / (time.perf_counter() - begun)
                    },
                }
                | watch.after(engine.steps_done),
            )

    reporter.tell({"kept": watch.end(engine.steps_done)})
    reporter.flush()


def require_separate_rows(engine: TrainEngine) -> None:
    """ValueError where the attention of a packed model reads across rows. A collective under
    ZeRO-3.
    """
    ids = Ragged.of([np.arange(1, 9) % engine.vocab_size, np.arange(3, 14) % engine.vocab_size])
    weights = Ragged(np.ones(len(ids.values), np.float32), ids.lengths)
    packed, alone = (
        engine.infer(
            lambda module, inputs=inputs: module(*inputs(ids, weights, engine.device)[0])[0]
        )
        for inputs in (packed_inputs, weighted_inputs)
    )
    gap, allowed = (
        float((packed - alone).abs().max()),
        1e-3 if packed.dtype == torch.float32 else 0.2,
    )
    if gap > allowed:
        raise ValueError(
            f"packing: log-probs of packed rows differ by {gap:.2g} from those of the rows alone, "
            "so this model's attention does not keep rows apart; set packing: false"
        )
