"""A batch of sampled answers and what scorers add to them, in columns.

Per-token columns are flat over the response tokens of all rows, in row order ([N]); per-answer
columns are [B]. Nothing is padded while it travels; lengths, never a pad id, say where a row ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rayward.data.ragged import Ragged, join, stack

PER_TOKEN = (
    "rollout_logprobs",
    "policy_logprobs",
    "reference_logprobs",
    "values",
    "advantages",
    "returns",
)


@dataclass(frozen=True)
class Rollouts:
    """B answers; `None` columns are not filled in yet."""

    prompts: Ragged
    """Prompt token ids."""
    responses: Ragged
    """Response token ids, with the stop token where one was sampled."""
    prompt_index: np.ndarray
    """[B] which prompt of the request each answer belongs to."""
    finished: np.ndarray
    """[B] True where the answer ended with a stop token, False where it was cut at the length
    limit.
    """
    rollout_logprobs: np.ndarray
    """[N] log-probs by the engine that sampled, at the sampling temperature."""
    weight_version: int
    """Version of the weights that sampled every token."""
    scores: np.ndarray | None = None
    """[B] reward-model scores."""
    policy_logprobs: np.ndarray | None = None
    """[N] log-probs by the trainer before the update."""
    reference_logprobs: np.ndarray | None = None
    """[N] log-probs by the reference model."""
    values: np.ndarray | None = None
    """[N] critic values of the state before each token."""
    advantages: np.ndarray | None = None
    """[N] GAE advantages."""
    returns: np.ndarray | None = None
    """[N] targets of the critic."""

    def __len__(self) -> int:
        return len(self.responses)

    def sequences(self) -> Ragged:
        """Prompt and response together."""
        return join(self.prompts, self.responses)

    def with_columns(self, **columns: Any) -> Rollouts:
        """The same answers with more columns filled in."""
        return replace(self, **columns)

    def take(self, rows: Sequence[int] | np.ndarray) -> Rollouts:
        """The given rows of every column."""
        rows = np.asarray(rows, dtype=np.int64)
        per_token: dict[str, Any] = {}
        for name in PER_TOKEN:
            if (column := getattr(self, name)) is not None:
                per_token[name] = self.responses.like(column).take(rows).values
        return replace(
            self,
            prompts=self.prompts.take(rows),
            responses=self.responses.take(rows),
            prompt_index=self.prompt_index[rows],
            finished=self.finished[rows],
            scores=None if self.scores is None else self.scores[rows],
            **per_token,
        )

    def keep(self, kept_N: np.ndarray) -> Rollouts:
        """The same answers with those of their tokens only where `kept_N` is True, in every
        per-token column.
        """
        columns = {
            name: column[kept_N]
            for name in PER_TOKEN
            if (column := getattr(self, name)) is not None
        }
        row_N = np.repeat(np.arange(len(self)), self.responses.lengths)
        lengths = np.bincount(row_N[kept_N], minlength=len(self))
        return replace(self, responses=Ragged(self.responses.values[kept_N], lengths), **columns)


def concatenated(parts: Sequence[Rollouts]) -> Rollouts:
    """The rows of all parts, one part after the other, with the columns that all of them have.

    Raises ValueError where there is no part, or the parts were sampled with different weights.
    """
    versions = {part.weight_version for part in parts}
    if len(versions) != 1:
        raise ValueError(
            f"rollout engines answered with different weight versions {sorted(versions)}"
        )
    found: dict[str, Any] = {}
    for name in ("prompt_index", "finished", "scores", *PER_TOKEN):
        columns = [getattr(part, name) for part in parts]
        found[name] = None if any(column is None for column in columns) else np.concatenate(columns)
    return Rollouts(
        prompts=stack([part.prompts for part in parts]),
        responses=stack([part.responses for part in parts]),
        weight_version=versions.pop(),
        **found,
    )


def gather(parts: Sequence[Rollouts], order: np.ndarray) -> Rollouts:
    """Parts put together so that row i is row `order[i]` of all parts one after another; see
    `concatenated`.
    """
    return concatenated(parts).take(order)
