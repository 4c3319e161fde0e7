"""The reward of answers: every source of scoring.sources says a number, and the reward is their
weighted sum.

A source scores the prompts that it is for (all, or those of the data sources in `only`) and adds
nothing to the others, nor where it says None: what a source scores should be worth the same for
every prompt. Nothing that goes wrong becomes a 0: see actors/scoring/sources.py for the two errors,
and `tolerated` for what may be left out, and is counted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from rayward.actors.group import Group
from rayward.actors.scoring.sources import (
    LONGEST_PAUSE_S,
    ResponseText,
    Score,
    SourceDataError,
    SourceUnavailable,
    SourceWorker,
)
from rayward.configs.plan import given_second
from rayward.configs.plan import second_model as has_second
from rayward.configs.sections.machines import Role
from rayward.configs.sections.scoring import RewardSource
from rayward.data.records import Prompt
from rayward.data.rollouts import Rollouts
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.rows.rows import prepared
from rayward.pipelines.run.stage import Run, StageError
from rayward.pipelines.scoring.reward_folder import RewardFolder


class Scorer:
    """The actors of all sources behind one call."""

    def __init__(self, run: Run, renderer: Renderer):
        self.scoring, self.renderer = run.config.scoring, renderer
        check_only(run)
        folder = str(Path(run.config.scoring.functions).resolve())
        self.asked: list[ModelSource | OtherSource] = []
        for source in self.scoring.sources:
            if source.kind == "model":
                self.asked.append(ModelSource(source, run, renderer))
            else:
                self.asked.append(OtherSource(source, run, folder))

    @property
    def groups(self) -> list[Group]:
        return [group for source in self.asked for group in source.groups]

    def begin(self, rollouts: Rollouts, prompts: Sequence[Prompt]) -> list[Any]:
        """Ask all sources, each for the answers to its prompts; `prompts` are those that
        `prompt_index` counts.
        """
        begun = []
        for source in self.asked:
            only = source.source.only
            rows = [
                row
                for row, index in enumerate(rollouts.prompt_index)
                if not only or prompts[index].source in only
            ]
            part = rollouts if len(rows) == len(rollouts) else rollouts.take(rows)
            calls = source.begin(part, prompts, self.renderer) if rows else None
            begun.append((rows, [(calls, len(rows))] if rows else []))
        return begun

    def join(self, parts: list[tuple[list[Any], int]]) -> list[Any]:
        """What `begin` gave for parts of so many answers each, as if it had been for all of them at
        once.
        """
        firsts = np.cumsum([0, *(count for _, count in parts)]).tolist()
        joined = []
        for number in range(len(self.asked)):
            own = [begun[number] for begun, _ in parts]
            rows = [
                row + first for first, (rows, _) in zip(firsts, own, strict=False) for row in rows
            ]
            joined.append((rows, [call for _, calls in own for call in calls]))
        return joined

    def finish(
        self, begun: list[Any], rollouts: Rollouts, prompts: Sequence[Prompt], lenient: bool = False
    ) -> tuple[np.ndarray, dict[str, float]]:
        """([B] reward of each answer, figures of each source where there are several).

        Raises SourceUnavailable, SourceDataError. `lenient`: an answer that a source fails on, or
        that none scores, has the reward NaN instead.
        """
        values = np.full((len(self.asked), len(rollouts)), np.nan)
        failed, figures = np.zeros(len(rollouts), bool), dict[str, float]()
        for number, (source, (rows, calls)) in enumerate(zip(self.asked, begun, strict=True)):
            if not rows:
                continue
            said = [score for part, count in calls for score in source.finish(part, count)]
            bad = [index for index, score in enumerate(said) if isinstance(score, str)]
            found = np.array(
                [np.nan if score is None or isinstance(score, str) else score for score in said]
            )
            able = bool(np.isfinite(found).any())
            if bad and not lenient and (not able or len(bad) > source.source.tolerated * len(said)):
                prompt = prompts[rollouts.prompt_index[rows[bad[0]]]]
                raise SourceDataError(
                    f"scoring source {source.source.title}: no score for {len(bad)} of "
                    f"{len(said)} answers, first to prompt {prompt.id!r} of {prompt.source!r}: "
                    f"{said[bad[0]]}. Mend the source, or allow a share of them with tolerated "
                    f"(now {source.source.tolerated:g})"
                )
            failed[[rows[index] for index in bad]] = True
            if bad and able:
                found[bad] = np.nanmean(found)
            values[number, rows] = found
            if len(self.asked) > 1 and able:
                figures[f"sources/{source.source.title}"] = float(np.nanmean(found))
            if source.source.tolerated:
                figures[f"sources/{source.source.title}_without"] = float(len(bad))
        silent = np.flatnonzero(np.isnan(values).all(0))
        if len(silent) and not lenient:
            prompt = prompts[rollouts.prompt_index[silent[0]]]
            raise SourceDataError(
                f"no source of reward scores {len(silent)} of {len(rollouts)} answers, first to "
                f"prompt {prompt.id!r} of {prompt.source!r}; give scoring.sources one that does "
                "(only, or a function that returns None)"
            )
        weights = np.array([source.source.weight for source in self.asked])
        rewards = np.nansum(values * weights[:, None], axis=0).astype(np.float32)
        if lenient:
            rewards[failed] = rewards[silent] = np.nan
        return rewards, figures

    def score(
        self, rollouts: Rollouts, prompts: Sequence[Prompt], lenient: bool = False
    ) -> np.ndarray:
        """`begin` and `finish`, the rewards alone."""
        return self.finish(self.begin(rollouts, prompts), rollouts, prompts, lenient)[0]


def check_only(run: Run) -> None:
    """StageError where a source of reward is for prompts of a data source that has none."""
    if wanted := sorted({name for source in run.config.scoring.sources for name in source.only}):
        prompts = [*prepared(run, "prompts"), *prepared(run, "evaluation_prompts")]
        known = sorted({prompt.source for prompt in prompts})
        if unknown := [name for name in wanted if name not in known]:
            raise StageError(
                f"scoring.sources: only names {unknown[0]!r}, but no prompt is of that source; "
                f"there are {', '.join(known)}"
            )


class ModelSource:
    """Reward models: one, or several whose mean or worst score counts."""

    def __init__(self, source: RewardSource, run: Run, renderer: Renderer):
        self.source = source
        setting, own = "scoring.sources paths", not source.paths
        folders = [run.model("reward")] if own else source.paths
        self.models = [RewardFolder(path, run, renderer, setting, made=own) for path in folders]

    @property
    def groups(self) -> list[Group]:
        return [model.group for model in self.models]

    def begin(self, rollouts: Rollouts, prompts: Sequence[Prompt], *_: Any) -> list[Any]:
        return [model.begin(rollouts, prompts) for model in self.models]

    def finish(self, calls: list[Any], count: int) -> list[Score]:
        said = [model.finish(asked) for model, asked in zip(self.models, calls, strict=True)]
        worst = self.source.ensemble == "worst"
        combined: list[Score] = []
        for scores in zip(*said, strict=True):
            if bad := [score for score in scores if not isinstance(score, float)]:
                combined.append(bad[0])
            else:
                combined.append(float(np.min(scores) if worst else np.mean(scores)))
        return combined


class OtherSource:
    """A function, a service or a judge: asked in batches, dealt to its processes in turn."""

    def __init__(self, source: RewardSource, run: Run, folder: str):
        self.source = source
        workers = source.parallel if source.kind == "function" else 1
        role = Role(workers=workers, cpus=0.01)
        key = os.environ.get(source.key or ("OPENAI_API_KEY" if source.kind == "judge" else ""))
        arguments = (source, folder, key)
        self.groups = [
            Group(
                f"scoring source {source.title}", SourceWorker, role, run.config.cluster, arguments
            )
        ]

    def begin(self, rollouts: Rollouts, prompts: Sequence[Prompt], renderer: Renderer) -> list[Any]:
        asked = []
        for row, index in enumerate(rollouts.prompt_index):
            prompt, text = prompts[index], renderer.answer(rollouts.responses[row])
            messages = [{"role": turn.role, "content": turn.content} for turn in prompt.turns]
            finished = bool(rollouts.finished[row])
            asked.append(
                ResponseText(messages, text, prompt.reference, prompt.source, prompt.id, finished)
            )
        actors, size = self.groups[0].actors, self.source.batch
        batches = [asked[start : start + size] for start in range(0, len(asked), size)]
        return [
            actors[number % len(actors)].score.remote(batch) for number, batch in enumerate(batches)
        ]

    def finish(self, calls: list[Any], count: int) -> list[Score]:
        workers, limit = len(self.groups[0].actors), self.longest_s
        scores: list[Score] = []
        try:
            # One call of each process at a time, so each has the limit.
            for start in range(0, len(calls), workers):
                for part in self.groups[0].finish(calls[start : start + workers], limit):
                    scores += part
        except TimeoutError:
            raise SourceUnavailable(
                f"scoring source {self.source.title}: {self.source.target} did not answer a call "
                f"of {min(count, self.source.batch)} answers within {limit:g} s; raise its "
                "timeout_s if it is only slow"
            ) from None
        except ray.exceptions.RayActorError as error:
            raise SourceUnavailable(
                f"scoring source {self.source.title}: its process ended: {error}"
            ) from None
        return scores

    @property
    def longest_s(self) -> float:
        """What a call may take in the worst case, all retries and the pauses between them
        included.
        """
        source = self.source
        tries = source.retries + 1
        waits = tries * (source.timeout_s + LONGEST_PAUSE_S)
        if source.kind == "function":
            return source.timeout_s
        return (
            waits if source.kind == "http" else -(-source.batch // source.parallel) * tries * waits
        )


def second_model(run: Run, renderer: Renderer) -> RewardFolder | None:
    """The second reward model, where the config has one. StageError for a folder that holds
    none.
    """
    if not has_second(run.config):
        return None
    given, own = given_second(run.config), run.folder / "reward" / "judge"
    setting = "rl.monitor.second" if run.config.rl.monitor.second else "evaluate.judge"
    second = RewardFolder(given or own, run, renderer, setting, made=not given)
    second.group.name = "second reward model"
    return second
