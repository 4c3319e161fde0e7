"""What is asked about each sampled response, and how the parts are joined: score, reference
log-probs, values, old log-probs.

The parts of an iteration are asked about one by one, while the engines sample the rest. Actors work
on them at the same time; the driver waits only in `collect`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import ray

from rayward.actors.group import Group, TrainingGroup
from rayward.configs.plan import asks_reference, in_turn, max_mismatch, old_logprobs
from rayward.configs.schema import Config
from rayward.data.ragged import merge
from rayward.data.records import Prompt
from rayward.data.rollouts import Rollouts, concatenated
from rayward.pipelines.rl.advantages import gap
from rayward.pipelines.scoring.reward_folder import PendingScores, RewardFolder, numbers
from rayward.pipelines.scoring.scorer import Scorer, SourceCalls

T = TypeVar("T")
Calls = list[ray.ObjectRef]  # one for each rank of a group


@dataclass
class PendingPart:
    """A part of the responses and the calls about it; None where nobody was asked."""

    part: Rollouts
    scores: list[SourceCalls] | None = None
    reference: Calls | None = None
    values: Calls | None = None
    second: PendingScores | None = None
    policy: Calls | None = None


@dataclass
class ResponseScoring:
    """The scorers of one algorithm.

    `reference`: a model of its own; None where the reference is the policy without its adapters, or
    nobody needs one. `replays`: the responses are of a replay.
    """

    config: Config
    algorithm: str
    policy: TrainingGroup
    critic: TrainingGroup | None
    reference: Group | None
    reward: Scorer
    second: RewardFolder | None
    replays: bool
    pending: list[PendingPart] = field(default_factory=list)
    old_is_engines: bool = False
    """Whether the old log-probs of the last `collect` are the engine's."""
    second_scores: np.ndarray | None = None
    """[B] of the second reward model in the last `collect`, for the monitor alone."""

    def ask(self, part: Rollouts, prompts: list[Prompt], iteration: int) -> None:
        """Let all scorers work on a part; returns at once. `prompts` are those of the iteration.

        Reference and second reward model are asked only where the iteration learns from them, or it
        is their turn to be looked at.
        """
        # One copy in the object store, which all ranks of all groups read.
        batch = ray.put(part)
        pending = PendingPart(part)
        # A replay may bring its scores along.
        if part.scores is None:
            pending.scores = self.reward.begin(part, prompts)
        if asks_reference(self.config, self.algorithm, iteration):
            if self.reference:
                pending.reference = self.reference.begin("logprobs", batch)
            else:
                pending.reference = self.policy.begin("reference_logprobs", batch)
        if self.critic:
            pending.values = self.critic.begin("values", batch)
        if self.second and in_turn(self.config, self.config.rl.monitor.second_every, iteration):
            pending.second = self.second.begin(part, prompts)
        # Those of a replay are by other weights, so only the policy can tell its own.
        if self.replays or old_logprobs(self.config) == "trainer":
            pending.policy = self.policy.begin("logprobs", batch)
        self.pending.append(pending)

    def collect(self, prompts: list[Prompt]) -> tuple[Rollouts, dict[str, float]]:
        """Wait for all that was asked: the responses with their columns, and figures: the policy's
        mean entropy in nats, each source's.

        Of a replay whose `old_logprobs` are the engine's, these do only where they are the policy's
        too, as in the run that sampled them.
        """
        # Parts come as engines finish them. In the order of the prompts, rows and so results do not
        # depend on timing.
        pending = sorted(self.pending, key=lambda waiting: waiting.part.prompt_index[0])
        self.pending = []
        rollouts = concatenated([waiting.part for waiting in pending])
        self.old_is_engines = old_logprobs(self.config) == "rollout"
        if pending[0].policy is not None:
            old_N, entropy = self._policy_logprobs(pending)
            apart = gap(rollouts.with_columns(policy_logprobs=old_N))["mismatch_mean"]
            self.old_is_engines &= apart <= max_mismatch(self.config)
        if self.old_is_engines:
            old_N = rollouts.rollout_logprobs
            # Of samples of the policy, -log p is an unbiased estimate of the entropy.
            entropy = -float(old_N.mean())
        figures: dict[str, float] = {"entropy": float(entropy)}
        columns: dict[str, Any] = {"policy_logprobs": old_N}
        if rollouts.scores is None:
            columns["scores"], of_sources = self._scores(pending, rollouts, prompts)
            figures |= of_sources
        if pending[0].reference is not None:
            columns["reference_logprobs"] = _joined(
                self.reference or self.policy,
                [(waiting.part, _asked(waiting.reference)) for waiting in pending],
            )
        if self.critic:
            columns["values"] = _joined(
                self.critic, [(waiting.part, _asked(waiting.values)) for waiting in pending]
            )
        self.second_scores = self._second_scores(pending)
        return rollouts.with_columns(**columns), figures

    def _policy_logprobs(self, pending: list[PendingPart]) -> tuple[np.ndarray, float]:
        """([N] log-probs of all parts by the policy, its mean entropy in nats a token)."""
        columns = []
        entropies = []
        for waiting in pending:
            # Each rank gives its rows, and the sum of the entropies of their tokens.
            ranks = self.policy.finish(_asked(waiting.policy))
            columns.append(merge([shard for shard, _ in ranks], len(waiting.part)))
            entropies += [nats for _, nats in ranks]
        logprobs_N = np.concatenate(columns)
        return logprobs_N, sum(entropies) / len(logprobs_N)

    def _scores(
        self, pending: list[PendingPart], rollouts: Rollouts, prompts: list[Prompt]
    ) -> tuple[np.ndarray, dict[str, float]]:
        # Joined first: what a source may leave out (`tolerated`) is a share of the iteration.
        parts = [(_asked(waiting.scores), len(waiting.part)) for waiting in pending]
        return self.reward.finish(self.reward.join(parts), rollouts, prompts)

    def _second_scores(self, pending: list[PendingPart]) -> np.ndarray | None:
        scores = []
        for waiting in pending:
            if self.second is None or waiting.second is None:
                return None
            scores += self.second.finish(waiting.second)
        return numbers(scores)


def _asked(calls: T | None) -> T:
    """Calls of a part: the iteration decides who is asked, so all of its parts have them."""
    assert calls is not None
    return calls


def _joined(group: Group, parts: list[tuple[Rollouts, Calls]]) -> np.ndarray:
    """[N] a per-token column of all parts, each put together from the shards of the ranks."""
    return np.concatenate([merge(group.finish(calls), len(part)) for part, calls in parts])
