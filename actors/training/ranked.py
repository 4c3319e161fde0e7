"""The training loops that learn from rankings: the reward model, and DPO, whose policy is a reward
model of its own.

Both give every answer of a ranking a score and take the same losses of it. DPO's score is implicit:
by how much the policy prefers the answer more than the reference, the model it starts from, does
(arXiv:2305.18290).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from rayward.actors.models.forward import RankContext, collect, sequence_inputs, weighted_inputs
from rayward.actors.models.layout import shares
from rayward.actors.models.load import load_policy, load_scalar
from rayward.actors.models.prefix import pays, shared_answers, shared_inputs, shared_lengths
from rayward.actors.training.engine import MetricSums, TrainEngine
from rayward.actors.training.job import Job
from rayward.actors.training.supervised import (
    Reporter,
    add_over_ranks,
    engine_of,
    say,
    start,
    sum_over_ranks,
)
from rayward.actors.training.validation import Validation
from rayward.algorithms.preference import (
    implicit_rewards,
    pair_accuracy,
    pair_split,
    plackett_luce,
    zero_sum_penalty,
)
from rayward.algorithms.sequence import segment_sum
from rayward.configs.sections.training import Dpo, Preferences, Reward
from rayward.data.packing import epoch_order, step_batches
from rayward.data.ragged import Ragged, Shard
from rayward.data.templates.tokenizer import load_tokenizer


@dataclass(frozen=True)
class RankedRows:
    """Token rows of every answer's conversation, a ranking's answers side by side, best first.

    `ranks`: of every answer, rising in a ranking; equal ones are ties. `answers`: 1 at the tokens
    of the answer itself, 0 before. `reference`: log-prob of each answer by the reference model of
    DPO, in nats.
    """

    ids: Ragged
    sizes: np.ndarray
    ranks: np.ndarray
    answers: Ragged
    reference: np.ndarray | None = None

    def take(self, rankings: list[int]) -> RankedRows:
        """The given rankings with all their answers."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        rows = np.array(
            [row for r in rankings for row in range(starts[r], starts[r + 1])], dtype=np.int64
        )
        return RankedRows(
            self.ids.take(rows),
            self.sizes[np.array(rankings, dtype=np.int64)],
            self.ranks[rows],
            self.answers.take(rows),
            None if self.reference is None else self.reference[rows],
        )


def reward_loop(job: Job, place: RankContext | None = None) -> None:
    """Reward-model training, then the scores of the held-out answers. `place`: null asks Ray
    Train.
    """
    place = place or start(job)
    train, heldout = ray.get(job.train), ray.get(job.heldout)
    module = load_scalar(job.model, job.dtype, seed=job.seed)
    engine = engine_of(job, module, len(train.sizes), place)
    settings, device = job.preferences, place.device
    assert isinstance(settings, Reward)
    say(job, place, "first step")
    share = _shares(job, engine, module.classifier, train)

    def scores(module: Any, rankings: RankedRows) -> Tensor:
        sizes = rankings.sizes.tolist()
        if share and sizes:
            return module(**shared_inputs(rankings.ids, sizes, device))
        return module(*sequence_inputs(rankings.ids, device))

    def loss(module: Any, rankings: RankedRows) -> tuple[Tensor, MetricSums]:
        scores_N = scores(module, rankings)
        value, sums = ranking_loss(settings, scores_N, rankings)
        return value + settings.zero_sum * zero_sum_penalty(scores_N, rankings.sizes.tolist()), sums

    def score(ids: Ragged) -> Shard:
        return _over_rows(
            job, place, engine, ids, lambda m, rows: m(*sequence_inputs(ids.take(rows), device))
        )

    def heldout_scores() -> Shard:
        return _over_rankings(job, place, engine, heldout, scores, share)

    def write() -> Shard:
        """The model with its scores centred; as it trains they are not."""
        config, offset = module.classifier.config, module.offset
        if job.centre is not None:
            found = score(ray.get(job.centre)).values.values
            sums = sum_over_ranks({"score": float(found.sum()), "count": float(len(found))})
            config.score_offset = offset + sums["score"] / sums["count"]
        found = heldout_scores()
        engine.save(
            job.output,
            load_tokenizer(job.tokenizer),
            lambda path: load_scalar(path, job.dtype).to(device),
        )
        config.score_offset = offset
        return found

    watch = _watch(job, engine.total_steps, heldout, heldout_scores, write)
    _learn(job, place, engine, train, loss, share, watch)


