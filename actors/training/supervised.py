"""The training loop of SFT, as Ray Train runs it in each worker.

It streams metrics to the driver through a queue and ends by writing a Hugging Face folder.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor, nn

from rayward.actors.models.attention import attend_to_packs
from rayward.actors.models.forward import packed_inputs, weighted_inputs
from rayward.actors.models.lean import skip_unread
from rayward.actors.models.load import load_policy
from rayward.actors.pulse import tick
from rayward.actors.training.engine import MetricSums, TrainEngine
from rayward.actors.training.job import Job
from rayward.actors.training.resume import Resume
from rayward.actors.training.validation import Validation
from rayward.actors.training.worker import announce, make_engine, start, sum_over_ranks
from rayward.algorithms.sequence import weighted_nll
from rayward.data.packing import epoch_order, step_batches
from rayward.data.ragged import Ragged, Rows
from rayward.data.templates.tokenizer import load_tokenizer


@dataclass(frozen=True)
class WeightedRows:
    """Token rows of SFT: ids and the loss weight of each token."""

    ids: Rows
    weights: Rows


def sft_loop(job: Job) -> None:
    """Supervised fine-tuning: weighted mean of the token losses of each optimizer step."""
    context = start(job)
    train, heldout = ray.get(job.train), ray.get(job.heldout)
    policy = load_policy(job.model, job.dtype)
    # `packing` null packs where the model has an attention that is fast on packs.
    packs_well = job.packing is not False and attend_to_packs(
        policy.lm, context.device, job.packing
    )
    packed = packs_well if job.packing is None else job.packing
    skip_unread(policy)
    engine = make_engine(job, policy, len(train.ids), context)

    if packed:
        cut, make_inputs = context.packs, packed_inputs
        require_separate_rows(engine)
    else:
        cut, make_inputs = context.micro_batches, weighted_inputs

    def loss(
        module: nn.Module, rows: list[int], data: WeightedRows = train
    ) -> tuple[Tensor, MetricSums]:
        ids, weights = data.ids.take(rows), data.weights.take(rows)
        inputs, weights_N = make_inputs(ids, weights, context.device)
        return weighted_nll(module(*inputs)[0], weights_N), {}

    # In one sum, as of rows in memory: its last bits depend on the order.
    heldout_weight = float(heldout.weights.take(range(len(heldout.ids))).values.sum())

    def heldout_loss() -> float:
        if not len(heldout.ids):
            return math.nan

        def over_micro_batches(module: nn.Module) -> float:
            total = 0.0
            for rows in cut(heldout.ids.lengths, job.optimizer.micro_batch_tokens):
                total += float(loss(module, rows, heldout)[0])
                tick()
            return total

        # Each rank has the sum of its own micro-batches; the weights are those of all rows.
        total = sum_over_ranks({"loss": engine.infer(over_micro_batches)})["loss"]
        return total / heldout_weight

    def write() -> None:
        engine.save(
            job.output, load_tokenizer(job.tokenizer), lambda path: load_policy(path, job.dtype)
        )

    validation = Validation(
        "heldout_loss", False, job, engine.total_steps, heldout_loss, write, at_end=True
    )
    resume = Resume(job, context, engine)
    reporter = resume.reporter
    announce(job, context, "held-out loss before training")
    before = float(resume.known("heldout_loss_before", heldout_loss))
    reporter.tell({"heldout_loss_before": before})
    resume.load(validation)
    every_step = (
        (epoch, rows)
        for epoch in range(job.epochs)
        for rows in step_batches(epoch_order(len(train.ids), job.seed, epoch), job.rows_per_step)
    )
    for epoch, rows in resume.left(every_step):
        started_at = time.perf_counter()
        step_ids = train.ids.take(rows)
        # All ranks know all rows of the step, so the denominator needs no collective.
        weight = float(train.weights.take(rows).values.sum())
        plan = cut(step_ids.lengths, job.optimizer.micro_batch_tokens)
        # The plan counts rows of the step; `loss` takes rows of the training data.
        micro_batches = [[rows[i] for i in micro_batch] for micro_batch in plan]
        sums = engine.step(micro_batches, loss, weight)
        total = sum_over_ranks({"loss": sums["loss_sum"]})["loss"]
        seconds = time.perf_counter() - started_at
        metrics: dict[str, Any] = {
            "step": engine.steps_done,
            "epoch": epoch,
            "loss": total / weight,
            "grad_norm": sums["grad_norm"],
            "learning_rate": sums["learning_rate"],
            "time": {"tokens_per_s": int(step_ids.lengths.sum()) / seconds},
        }
        reporter.tell(metrics | validation.after(engine.steps_done))
        if resume.after(validation):
            return

    resume.end(validation)
    reporter.tell({"kept": validation.end(engine.steps_done)})
    reporter.flush()


def require_separate_rows(engine: TrainEngine) -> None:
    """ValueError where attention of a packed model reads across rows. A collective under ZeRO-3."""
    # Two rows of different tokens and lengths: had the second seen the first, its log-probs would
    # be others than alone.
    rows = (np.arange(1, 9), np.arange(3, 14))
    ids = Ragged.of([(row % engine.vocab_size).tolist() for row in rows])
    weights = Ragged(np.ones(len(ids.values), np.float32), ids.lengths)
    packed, _ = packed_inputs(ids, weights, engine.device)
    padded, _ = weighted_inputs(ids, weights, engine.device)
    packed_N: Tensor = engine.infer(lambda module: module(*packed)[0])
    alone_N: Tensor = engine.infer(lambda module: module(*padded)[0])
    gap = float((packed_N - alone_N).abs().max())
    # Rounding differs with the layout; a row that sees another is off by far more.
    allowed = 1e-3 if packed_N.dtype == torch.float32 else 0.2
    if gap > allowed:
        raise ValueError(
            f"packing: log-probs of packed rows differ by {gap:.2g} from those of the rows alone, "
            "so this model's attention does not keep rows apart; set packing: false"
        )
