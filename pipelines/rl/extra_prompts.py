"""Further prompts in place of those whose answers all have the same reward: the dynamic sampling of
DAPO (Yu et al. 2025, arXiv:2503.14476, equation 11).

Compared with each other such answers teach nothing, and the step is taken with fewer that do. DAPO
draws whole batches, without a bound, until one is full of groups that differ. Here a round draws as
many prompts as are missing, and an iteration at most rl.extra_prompts of them in all; the groups
that they do not replace stay, so that every iteration ends, and trains as many answers as any.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from rayward.configs.sections.rl import Rl
from rayward.data.records import Prompt
from rayward.data.rollouts import Rollouts, concatenated
from rayward.pipelines.rl.advantages import RewardShaper, equal_groups
from rayward.pipelines.scoring.scorer import Scorer, SourceCalls


class DrawnGroups:
    """The groups of answers that one iteration drew, round by round, with their scores. Round 0 is
    the batch of the iteration; the other rounds are there to replace groups of it.
    """

    def __init__(self, scorer: Scorer, shaper: RewardShaper, rl: Rl):
        """`shaper`: as it is before the iteration; it takes in no scores here."""
        self.scorer, self.shaper, self.rl = scorer, shaper, rl
        self.rounds = 0
        self.prompts: list[Prompt] = []
        self.parts: list[tuple[Rollouts, list[SourceCalls]]] = []

    def add(self, prompts: list[Prompt], parts: Iterable[Rollouts]) -> None:
        """A round: its prompts and the parts of its answers, each of which goes to be scored as
        soon as it is there.
        """
        first = len(self.prompts)
        self.prompts += prompts
        for part in parts:
            part = replace(part, prompt_index=part.prompt_index + first)
            self.parts.append((part, self.scorer.begin(part, self.prompts)))
        self.rounds += 1
        self._judge()

    def _judge(self) -> None:
        """Wait for all scores, and see which groups stand in the batch."""
        parts = sorted(self.parts, key=lambda asked: asked[0].prompt_index[0])
        rollouts = concatenated([part for part, _ in parts])
        # All rounds at once: what a source may leave out is a share of the iteration.
        pending = self.scorer.join([(calls, len(part)) for part, calls in parts])
        scores_B, self.figures = self.scorer.finish(pending, rollouts, self.prompts)
        self.rollouts = rollouts.with_columns(scores=scores_B)
        # A copy: the answers that are trained on enter the moments, and only once.
        rewards_B = deepcopy(self.shaper).shaped(
            torch.from_numpy(scores_B),
            rollouts.responses.lengths.tolist(),
            torch.from_numpy(rollouts.finished),
            self.rl,
        )
        self.equal_G = equal_groups(rewards_B.numpy(), rollouts.prompt_index)
        self.chosen = chosen_groups(self.equal_G, self.rl.prompts_per_iteration)

    @property
    def extra(self) -> int:
        """Further prompts drawn so far."""
        return len(self.prompts) - self.rl.prompts_per_iteration

    def missing(self) -> int:
        """How many prompts the next round draws: none where all groups of the batch differ, or the
        budget is spent.
        """
        return min(int(self.equal_G[self.chosen].sum()), self.rl.extra_prompts - self.extra)

    def batch(self) -> tuple[list[Prompt], Rollouts, dict[str, float]]:
        """The prompts of the iteration, their scored answers, and figures: the prompts drawn, the
        share of equal groups before they replaced any, and those of the sources of reward, of all
        that was drawn.
        """
        size, samples = self.rl.prompts_per_iteration, self.rl.samples_per_prompt
        rows = (self.chosen[:, None] * samples + np.arange(samples)).ravel()
        answers = self.rollouts.take(rows)
        # In the batch a prompt is counted by its place there, as if it had been drawn for it.
        answers = replace(answers, prompt_index=np.repeat(np.arange(size), samples))
        figures = {
            "extra_prompts": float(self.extra),
            "equal_groups_before": float(self.equal_G[:size].mean()),
        }
        return [self.prompts[group] for group in self.chosen], answers, figures | self.figures


def chosen_groups(equal_G: NDArray[np.bool_], size: int) -> NDArray[np.int64]:
    """[size] the group that stands in each place of the batch.

    `equal_G`: of all groups in the order in which they were drawn, the first `size` for the batch,
    whether its answers have one reward. The first of the further groups that differ takes the place
    of the first that does not, and so on as far as they go.
    """
    groups = np.arange(size)
    places = np.flatnonzero(equal_G[:size])
    others = size + np.flatnonzero(~equal_G[size:])
    count = min(len(places), len(others))
    groups[places[:count]] = others[:count]
    return groups