def dpo_loop(job: Job, place: RankContext | None = None) -> None:
    """Direct preference optimization, then the implicit rewards of the held-out answers. `place` as
    above.
    """
    place = place or start(job)
    train, heldout = ray.get(job.train), ray.get(job.heldout)
    settings, device = job.preferences, place.device
    assert isinstance(settings, Dpo)
    module = load_policy(job.model, job.dtype)
    engine = engine_of(job, module, len(train.sizes), place)
    share = _shares(job, engine, module.lm, train)

    def logprobs(module: Any, rankings: RankedRows) -> Tensor:
        """[N] log-prob of each answer, the sum over its tokens."""
        ids, answers, sizes = rankings.ids, rankings.answers, rankings.sizes.tolist()
        if share and sizes:
            found_N, _ = module(**shared_answers(ids, sizes, answers, device))
        else:
            found_N, _ = module(*weighted_inputs(ids, answers, device)[0])
        return segment_sum(found_N, [int(answers[row].sum()) for row in range(len(ids))])

    def of_all(of: RankedRows) -> Shard:
        return _over_rankings(job, place, engine, of, logprobs, share)

    def with_reference(of: RankedRows) -> RankedRows:
        """The engine still holds the reference: nothing is trained yet."""
        part, own_N = of_all(of), torch.zeros(len(of.ids), dtype=torch.float64)
        own_N[part.rows] = torch.from_numpy(part.values.values).double()
        return replace(of, reference=add_over_ranks(own_N).float().numpy())

    say(job, place, "log-probs of the reference, of all rows")
    train, heldout = with_reference(train), with_reference(heldout)

    def loss(module: Any, rankings: RankedRows) -> tuple[Tensor, MetricSums]:
        own_N = logprobs(module, rankings)
        reference_N = torch.from_numpy(rankings.reference).to(device)
        value, sums = ranking_loss(
            settings, implicit_rewards(own_N, reference_N, settings.beta), rankings
        )
        moved = (own_N.detach() - reference_N).cpu().numpy()
        last = np.cumsum(rankings.sizes)
        return value, sums | {
            "best_moved_sum": float(moved[last - rankings.sizes].sum()),
            "worst_moved_sum": float(moved[last - 1].sum()),
        }

    def heldout_rewards() -> Shard:
        part = of_all(heldout)
        moved = part.values.values - heldout.reference[part.rows]
        return Shard(part.rows, part.values.like(settings.beta * moved))

    def write() -> Shard:
        found = heldout_rewards()
        engine.save(
            job.output,
            load_tokenizer(job.tokenizer),
            lambda path: load_policy(path, job.dtype).to(device),
        )
        return found

    watch = _watch(job, engine.total_steps, heldout, heldout_rewards, write)
    _learn(job, place, engine, train, loss, share, watch)


def _watch(
    job: Job,
    steps: int,
    heldout: RankedRows,
    scores: Callable[[], Shard],
    write: Callable[[], Shard],
) -> Validation:
    """Looks at the share of held-out pairs that are in their order, over so many steps of
    training.
    """

    def accuracy() -> float:
        if not len(heldout.ids):
            return math.nan
        part, all_N = scores(), torch.zeros(len(heldout.ids), dtype=torch.float64)
        all_N[part.rows] = torch.from_numpy(part.values.values).double()
        ranks_N = torch.from_numpy(heldout.ranks)
        correct, pairs = pair_accuracy(
            add_over_ranks(all_N).float(), heldout.sizes.tolist(), ranks_N
        )
        return correct / pairs if pairs else math.nan

    return Validation("heldout_accuracy", True, job, steps, accuracy, write)


def ranking_loss(
    settings: Preferences, scores_N: Tensor, rankings: RankedRows
) -> tuple[Tensor, MetricSums]:
    """Sum over rankings of the loss that the settings ask for; and how many pairs there are, and
    how many are right.
    """
    sizes, ranks_N = rankings.sizes.tolist(), torch.from_numpy(rankings.ranks).to(scores_N.device)
    ties = ranks_N if settings.ties == "average" else None
    if settings.loss == "plackett_luce":
        value = plackett_luce(scores_N, sizes, ranks_N=ties)
    else:
        value = pair_split(
            scores_N, sizes, ranks_N=ranks_N if settings.margin else ties, margin=settings.margin
        )
    correct, pairs = pair_accuracy(scores_N.detach(), sizes, ranks_N)
    return value, {"correct_sum": correct, "pairs_sum": float(pairs)}


