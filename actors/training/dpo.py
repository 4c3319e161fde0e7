"""The training loop of DPO (arXiv:2305.18290), as Ray Train runs it in each worker.

The score of an answer is implicit: by how much the policy prefers it more than the reference, the
model that it starts from, does.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import ray
import torch
from torch import Tensor, nn

from rayward.actors.models.forward import RankContext, weighted_inputs
from rayward.actors.models.load import load_policy
from rayward.actors.models.prefix import shared_answers
from rayward.actors.training.engine import MetricSums
from rayward.actors.training.job import Job
from rayward.actors.training.ranked import (
    accuracy_validation,
    learn,
    on_every_rank,
    over_rankings,
    shares_prompts,
)
from rayward.actors.training.rankings import RankedRows, ranking_loss
from rayward.actors.training.worker import announce, make_engine, start
from rayward.algorithms.preference import implicit_rewards
from rayward.algorithms.sequence import segment_sum
from rayward.configs.sections.training import Dpo
from rayward.data.ragged import Ragged, Shard
from rayward.data.templates.tokenizer import load_tokenizer


def dpo_loop(job: Job, context: RankContext | None = None) -> None:
    """Train by DPO, then give the held-out answers' implicit rewards. `context`: null asks Ray
    Train.

    All log-probs are of whole answers, sums over their tokens.
    """
    context = context or start(job)
    train, heldout = ray.get(job.train), ray.get(job.heldout)
    settings, device = job.preferences, context.device
    assert isinstance(settings, Dpo)
    module = load_policy(job.model, job.dtype)
    engine = make_engine(job, module, len(train.sizes), context)
    share = shares_prompts(settings, engine, module.lm, train)

    def logprobs(module: nn.Module, rankings: RankedRows) -> Tensor:
        """[N] log-prob of each answer."""
        ids, answers, sizes = rankings.ids, rankings.answers, rankings.sizes.tolist()
        # Those of a micro-batch are in memory.
        assert isinstance(ids, Ragged) and isinstance(answers, Ragged)
        # No rankings: `weighted_inputs` makes a dummy row, with which the rank still takes part.
        if share and sizes:
            logprobs_T, _ = module(**shared_answers(ids, sizes, answers, device))
        else:
            logprobs_T, _ = module(*weighted_inputs(ids, answers, device)[0])
        # An answer never holds the first token of its row, so each marked token has a log-prob.
        return segment_sum(logprobs_T, [int(answers[row].sum()) for row in range(len(ids))])

    def reference_logprobs(data: RankedRows) -> np.ndarray:
        """[N] of all answers: each step deals them to the ranks anew, so every rank needs all."""
        part = over_rankings(job, context, engine, data, logprobs, share)
        return on_every_rank(part, len(data.ids)).numpy()

    announce(job, context, "log-probs of the reference, of all rows")
    # Before the first step the policy is the reference. Afterwards nothing holds its weights: one
    # model is in memory instead of two, and each answer is read by it once.
    train = replace(train, reference=reference_logprobs(train))
    heldout_reference_N = reference_logprobs(heldout)

    def loss(module: nn.Module, rankings: RankedRows) -> tuple[Tensor, MetricSums]:
        policy_N = logprobs(module, rankings)
        reference_N = torch.from_numpy(rankings.reference).to(device)
        rewards_N = implicit_rewards(policy_N, reference_N, settings.beta)
        value, sums = ranking_loss(settings, rewards_N, rankings)
        # How far the best and the worst answer of each ranking moved from the reference, in nats.
        moved_N = (policy_N.detach() - reference_N).cpu().numpy()
        ends = np.cumsum(rankings.sizes)
        return value, sums | {
            "best_moved_sum": float(moved_N[ends - rankings.sizes].sum()),
            "worst_moved_sum": float(moved_N[ends - 1].sum()),
        }

    def heldout_rewards() -> Shard:
        part = over_rankings(job, context, engine, heldout, logprobs, share)
        moved_N = part.values.values - heldout_reference_N[part.rows]
        return Shard(part.rows, part.values.like(settings.beta * moved_N))

    def write() -> Shard:
        part = heldout_rewards()
        engine.save(
            job.output,
            load_tokenizer(job.tokenizer),
            lambda path: load_policy(path, job.dtype).to(device),
        )
        return part

    validation = accuracy_validation(job, engine.total_steps, heldout, heldout_rewards, write)
    learn(job, context, engine, train, loss, share, validation)
