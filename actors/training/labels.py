"""KTO's part of the training loop: mismatched pairs, the reference point, batches of both kinds.

Rows are RankedRows of one answer each, with `good`. Each has a mismatched one: its prompt with the
answer to another prompt, that of the next row of its optimizer step in the first epoch. They stay
the same in later epochs, so that the reference reads them once; the reference point of a step is
over the mismatched rows of its own rows, by the policy as it is before the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayward.actors.models.forward import RankContext
from rayward.actors.training.engine import MetricSums, TrainEngine
from rayward.actors.training.job import Job
from rayward.actors.training.objectives import answer_scores
from rayward.actors.training.ranked import Steps, over_rankings
from rayward.actors.training.rankings import RankedRows
from rayward.actors.training.worker import sum_over_ranks
from rayward.algorithms.objectives import kto, kto_reference_point, separation
from rayward.configs.sections.training import Dpo
from rayward.data.packing import mixed_order, step_batches
from rayward.data.ragged import Rows, Unread


def mismatched(rows: RankedRows, steps: list[list[int]]) -> RankedRows:
    """Of each row, its prompt with the answer to another prompt; no rows if all have one prompt.

    `steps`: the rows of each optimizer step. The other prompt is the next one of the step, going
    round, or where the step has no other, the first of all steps. What would be longer than the
    longest row is cut at the end.
    """
    starts = np.array([np.argmax(rows.answers[row]) for row in range(len(rows.ids))], np.int64)
    prompts = [digest(rows.ids[row][:start]) for row, start in enumerate(starts)]
    if len(set(prompts)) < 2:
        return rows.take([])
    every = [row for step in steps for row in step]
    other = np.zeros(len(prompts), np.int64)
    for step in steps:
        for index, row in enumerate(step):
            around = (*step[index + 1 :], *step[:index])
            others = (one for one in chain(around, every) if prompts[one] != prompts[row])
            other[row] = next(others)
    ids, answers = (
        Mixed(part, rows.ids.lengths, starts, other) for part in (rows.ids, rows.answers)
    )
    return replace(rows, ids=ids, answers=answers, reference=None)


def digest(ids: np.ndarray) -> bytes:
    """Stands for the ids of a prompt, of which there may be very many."""
    return blake2b(ids.tobytes(), digest_size=16).digest()


class Mixed(Unread):
    """Of each row what stands before its `starts`, and behind that what another has from there.

    `lengths_B`: of the rows; none becomes longer than the longest of them.
    """

    def __init__(
        self, rows: Rows, lengths_B: np.ndarray, starts: np.ndarray, other: np.ndarray
    ) -> None:
        self.rows, self.starts, self.other, self.dtype = rows, starts, other, rows.dtype
        whole = starts + (lengths_B - starts)[other]
        self.lengths = np.minimum(whole, lengths_B.max())

    def __getitem__(self, row: int) -> np.ndarray:
        other = self.other[row]
        behind = self.rows[int(other)][self.starts[other] :]
        mixed = np.concatenate([self.rows[row][: self.starts[row]], behind])
        return mixed[: self.lengths[row]]


class LabelSteps(Steps):
    """Steps over good and bad answers: both in each, and KTO's reference point before it."""

    def __init__(
        self,
        job: Job,
        context: RankContext,
        engine: TrainEngine,
        train: RankedRows,
        logprobs: Callable[[Any, RankedRows], Tensor],
        reference_logprobs: Callable[[RankedRows], np.ndarray],
    ):
        assert train.good is not None
        self.job, self.context, self.engine = job, context, engine
        self.good, self.logprobs = train.good, logprobs
        rows = mismatched(train, step_batches(self.order(0), job.rows_per_step))
        self.mismatched = replace(rows, reference=reference_logprobs(rows))
        self.reference_point = 0.0

    def order(self, epoch: int) -> list[int]:
        return mixed_order(self.good, self.job.seed, epoch)

    def before(self, rankings: list[int]) -> dict[str, float]:
        """The reference point of the step whose rows these are. A collective."""
        total, count = 0.0, 0
        if len(self.mismatched.ids):
            rows = self.mismatched.take(rankings)
            assert rows.reference is not None
            part = over_rankings(
                self.job, self.context, self.engine, rows, self.logprobs, share=False
            )
            moved_N = part.values.values.astype(np.float64) - rows.reference[part.rows]
            total, count = sum_over_ranks({"moved": float(moved_N.sum())})["moved"], len(rankings)
        self.reference_point = kto_reference_point(total, count)
        return {"reference_point": self.reference_point}

    def figures(self, totals: MetricSums, rankings: int) -> dict[str, float]:
        """Mean loss, and mean rewards of each kind that the step has."""
        good = totals["good_sum"]
        means = {"loss": totals["loss_sum"] / rankings}
        for name, count in (("reward_good", good), ("reward_bad", rankings - good)):
            if count:
                means[name] = totals[f"{name}_sum"] / count
        return means

    def loss(
        self, settings: Dpo, logprobs_N: Tensor, rows: RankedRows
    ) -> tuple[Tensor, MetricSums]:
        """KTO's, the sum over the answers of a micro-batch, and sums to report."""
        assert rows.good is not None
        rewards_N = answer_scores(settings, logprobs_N, rows)
        good_N = torch.from_numpy(rows.good).to(rewards_N.device)
        loss = kto(
            # The loss is of log-ratios, of which the rewards are beta times as much.
            rewards_N / settings.beta,
            good_N,
            self.reference_point,
            settings.beta,
            settings.kto.desirable_weight,
            settings.kto.undesirable_weight,
        )
        rewards_N = rewards_N.detach()
        return loss, {
            "good_sum": float(good_N.sum()),
            "reward_good_sum": float(rewards_N[good_N].sum()),
            "reward_bad_sum": float(rewards_N[~good_N].sum()),
        }


def label_separation(scores_N: Tensor, heldout: RankedRows) -> float:
    """How well the rewards of held-out answers tell good from bad ones."""
    assert heldout.good is not None
    return separation(scores_N, torch.from_numpy(heldout.good))


SEPARATION = ("heldout_auc", label_separation)
"""The validation of labelled answers."""
