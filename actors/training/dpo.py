"""The training loop of DPO (arXiv:2305.18290) and its kin, as Ray Train runs it in each worker.

The score of an answer is implicit: by how much the policy prefers it more than the reference, the
model that it starts from, does. SimPO and ORPO look at the policy alone.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import ray
from torch import Tensor, nn

from rayward.actors.models.forward import RankContext, weighted_inputs
from rayward.actors.models.load import load_policy
from rayward.actors.models.prefix import shared_answers
from rayward.actors.training.engine import MetricSums
from rayward.actors.training.job import Job
from rayward.actors.training.labels import SEPARATION, LabelSteps
from rayward.actors.training.objectives import answer_scores, objective_loss, tokens_of
from rayward.actors.training.ranked import (
    ACCURACY,
    learn,
    on_every_rank,
    over_rankings,
    score_validation,
    shares_prompts,
)
from rayward.actors.training.rankings import RankedRows
from rayward.actors.training.resume import Resume
from rayward.actors.training.worker import announce, make_engine, start
from rayward.algorithms.sequence import segment_sum
from rayward.configs.sections.training import Dpo
from rayward.data.ragged import Ragged, Shard
from rayward.data.templates.tokenizer import load_tokenizer


def dpo_loop(job: Job, context: RankContext | None = None) -> None:
    """Train by dpo.objective, then give the held-out answers' scores. `context`: null asks Ray
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
        return segment_sum(logprobs_T, tokens_of(rankings))

    def reference_logprobs(data: RankedRows) -> np.ndarray:
        """[N] of all answers: each step deals them to the ranks anew, so every rank needs all."""
        part = over_rankings(job, context, engine, data, logprobs, share)
        return on_every_rank(part, len(data.ids)).numpy()

    resume = Resume(job, context, engine)
    if settings.needs_reference:
        announce(job, context, "log-probs of the reference, of all rows")
        # Before the first step the policy is the reference. Afterwards nothing holds its weights:
        # one model is in memory instead of two, and each answer is read by it once.
        # A checkpoint has them, for the policy that it goes on from is no reference.
        train, heldout = (
            replace(rows, reference=resume.known(name, partial(reference_logprobs, rows)))
            for name, rows in (("train", train), ("heldout", heldout))
        )
    else:
        announce(job, context, "first step")
    labels: LabelSteps | None = None
    if settings.objective == "kto":
        labels = LabelSteps(
            job,
            context,
            engine,
            train,
            logprobs,
            lambda rows: resume.known("mismatched", partial(reference_logprobs, rows)),
        )

    def loss(module: nn.Module, rankings: RankedRows) -> tuple[Tensor, MetricSums]:
        policy_N = logprobs(module, rankings)
        if labels:
            return labels.loss(settings, policy_N, rankings)
        return objective_loss(settings, policy_N, rankings)

    def heldout_scores() -> Shard:
        def scores(module: nn.Module, rankings: RankedRows) -> Tensor:
            return answer_scores(settings, logprobs(module, rankings), rankings)

        return over_rankings(job, context, engine, heldout, scores, share)

    def write() -> Shard:
        part = heldout_scores()
        engine.save(
            job.output,
            load_tokenizer(job.tokenizer),
            lambda path: load_policy(path, job.dtype).to(device),
        )
        return part

    looked_at = SEPARATION if labels else ACCURACY
    validation = score_validation(
        *looked_at, job, engine.total_steps, heldout, heldout_scores, write
    )
    learn(job, context, engine, train, loss, share, validation, resume, labels)