def _shares(job: Job, engine: TrainEngine, model: Any, train: RankedRows) -> bool:
    """Whether answers share the tokens of their prompt: where that is wanted, or pays, and the
    model proves to do it.

    ValueError where it is wanted and the model's attention cannot. A collective under ZeRO-3.
    """
    settings = job.preferences
    if settings.shared_prompts is None and not pays(
        train.ids, train.sizes, model.config.get_text_config().hidden_size
    ):
        return False
    dpo = isinstance(settings, Dpo)

    def run(*rows: Tensor, **shared: Any) -> Tensor:
        found = engine.infer(lambda module: module(*rows, **shared))
        return found[0] if dpo else found

    setting = f"{'dpo' if dpo else 'reward'}.shared_prompts"
    return shares(model, run, engine.device, dpo, settings.shared_prompts, setting)


def _learn(
    job: Job,
    place: RankContext,
    engine: TrainEngine,
    train: RankedRows,
    loss: Callable[[Any, RankedRows], tuple[Tensor, MetricSums]],
    share: bool,
    watch: Validation,
) -> None:
    """The optimizer steps of all epochs, then the model into its folder and its held-out scores to
    the driver.

    With `share`, the answers of a ranking are one row.
    """
    reporter, budget = Reporter(job, place), job.optimizer.micro_batch_tokens
    cost = shared_lengths(train.ids, train.sizes) if share else None
    for epoch in range(job.epochs):
        for rankings in step_batches(
            epoch_order(len(train.sizes), job.seed, epoch), job.rows_per_step
        ):
            begun = time.perf_counter()
            step = train.take(rankings)
            if cost is not None:
                plan = place.packs(cost[rankings], budget)
            else:
                plan = _rankings_of(
                    step, place.micro_batches(step.ids.lengths, budget, step.sizes.tolist())
                )
            sums = engine.step([step.take(micro) for micro in plan], loss, len(rankings))
            total = sum_over_ranks(
                {name: value for name, value in sums.items() if name.endswith("_sum")}
            )
            correct, pairs = total.pop("correct_sum"), total.pop("pairs_sum")
            reporter.tell(
                {
                    "step": engine.steps_done,
                    "epoch": epoch,
                    **{
                        name.removesuffix("_sum"): value / len(rankings)
                        for name, value in total.items()
                    },
                    "pair_accuracy": correct / max(pairs, 1),
                    "grad_norm": sums["grad_norm"],
                    "learning_rate": sums["learning_rate"],
                    "time": {
                        "tokens_per_s": int(step.ids.lengths.sum()) / (time.perf_counter() - begun)
                    },
                }
                | watch.after(engine.steps_done),
            )
    reporter.tell({"kept": watch.end(engine.steps_done)})
    reporter.flush()
    job.queue.put([{"heldout_scores": watch.told}])


def _rankings_of(step: RankedRows, plan: list[list[int]]) -> list[list[int]]:
    """For micro-batches of rows, which hold whole rankings in order: the rankings of each."""
    owner = np.repeat(np.arange(len(step.sizes)), step.sizes)
    return [list(dict.fromkeys(owner[rows].tolist())) for rows in plan]


def _over_rankings(
    job: Job,
    place: RankContext,
    engine: TrainEngine,
    of: RankedRows,
    value: Callable[[Any, RankedRows], Tensor],
    share: bool,
) -> Shard:
    """Without gradients, the `value` of each answer of this rank's rankings, or of its rows where
    none are shared.
    """
    if not share:
        each = replace(of, sizes=np.ones(len(of.ids), np.int64))
        return _over_rows(
            job, place, engine, of.ids, lambda module, rows: value(module, each.take(rows))
        )
    rows_of = np.split(np.arange(len(of.ids)), np.cumsum(of.sizes)[:-1])
    plan = place.packs(shared_lengths(of.ids, of.sizes), job.optimizer.micro_batch_tokens)
    infer = lambda own: engine.infer(lambda module: value(module, of.take(own)))  # noqa: E731
    found = (
        ([int(row) for ranking in own for row in rows_of[ranking]], infer(own)) for own in plan
    )
    return collect(found, np.ones(len(of.ids), np.int64))


def _over_rows(
    job: Job,
    place: RankContext,
    engine: TrainEngine,
    ids: Ragged,
    value: Callable[[Any, list[int]], Tensor],
) -> Shard:
    """One number for each of this rank's rows, without gradients. `value` gives them for a
    micro-batch.
    """
    plan = place.micro_batches(ids.lengths, job.optimizer.micro_batch_tokens)
    found = ((rows, engine.infer(lambda module, rows=rows: value(module, rows))) for rows in plan)
    return collect(found, np.ones(len(ids), np.int64))
