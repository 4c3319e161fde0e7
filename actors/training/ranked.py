"""What the loops that learn from rankings share: the reward model's, and that of DPO, whose policy
is a reward model of its own. Both give every answer a score and take the same losses of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rayward.actors.models.forward import RankContext, collect
from rayward.actors.models.layout import shares
from rayward.actors.models.prefix import pays, shared_lengths
from rayward.actors.training.engine import MetricSums, TrainEngine
from rayward.actors.training.job import Job
from rayward.actors.training.rankings import RankedRows, rankings_of
from rayward.actors.training.resume import Resume
from rayward.actors.training.validation import Validation
from rayward.actors.training.worker import add_over_ranks, sum_over_ranks
from rayward.algorithms.preference import pair_accuracy
from rayward.configs.sections.training import Dpo, Preferences
from rayward.data.packing import epoch_order, step_batches
from rayward.data.ragged import Rows, Shard


def shares_prompts(
    settings: Preferences, engine: TrainEngine, model: PreTrainedModel, train: RankedRows
) -> bool:
    """Whether answers share the tokens of their prompt: where that is set or pays, and is proved.

    ValueError where it is set and the model's attention cannot. A collective under ZeRO-3.
    """
    # The same on every rank, as the rows are: either all go into the proof's forward or none.
    if settings.shared_prompts is None and not pays(
        train.ids, train.sizes, model.config.get_text_config().hidden_size
    ):
        return False
    dpo = isinstance(settings, Dpo)

    def run(*rows: Tensor, **shared: Any) -> Tensor:
        outputs = engine.infer(lambda module: module(*rows, **shared))
        return outputs[0] if dpo else outputs  # a policy returns entropies too

    setting = f"{'dpo' if dpo else 'reward'}.shared_prompts"
    return shares(model, run, engine.device, dpo, settings.shared_prompts, setting)


def score_validation(
    name: str,
    figure: Callable[[Tensor, RankedRows], float],
    job: Job,
    steps: int,
    heldout: RankedRows,
    scores: Callable[[], Shard],
    write: Callable[[], Shard],
) -> Validation:
    """Looks at a `figure` of the scores of all held-out answers; `scores`: this rank's part."""

    def measure() -> float:
        if not len(heldout.ids):
            return math.nan
        # The same number on every rank, by which all of them keep or leave a state.
        return figure(on_every_rank(scores(), len(heldout.ids)), heldout)

    return Validation(name, True, job, steps, measure, write)


def accuracy(scores_N: Tensor, heldout: RankedRows) -> float:
    """The share of held-out pairs that scores put in their order; NaN without pairs."""
    ranks_N = torch.from_numpy(heldout.ranks)
    correct, pairs = pair_accuracy(scores_N, heldout.sizes.tolist(), ranks_N)
    return correct / pairs if pairs else math.nan


ACCURACY = ("heldout_accuracy", accuracy)
"""The validation of rankings."""


class Steps:
    """In which order rankings are learned from, what comes before a step, what is told of it."""

    def __init__(self, job: Job, rankings: int):
        self.job, self.rankings = job, rankings

    def order(self, epoch: int) -> list[int]:
        """The rankings of an epoch."""
        return epoch_order(self.rankings, self.job.seed, epoch)

    def before(self, rankings: list[int]) -> dict[str, float]:
        """Figures of the step to come, of these rankings. A collective."""
        return {}

    def figures(self, totals: MetricSums, rankings: int) -> dict[str, float]:
        """Of the sums over all ranks of a step."""
        # A share of pairs; all others are means over rankings, as the loss is.
        correct, pairs = totals.pop("correct_sum"), totals.pop("pairs_sum")
        means = {name.removesuffix("_sum"): value / rankings for name, value in totals.items()}
        return means | {"pair_accuracy": correct / max(pairs, 1)}


