"""The training loop of the reward model, as Ray Train runs it in each worker."""

from __future__ import annotations

import ray
from torch import Tensor, nn

from rayward.actors.models.forward import RankContext, sequence_inputs
from rayward.actors.models.load import load_scalar
from rayward.actors.models.prefix import shared_inputs
from rayward.actors.training.engine import MetricSums
from rayward.actors.training.job import Job
from rayward.actors.training.ranked import (
    ACCURACY,
    learn,
    over_rankings,
    over_rows,
    score_validation,
    shares_prompts,
)
from rayward.actors.training.rankings import RankedRows, ranking_loss
from rayward.actors.training.resume import Resume
from rayward.actors.training.worker import announce, make_engine, start, sum_over_ranks
from rayward.algorithms.preference import zero_sum_penalty
from rayward.configs.sections.training import Reward
from rayward.data.ragged import Ragged, Shard
from rayward.data.templates.tokenizer import load_tokenizer


def reward_loop(job: Job, context: RankContext | None = None) -> None:
    """Train the reward model, then score the held-out answers. `context`: null asks Ray Train."""
    context = context or start(job)
    train, heldout = ray.get(job.train), ray.get(job.heldout)
    module = load_scalar(job.model, job.dtype, seed=job.seed)
    engine = make_engine(job, module, len(train.sizes), context)
    settings, device = job.preferences, context.device
    assert isinstance(settings, Reward)
    announce(job, context, "first step")
    share = shares_prompts(settings, engine, module.classifier, train)

    def scores(module: nn.Module, rankings: RankedRows) -> Tensor:
        """[N] score of each answer, read at its last token."""
        sizes = rankings.sizes.tolist()
        # No rankings: `sequence_inputs` makes a dummy row, with which the rank still takes part.
        if share and sizes:
            return module(**shared_inputs(rankings.ids, sizes, device))
        assert isinstance(rankings.ids, Ragged)  # those of a micro-batch are in memory
        return module(*sequence_inputs(rankings.ids, device))

    def loss(module: nn.Module, rankings: RankedRows) -> tuple[Tensor, MetricSums]:
        scores_N = scores(module, rankings)
        value, sums = ranking_loss(settings, scores_N, rankings)
        return value + settings.zero_sum * zero_sum_penalty(scores_N, rankings.sizes.tolist()), sums

    def mean_score(ids: Ragged) -> float:
        """Over the rows of all ranks."""
        part = over_rows(
            job,
            context,
            engine,
            ids,
            lambda module, rows: module(*sequence_inputs(ids.take(rows), device)),
        )
        scores_N = part.values.values
        sums = sum_over_ranks({"score": float(scores_N.sum()), "count": float(len(scores_N))})
        return sums["score"] / sums["count"]

    def heldout_scores() -> Shard:
        return over_rankings(job, context, engine, heldout, scores, share)

    def write() -> Shard:
        """The model with its scores centred; as it trains they are not."""
        config, offset = module.classifier.config, module.offset
        if job.centre is not None:
            # Scores have the present offset taken off already.
            config.score_offset = offset + mean_score(ray.get(job.centre))
        # Between here and the reset, scores are those of the model as it is saved.
        part = heldout_scores()
        engine.save(
            job.output,
            load_tokenizer(job.tokenizer),
            lambda path: load_scalar(path, job.dtype).to(device),
        )
        config.score_offset = offset
        return part

    validation = score_validation(
        *ACCURACY, job, engine.total_steps, heldout, heldout_scores, write
    )
    resume = Resume(job, context, engine)
    learn(job, context, engine, train, loss, share, validation, resume)
