"""Who judges the answers of an evaluation: the toy world's gold judge, a reward model, or the
reward itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from rayward.actors.group import Group
from rayward.cluster.placement import Placement
from rayward.data.records import Prompt
from rayward.data.rollouts import Rollouts
from rayward.data.toy import toyworld
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.run.folder import Run
from rayward.pipelines.scoring.reward_folder import RewardFolder, numbers


class Judge(Protocol):
    """One number for each answer, higher is better, NaN for none. Empty and cut answers are judged
    as they stand.
    """

    groups: list[Group]

    def of_rollouts(
        self, rollouts: Rollouts, prompts: Sequence[Prompt], rows: Sequence[dict[str, Any]]
    ) -> np.ndarray:
        """[B] of sampled answers, one to each prompt; `rows` have them as text, and the reward."""

    def of_texts(self, prompts: Sequence[Prompt], rows: Sequence[dict[str, Any]]) -> np.ndarray:
        """[B] of answers of which the text is left."""


class GoldJudge:
    """The toy world's own."""

    def __init__(self) -> None:
        self.groups: list[Group] = []

    def of_rollouts(
        self, rollouts: Rollouts, prompts: Sequence[Prompt], rows: Sequence[dict[str, Any]]
    ) -> np.ndarray:
        return self.of_texts(prompts, rows)

    def of_texts(self, prompts: Sequence[Prompt], rows: Sequence[dict[str, Any]]) -> np.ndarray:
        pairs = zip(prompts, rows, strict=True)
        return np.array([toyworld.judge(prompt.turns, row["answer"]) for prompt, row in pairs])


class RewardModelJudge:
    """A reward model. One that reads the run's ids gets those that were sampled."""

    def __init__(
        self,
        folder: str,
        run: Run,
        renderer: Renderer,
        made: bool,
        seats: Sequence[Any] | None = None,
    ):
        self.model = RewardFolder(folder, run, renderer, "evaluate.judge", made, seats)
        self.groups: list[Group] = [self.model.group]

    def of_rollouts(
        self, rollouts: Rollouts, prompts: Sequence[Prompt], rows: Sequence[dict[str, Any]]
    ) -> np.ndarray:
        return self.model.score(rollouts, prompts)

    def of_texts(self, prompts: Sequence[Prompt], rows: Sequence[dict[str, Any]]) -> np.ndarray:
        answers = [row["answer"] for row in rows]
        finished = [row["finished"] for row in rows]
        return numbers(self.model.finish(self.model.begin_texts(prompts, answers, finished)))


class RewardJudge:
    """The reward of scoring.sources, which the rows have."""

    def __init__(self) -> None:
        self.groups: list[Group] = []

    def of_rollouts(
        self, rollouts: Rollouts, prompts: Sequence[Prompt], rows: Sequence[dict[str, Any]]
    ) -> np.ndarray:
        # Under another name than in transcripts of RL, which `of_texts` gets.
        return np.array([np.nan if row["reward"] is None else row["reward"] for row in rows])

    def of_texts(self, prompts: Sequence[Prompt], rows: Sequence[dict[str, Any]]) -> np.ndarray:
        return np.array([np.nan if row["score"] is None else row["score"] for row in rows])


def judge_of(run: Run, renderer: Renderer, placement: Placement) -> Judge:
    """The judge that evaluate.judge names; its actors have places in the stage's `placement`."""
    name = run.config.evaluate.judge
    if name == "gold":
        return GoldJudge()
    if name == "scoring":
        return RewardJudge()
    made = name == "reward_model"
    folder = str(run.folder / "reward" / "judge") if made else name
    return RewardModelJudge(folder, run, renderer, made, placement.seats("judge"))