def learn(
    job: Job,
    context: RankContext,
    engine: TrainEngine,
    train: RankedRows,
    loss: Callable[[nn.Module, RankedRows], tuple[Tensor, MetricSums]],
    share: bool,
    validation: Validation,
    resume: Resume,
    steps: Steps | None = None,
) -> None:
    """All optimizer steps that are left, then the model into its folder and its held-out scores to
    the driver.

    With `share`, the answers of a ranking are one row.
    """
    steps = steps or Steps(job, len(train.sizes))
    reporter, budget = resume.reporter, job.optimizer.micro_batch_tokens
    resume.load(validation)
    # Tokens of each ranking as one row, by which rankings are packed.
    costs = shared_lengths(train.ids, train.sizes) if share else None
    every_step = (
        (epoch, rankings)
        for epoch in range(job.epochs)
        for rankings in step_batches(steps.order(epoch), job.rows_per_step)
    )
    for epoch, rankings in resume.left(every_step):
        started_at = time.perf_counter()
        told = steps.before(rankings)
        step = train.take(rankings)
        # A ranking stays in one micro-batch: its loss compares its answers with each other.
        if costs is not None:
            plan = context.packs(costs[rankings], budget)
        else:
            rows = context.micro_batches(step.ids.lengths, budget, step.sizes.tolist())
            plan = rankings_of(step, rows)
        # All ranks know all rankings of the step: the denominator is the global count.
        sums = engine.step([step.take(part) for part in plan], loss, len(rankings))
        totals = sum_over_ranks(
            {name: value for name, value in sums.items() if name.endswith("_sum")}
        )
        seconds = time.perf_counter() - started_at
        metrics: dict[str, Any] = {
            "step": engine.steps_done,
            "epoch": epoch,
            **steps.figures(totals, len(rankings)),
            **told,
            "grad_norm": sums["grad_norm"],
            "learning_rate": sums["learning_rate"],
            "time": {"tokens_per_s": int(step.ids.lengths.sum()) / seconds},
        }
        reporter.tell(metrics | validation.after(engine.steps_done))
        if resume.after(validation):
            return
    resume.end(validation)
    reporter.tell({"kept": validation.end(engine.steps_done)})
    reporter.flush()
    # Not by the reporter, which is silent on other ranks: each has the scores of its own rows.
    job.queue.put([{"heldout_scores": validation.result}])


def on_every_rank(part: Shard, num_rows: int) -> Tensor:
    """[rows] fp32 on the CPU: the numbers of all ranks. A collective."""
    # Every row is one rank's, and 0 on all others, so the sum over ranks is the number itself.
    values_N = torch.zeros(num_rows, dtype=torch.float64)
    values_N[part.rows] = torch.from_numpy(part.values.values).double()
    return add_over_ranks(values_N).float()


def over_rankings(
    job: Job,
    context: RankContext,
    engine: TrainEngine,
    data: RankedRows,
    score: Callable[[Any, RankedRows], Tensor],
    share: bool,
) -> Shard:
    """What `score` gives for the answers of this rank's part of the data, without gradients.

    A rank's part is whole rankings with `share`, else single rows.
    """
    if not share:
        # Without a loss nothing compares the answers: dealt out one by one they need less padding.
        singles = replace(data, sizes=np.ones(len(data.ids), np.int64))
        return over_rows(
            job, context, engine, data.ids, lambda module, rows: score(module, singles.take(rows))
        )
    plan = context.packs(shared_lengths(data.ids, data.sizes), job.optimizer.micro_batch_tokens)

    def scores_of(rankings: list[int]) -> Tensor:
        return engine.infer(lambda module: score(module, data.take(rankings)))

    results = ((data.rows_of(rankings), scores_of(rankings)) for rankings in plan)
    return collect(results, np.ones(len(data.ids), np.int64))


def over_rows(
    job: Job,
    context: RankContext,
    engine: TrainEngine,
    ids: Rows,
    score: Callable[[Any, list[int]], Tensor],
) -> Shard:
    """One number for each of this rank's rows, without gradients; `score` gives a micro-batch's."""
    plan = context.micro_batches(ids.lengths, job.optimizer.micro_batch_tokens)

    def scores_of(rows: list[int]) -> Tensor:
        return engine.infer(lambda module: score(module, rows))

    return collect(((rows, scores_of(rows)) for rows in plan), np.ones(len(ids), np.int64))
