"""A batch of sampled responses and what scorers add to them, in columns.

Per-token columns are flat over the response tokens of all rows, in row order ([N]); per-response
columns are [B]. Nothing is padded while it travels; lengths, never a pad id, say where a row ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayward.data.ragged import Ragged, join, stack

# The columns of [N], which `take`, `keep` and the file cut along the rows of `responses`. A column
# that is missing here would keep its old length.
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
    """B responses; `None` columns are not filled in yet."""

    prompts: Ragged
    """Prompt token ids."""
    responses: Ragged
    """Response token ids, with the stop token where one was sampled."""
    prompt_index: NDArray[np.int64]
    """[B] which prompt of the request each response belongs to."""
    finished: NDArray[np.bool_]
    """[B] True where it ended with a stop token, False where it was cut at the length limit."""
    rollout_logprobs: NDArray[np.float32]
    """[N] log-probs by the engine that sampled, at the sampling temperature."""
    weight_version: int
    """Version of the weights that sampled every token."""
    scores: NDArray[np.float32] | None = None
    """[B] reward-model scores."""
    policy_logprobs: NDArray[np.float32] | None = None
    """[N] log-probs by the trainer before the update."""
    reference_logprobs: NDArray[np.float32] | None = None
    """[N] log-probs by the reference model."""
    values: NDArray[np.float32] | None = None
    """[N] critic values of the state before each token."""
    advantages: NDArray[np.float32] | None = None
    """[N] GAE advantages."""
    returns: NDArray[np.float32] | None = None
    """[N] targets of the critic."""

    def __len__(self) -> int:
        return len(self.responses)

    def sequences(self) -> Ragged:
        """Prompt and response together."""
        return join(self.prompts, self.responses)

    def with_columns(self, **columns: Any) -> Rollouts:
        """The same responses with more columns filled in."""
        return replace(self, **columns)

    def take(self, rows: Sequence[int] | np.ndarray) -> Rollouts:
        """The given rows of every column."""
        rows = np.asarray(rows, dtype=np.int64)
        # Cut like the responses, whose rows say which of the N values belong to a response.
        per_token: dict[str, Any] = {}
        for name in PER_TOKEN:
            column_N = getattr(self, name)
            if column_N is not None:
                per_token[name] = self.responses.like(column_N).take(rows).values
        return replace(
            self,
            prompts=self.prompts.take(rows),
            responses=self.responses.take(rows),
            prompt_index=self.prompt_index[rows],
            finished=self.finished[rows],
            scores=None if self.scores is None else self.scores[rows],
            **per_token,
        )

    def keep(self, kept_N: NDArray[np.bool_]) -> Rollouts:
        """The same B responses with only the tokens where `kept_N` is True, in all [N] columns."""
        columns_N = {name: getattr(self, name) for name in PER_TOKEN}
        columns = {name: column[kept_N] for name, column in columns_N.items() if column is not None}
        # Ranks that share a sequence keep a stretch of it each (actors/models/ulysses.py), in which
        # some responses may have no token.
        row_N = np.repeat(np.arange(len(self)), self.responses.lengths)
        # A response of which nothing is kept stays as a row of length 0, so that [B] columns fit.
        lengths = np.bincount(row_N[kept_N], minlength=len(self))
        return replace(self, responses=Ragged(self.responses.values[kept_N], lengths), **columns)


def concatenated(parts: Sequence[Rollouts]) -> Rollouts:
    """The rows of all parts, one part after the other, with the columns that all of them have.

    Raises ValueError where there is no part, or the parts were sampled with different weights.
    """
    versions = {part.weight_version for part in parts}
    # A batch has one version; engines that missed a weight update must not mix theirs in unseen.
    if len(versions) != 1:
        raise ValueError(
            f"rollout engines answered with different weight versions {sorted(versions)}"
        )
    # A column that one part lacks is left out of all: there are no values to fill in for it.
    joined: dict[str, Any] = {}
    for name in ("prompt_index", "finished", "scores", *PER_TOKEN):
        columns = [getattr(part, name) for part in parts]
        complete = all(column is not None for column in columns)
        joined[name] = np.concatenate(columns) if complete else None
    return Rollouts(
        prompts=stack([part.prompts for part in parts]),
        responses=stack([part.responses for part in parts]),
        weight_version=versions.pop(),
        **joined,
    )


def gather(parts: Sequence[Rollouts], order: np.ndarray) -> Rollouts:
    """The parts' rows, row i being row `order[i]` of all parts in turn; see `concatenated`."""
    return concatenated(parts).take(order)
