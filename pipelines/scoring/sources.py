"""The sources of reward as the driver sees them: `begin` asks and returns at once, `finish` waits.

A response gets a score, None where the source has nothing to say, or the reason for no score.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from rayward.actors.group import Group
from rayward.actors.pulse import ProcessLost
from rayward.actors.scoring.sources import (
    LONGEST_PAUSE_S,
    ResponseText,
    Score,
    SourceUnavailable,
    SourceWorker,
)
from rayward.configs.sections.machines import Role
from rayward.configs.sections.scoring import RewardSource
from rayward.data.records import Prompt
from rayward.data.rollouts import Rollouts
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.run.folder import Run
from rayward.pipelines.scoring.reward_folder import PendingScores, RewardFolder


class ModelSource:
    """Reward models: one, or several whose mean or worst score counts."""

    def __init__(
        self,
        settings: RewardSource,
        run: Run,
        renderer: Renderer,
        seats: Sequence[Sequence[Any] | None] = (),
    ):
        """`seats`: of each model, where the stage has reserved them."""
        self.settings = settings
        ours = not settings.paths
        folders = [run.model("reward")] if ours else settings.paths
        seats = seats or [None] * len(folders)
        self.models = [
            RewardFolder(path, run, renderer, "scoring.sources paths", ours, place)
            for path, place in zip(folders, seats, strict=True)
        ]

    @property
    def groups(self) -> list[Group]:
        return [model.group for model in self.models]

    def begin(
        self, rollouts: Rollouts, prompts: Sequence[Prompt], renderer: Renderer
    ) -> list[PendingScores]:
        # Each model has the renderer that it reads conversations with.
        return [model.begin(rollouts, prompts) for model in self.models]

    def begin_texts(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[PendingScores]:
        """Ask for the scores of whole answers that are text, one to each prompt."""
        whole = [True] * len(answers)
        return [model.begin_texts(prompts, answers, whole) for model in self.models]

    def finish(self, calls: list[PendingScores], count: int) -> list[Score]:
        by_model = [model.finish(scores) for model, scores in zip(self.models, calls, strict=True)]
        combine = np.min if self.settings.ensemble == "worst" else np.mean
        combined: list[Score] = []
        for scores in zip(*by_model, strict=True):
            # One model that fails decides: the mean of the others would be worth something else.
            bad = [score for score in scores if not isinstance(score, float)]
            combined.append(bad[0] if bad else float(combine(scores)))
        return combined


class OtherSource:
    """A function, a service or a judge: asked in batches, dealt to its processes in turn."""

    def __init__(self, settings: RewardSource, run: Run, folder: str):
        """`folder`: where the modules of functions lie."""
        self.settings = settings
        # A function may hold the interpreter, so it runs in several processes. The process of a
        # judge sends its requests from threads, and a service gets one batch at a time.
        workers = settings.parallel if settings.kind == "function" else 1
        # Without CPUs, since the stage has no places for them: its own may have taken all.
        role = Role(workers=workers, cpus=0)
        # Read in the driver: other machines need not have the variable.
        key = os.environ.get(settings.key or ("OPENAI_API_KEY" if settings.kind == "judge" else ""))
        name, arguments = f"scoring source {settings.title}", (settings, folder, key)
        self.groups = [Group(name, SourceWorker, role, run.config.cluster, arguments)]

    def begin(
        self, rollouts: Rollouts, prompts: Sequence[Prompt], renderer: Renderer
    ) -> list[ray.ObjectRef]:
        asked = [prompts[index] for index in rollouts.prompt_index]
        answers = [renderer.answer(rollouts.responses[row]) for row in range(len(rollouts))]
        return self._ask(asked, answers, [bool(ended) for ended in rollouts.finished])

    def begin_texts(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[ray.ObjectRef]:
        """Ask for the scores of whole answers that are text, one to each prompt."""
        return self._ask(prompts, answers, [True] * len(answers))

    def _ask(
        self, prompts: Sequence[Prompt], answers: Sequence[str], finished: Sequence[bool]
    ) -> list[ray.ObjectRef]:
        texts = [
            ResponseText(
                prompt.turns,
                text,
                prompt.reference,
                prompt.source,
                prompt.id,
                ended,
                prompt.tools,
            )
            for prompt, text, ended in zip(prompts, answers, finished, strict=True)
        ]
        actors, size = self.groups[0].actors, self.settings.batch
        batches = [texts[start : start + size] for start in range(0, len(texts), size)]
        return [
            actors[number % len(actors)].score.remote(batch) for number, batch in enumerate(batches)
        ]

    def finish(self, calls: list[ray.ObjectRef], count: int) -> list[Score]:
        settings, workers, limit = self.settings, len(self.groups[0].actors), self.longest_s
        scores: list[Score] = []
        try:
            # One call of each process at a time, so each has the limit.
            for start in range(0, len(calls), workers):
                for part in self.groups[0].finish(calls[start : start + workers], limit):
                    scores += part
        except TimeoutError:
            raise SourceUnavailable(
                f"scoring source {settings.title}: {settings.target} did not answer a call of "
                f"{min(count, settings.batch)} answers within {limit:g} s; raise its timeout_s if "
                "it is only slow"
            ) from None
        except ProcessLost as error:
            raise SourceUnavailable(
                f"scoring source {settings.title}: its process ended: {error}"
            ) from None
        return scores

    @property
    def longest_s(self) -> float:
        """Seconds that a call may take at worst, with all retries and the pauses between them."""
        settings = self.settings
        if settings.kind == "function":
            return settings.timeout_s
        tries = settings.retries + 1
        waits_s = tries * (settings.timeout_s + LONGEST_PAUSE_S)
        if settings.kind == "http":
            return waits_s
        # A judge is asked about one response at a time, `parallel` of them at once; what it says
        # may be no rating, and then is asked for again, each time with all retries.
        return -(-settings.batch // settings.parallel) * tries * waits_s
