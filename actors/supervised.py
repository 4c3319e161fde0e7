"""The training loops of SFT and of the reward model: what Ray Train runs in each worker.

Both stream metrics to the driver through a queue and end by writing a Hugging Face folder.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.train.torch
import torch
from torch import Tensor

from actors.engine import Sums, TrainEngine
from actors.forward import (
    Part,
    Place,
    packed_inputs,
    require_separate_rows,
    sequence_inputs,
    to_device,
    weighted_inputs,
)
from actors.models import load_policy, load_scalar
from actors.prefix import pays, shared_inputs, shared_lengths
from actors.process import set_threads
from algorithms.preference import pair_accuracy, pair_split, plackett_luce, zero_sum_penalty
from algorithms.sequence import weighted_nll
from configs.plan import optimizer_steps
from configs.schema import Optimizer, Reward, Role
from data.packing import epoch_order, step_batches
from data.ragged import Ragged

REPORT_EVERY_S = 0.5


@dataclass(frozen=True)
class Rows:
    """Token rows of SFT: ids and the loss weight of each token."""

    ids: Ragged
    weights: Ragged


@dataclass(frozen=True)
class RankedRows:
    """Token rows of reward training: every answer's conversation, a ranking's answers side by side, best first.

    `ranks`: of every answer, rising in a ranking; equal ones are ties.
    """

    ids: Ragged
    sizes: np.ndarray
    ranks: np.ndarray

    def take(self, rankings: list[int]) -> RankedRows:
        """The given rankings with all their answers."""
        if not rankings:
            return RankedRows(self.ids.take([]), self.sizes[:0], self.ranks[:0])
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        rows = np.concatenate([np.arange(starts[r], starts[r + 1]) for r in rankings])
        return RankedRows(self.ids.take(rows), self.sizes[rankings], self.ranks[rows])


@dataclass(frozen=True)
class Job:
    """Everything a worker needs; data travels by reference through the object store."""

    model: str
    tokenizer: str
    output: str
    train: Any
    heldout: Any
    epochs: int
    rows_per_step: int
    optimizer: Optimizer
    dtype: str
    seed: int
    role: Role
    queue: Any
    packing: bool = False
    reward: Reward | None = None
    centre: Any = None


def _start(job: Job) -> Place:
    context = ray.train.get_context()
    set_threads(job.role.threads)
    torch.manual_seed(job.seed)
    # Ray Train shows a worker all GPUs that the run has on its node, and says which one is its own.
    where = ray.train.torch.get_device() if job.role.gpus else torch.device("cpu")
    return Place(context.get_world_rank(), context.get_world_size(), where)


def _sum_over_ranks(sums: Sums) -> Sums:
    names = sorted(sums)
    values = torch.tensor([sums[name] for name in names], dtype=torch.float64)
    if torch.distributed.get_backend() == "nccl":
        values = values.to(ray.train.torch.get_device())
    torch.distributed.all_reduce(values)
    return dict(zip(names, values.tolist(), strict=True))


class Reporter:
    """What rank 0 tells the driver, in few messages: a call to the queue costs as much as a small training step."""

    def __init__(self, job: Job, place: Place):
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
    place = _start(job)
    reporter = Reporter(job, place)
    train, heldout = ray.get(job.train), ray.get(job.heldout)
    policy = load_policy(job.model, job.dtype)
    if job.packing and place.device.type == "cpu":
        policy.attend_by_row()
    engine = TrainEngine(
        policy,
        job.optimizer,
        job.optimizer.learning_rate,
        optimizer_steps(len(train.ids), job.rows_per_step, job.epochs),
        job.dtype,
        place.device,
    )

    cut, as_inputs = (place.packs, packed_inputs) if job.packing else (place.micro_batches, weighted_inputs)
    if job.packing:
        require_separate_rows(engine)

    def loss(module: Any, rows: list[int], data: Rows = train) -> tuple[Tensor, Sums]:
        inputs, weights_N = as_inputs(data.ids.take(rows), data.weights.take(rows), place.device)
        return weighted_nll(module(*inputs)[0], weights_N), {}

    for epoch in range(job.epochs):
        for rows in step_batches(epoch_order(len(train.ids), job.seed, epoch), job.rows_per_step):
            begun = time.perf_counter()
            part = train.ids.take(rows)
            weight = float(train.weights.take(rows).values.sum())
            plan = cut(part.lengths, job.optimizer.micro_batch_tokens)
            sums = engine.step([[rows[i] for i in micro] for micro in plan], loss, weight)
            total = _sum_over_ranks({"loss": sums["loss_sum"]})["loss"]
            reporter.tell(
                {
                    "step": engine.steps_done,
                    "epoch": epoch,
                    "loss": total / weight,
                    "grad_norm": sums["grad_norm"],
                    "learning_rate": sums["learning_rate"],
                    "time": {"tokens_per_s": int(part.lengths.sum()) / (time.perf_counter() - begun)},
                },
            )

    sums = {"loss": 0.0, "weight": float(heldout.weights.values.sum())}
    for rows in cut(heldout.ids.lengths, job.optimizer.micro_batch_tokens):
        sums["loss"] += float(engine.infer(lambda module, rows=rows: loss(module, rows, heldout)[0]))
    total = _sum_over_ranks({"loss": sums["loss"]})["loss"]
    reporter.tell({"heldout_loss": total / sums["weight"]})
    reporter.flush()
    engine.save(job.output, _tokenizer(job.tokenizer), lambda path: load_policy(path, job.dtype).to(place.device))


def reward_loop(job: Job) -> None:
    """Reward-model training on rankings, then the scores of the held-out ones."""
    place = _start(job)
    reporter = Reporter(job, place)
    train, heldout = ray.get(job.train), ray.get(job.heldout)
    module = load_scalar(job.model, job.dtype, seed=job.seed)
    engine = TrainEngine(
        module,
        job.optimizer,
        job.optimizer.learning_rate,
        optimizer_steps(len(train.sizes), job.rows_per_step, job.epochs),
        job.dtype,
        place.device,
    )
    settings = job.reward
    assert settings is not None
    share = settings.shared_prompts
    if share is None:
        share = pays(train.ids, train.sizes, module.classifier.config.get_text_config().hidden_size)
    cost = shared_lengths(train.ids, train.sizes) if share else None

    def loss(module: Any, rankings: RankedRows) -> tuple[Tensor, Sums]:
        sizes = rankings.sizes.tolist()
        if not sizes:
            scores_N = module(*to_device(rankings.ids, np.zeros((0, 0)), place.device))
            return scores_N.sum() * 0.0, {"correct_sum": 0.0, "pairs_sum": 0.0}
        ids, device = rankings.ids, place.device
        scores_N = module(*(shared_inputs(ids, sizes, device) if share else sequence_inputs(ids, device)))
        ranks_N = torch.from_numpy(rankings.ranks).to(device)
        correct, pairs = pair_accuracy(scores_N.detach(), sizes, ranks_N)
        return ranking_loss(settings, scores_N, sizes, ranks_N), {
            "correct_sum": float(correct),
            "pairs_sum": float(pairs),
        }

    for epoch in range(job.epochs):
        for rankings in step_batches(epoch_order(len(train.sizes), job.seed, epoch), job.rows_per_step):
            begun = time.perf_counter()
            step = train.take(rankings)
            budget = job.optimizer.micro_batch_tokens
            if cost is not None:
                plan = place.micro_batches(cost[rankings], budget)
            else:
                plan = _rankings_of(step, place.micro_batches(step.ids.lengths, budget, step.sizes.tolist()))
            sums = engine.step([step.take(micro) for micro in plan], loss, len(rankings))
            total = _sum_over_ranks({name: sums[name] for name in ("loss_sum", "correct_sum", "pairs_sum")})
            reporter.tell(
                {
                    "step": engine.steps_done,
                    "epoch": epoch,
                    "loss": total["loss_sum"] / len(rankings),
                    "pair_accuracy": total["correct_sum"] / max(total["pairs_sum"], 1),
                    "grad_norm": sums["grad_norm"],
                    "learning_rate": sums["learning_rate"],
                    "time": {"tokens_per_s": int(step.ids.lengths.sum()) / (time.perf_counter() - begun)},
                },
            )

    reporter.flush()
    if job.centre is not None:
        centre = ray.get(job.centre)
        found = _scores(engine, centre, place, job.optimizer.micro_batch_tokens).values.values
        sums = _sum_over_ranks({"score": float(found.sum()), "count": float(len(found))})
        module.classifier.config.score_offset = module.offset + sums["score"] / sums["count"]
    job.queue.put([{"heldout_scores": _scores(engine, heldout.ids, place, job.optimizer.micro_batch_tokens)}])
    engine.save(job.output, _tokenizer(job.tokenizer), lambda path: load_scalar(path, job.dtype).to(place.device))


def ranking_loss(settings: Reward, scores_N: Tensor, sizes: list[int], ranks_N: Tensor) -> Tensor:
    """Sum over rankings of the loss that the settings ask for."""
    ties = ranks_N if settings.ties == "average" else None
    if settings.loss == "plackett_luce":
        value = plackett_luce(scores_N, sizes, ranks_N=ties)
    else:
        value = pair_split(scores_N, sizes, ranks_N=ranks_N if settings.margin else ties, margin=settings.margin)
    return value + settings.zero_sum * zero_sum_penalty(scores_N, sizes) if settings.zero_sum else value


def _rankings_of(step: RankedRows, plan: list[list[int]]) -> list[list[int]]:
    """For micro-batches of rows, which hold whole rankings in order: the rankings of each."""
    owner = np.repeat(np.arange(len(step.sizes)), step.sizes)
    return [list(dict.fromkeys(owner[rows].tolist())) for rows in plan]


def _scores(engine: TrainEngine, ids: Ragged, place: Place, token_budget: int) -> Part:
    rows: list[int] = []
    scores: list[np.ndarray] = []
    for micro in place.micro_batches(ids.lengths, token_budget):
        out = engine.infer(lambda module, micro=micro: module(*sequence_inputs(ids.take(micro), place.device)))
        rows += micro
        scores.append(out.cpu().numpy())
    return Part(np.array(rows, dtype=np.int64), Ragged(np.concatenate(scores), np.ones(len(rows), dtype=np.int64)))


def _tokenizer(folder: str) -> Any:
    from data.tokenizer import load_tokenizer

    return load_tokenizer(folder)
