"""The reward of responses: every source of scoring.sources says a number, and the reward is their
weighted sum.

A source scores the prompts that it is for (all, or those of the data sources in `only`) and adds
nothing to the others, nor where it says None: what a source scores should be worth the same for
every prompt. Nothing that goes wrong becomes a 0: see actors/scoring/sources.py for the two errors,
and `tolerated` for what may be left out, and is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayward.actors.group import Group
from rayward.actors.scoring.sources import Score, SourceDataError
from rayward.cluster.placement import Placement
from rayward.configs.plan import given_second, scorer
from rayward.configs.plan import second_model as has_second
from rayward.data.records import Prompt
from rayward.data.rollouts import Rollouts
from rayward.pipelines.rows.records import prepared
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.folder import Run
from rayward.pipelines.scoring.reward_folder import RewardFolder
from rayward.pipelines.scoring.sources import ModelSource, OtherSource


@dataclass(frozen=True)
class SourceCalls:
    """What one source was asked: the rows of the responses that it scores, and its calls, each with
    the number of responses in it. Only the source itself can read its calls.
    """

    rows: list[int]
    calls: list[tuple[list[Any], int]]


class Scorer:
    """The actors of all sources behind one call."""

    def __init__(self, run: Run, renderer: Renderer, placement: Placement | None = None):
        """`placement`: of the stage, with places for the reward models."""
        self.scoring, self.renderer = run.config.scoring, renderer
        # Before any actor starts.
        check_only(run)
        folder = str(Path(run.config.scoring.functions).resolve())
        self.sources: list[ModelSource | OtherSource] = []
        models = 0
        for source in self.scoring.sources:
            if source.kind == "model":
                numbers = range(models, models + max(1, len(source.paths)))
                seats = [placement.seats(scorer(number)) for number in numbers] if placement else []
                self.sources.append(ModelSource(source, run, renderer, seats))
                models = numbers.stop
            else:
                self.sources.append(OtherSource(source, run, folder))

    @property
    def groups(self) -> list[Group]:
        return [group for source in self.sources for group in source.groups]

    def begin(self, rollouts: Rollouts, prompts: Sequence[Prompt]) -> list[SourceCalls]:
        """Ask all sources, each for the responses to its prompts; `prompts` are those that
        `prompt_index` counts.
        """
        pending = []
        asked = [prompts[index] for index in rollouts.prompt_index]
        for source in self.sources:
            rows = _rows_of(source, asked)
            if not rows:
                pending.append(SourceCalls([], []))
                continue
            part = rollouts if len(rows) == len(rollouts) else rollouts.take(rows)
            calls = source.begin(part, prompts, self.renderer)
            pending.append(SourceCalls(rows, [(calls, len(rows))]))
        return pending

    def join(self, parts: list[tuple[list[SourceCalls], int]]) -> list[SourceCalls]:
        """What `begin` gave for parts of so many responses each, as if it had been for all of them
        at once.
        """
        # The row of the whole at which each part begins.
        starts = np.cumsum([0, *(count for _, count in parts)]).tolist()
        joined = []
        for number in range(len(self.sources)):
            rows, calls = [], []
            for start, (pending, _) in zip(starts, parts, strict=False):  # one start more
                rows += [start + row for row in pending[number].rows]
                calls += pending[number].calls
            joined.append(SourceCalls(rows, calls))
        return joined

    def finish(
        self,
        pending: list[SourceCalls],
        rollouts: Rollouts,
        prompts: Sequence[Prompt],
        lenient: bool = False,
    ) -> tuple[np.ndarray, dict[str, float]]:
        """([B] reward of each response, fp32, and figures of each source where there are several).

        Raises SourceUnavailable, SourceDataError. `lenient`: a response that a source fails on, or
        that none scores, has the reward NaN instead.
        """
        return self._combine(pending, [prompts[index] for index in rollouts.prompt_index], lenient)

    def score_texts(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> np.ndarray:
        """[B] reward of whole answers that are text, one to each prompt, NaN where there is none.

        SourceUnavailable where a source does not answer.
        """
        pending = []
        for source in self.sources:
            rows = _rows_of(source, prompts)
            part = [prompts[row] for row in rows]
            calls = source.begin_texts(part, [answers[row] for row in rows]) if rows else []
            pending.append(SourceCalls(rows, [(calls, len(rows))] if rows else []))
        return self._combine(pending, prompts, lenient=True)[0]

    def _combine(
        self, pending: list[SourceCalls], prompts: Sequence[Prompt], lenient: bool
    ) -> tuple[np.ndarray, dict[str, float]]:
        """`finish` of responses, one to each prompt."""
        # [source, response]; NaN where a source has nothing to say.
        values = np.full((len(self.sources), len(prompts)), np.nan)
        failed_B = np.zeros(len(prompts), bool)
        figures: dict[str, float] = {}
        for number, (source, source_calls) in enumerate(zip(self.sources, pending, strict=True)):
            settings, rows = source.settings, source_calls.rows
            if not rows:
                continue
            scores: list[Score] = []
            for calls, count in source_calls.calls:
                # The calls are those of this very source, which the checker cannot know.
                scores += source.finish(calls, count)
            bad = [place for place, score in enumerate(scores) if isinstance(score, str)]
            known = np.array(
                [np.nan if score is None or isinstance(score, str) else score for score in scores]
            )
            any_known = bool(np.isfinite(known).any())
            too_many = not any_known or len(bad) > settings.tolerated * len(scores)
            if bad and not lenient and too_many:
                prompt = prompts[rows[bad[0]]]
                raise SourceDataError(
                    f"scoring source {settings.title}: no score for {len(bad)} of {len(scores)} "
                    f"answers, first to prompt {prompt.id!r} of {prompt.source!r}: "
                    f"{scores[bad[0]]}. Mend the source, or allow a share of them with tolerated "
                    f"(now {settings.tolerated:g})"
                )
            failed_B[[rows[place] for place in bad]] = True
            # The mean of the others neither rewards nor punishes what the source could not score;
            # a 0 would, on any scale that is not centred.
            if bad and any_known:
                known[bad] = np.nanmean(known)
            values[number, rows] = known
            if len(self.sources) > 1 and any_known:
                figures[f"sources/{settings.title}"] = float(np.nanmean(known))
            if settings.tolerated:
                figures[f"sources/{settings.title}_without"] = float(len(bad))
        silent = np.flatnonzero(np.isnan(values).all(0))
        # The sum of nothing would be a reward of 0.
        if len(silent) and not lenient:
            prompt = prompts[silent[0]]
            raise SourceDataError(
                f"no source of reward scores {len(silent)} of {len(prompts)} answers, first to "
                f"prompt {prompt.id!r} of {prompt.source!r}; give scoring.sources one that does "
                "(only, or a function that returns None)"
            )
        weights = np.array([source.settings.weight for source in self.sources])
        rewards_B = np.nansum(values * weights[:, None], axis=0).astype(np.float32)
        if lenient:
            rewards_B[failed_B] = rewards_B[silent] = np.nan
        return rewards_B, figures

    def score(
        self, rollouts: Rollouts, prompts: Sequence[Prompt], lenient: bool = False
    ) -> np.ndarray:
        """`begin` and `finish`, the rewards alone."""
        return self.finish(self.begin(rollouts, prompts), rollouts, prompts, lenient)[0]


def _rows_of(source: ModelSource | OtherSource, prompts: Sequence[Prompt]) -> list[int]:
    """The rows of the prompts that a source is for."""
    only = source.settings.only
    return [row for row, prompt in enumerate(prompts) if not only or prompt.source in only]


def check_only(run: Run) -> None:
    """StageError where a source of reward is for prompts of a data source that has none."""
    wanted = sorted({name for source in run.config.scoring.sources for name in source.only})
    if not wanted:
        return
    prompts = [*prepared(run, "prompts"), *prepared(run, "evaluation_prompts")]
    known = sorted({prompt.source for prompt in prompts})
    if unknown := [name for name in wanted if name not in known]:
        raise StageError(
            f"scoring.sources: only names {unknown[0]!r}, but no prompt is of that source; "
            f"there are {', '.join(known)}"
        )


def second_model(
    run: Run, renderer: Renderer, placement: Placement | None = None
) -> RewardFolder | None:
    """The second reward model, if the config has one. StageError for a folder that holds none."""
    if not has_second(run.config):
        return None
    given, ours = given_second(run.config), run.folder / "reward" / "judge"
    setting = "rl.monitor.second" if run.config.rl.monitor.second else "evaluate.judge"
    seats = placement.seats("second") if placement else None
    second = RewardFolder(given or ours, run, renderer, setting, not given, seats)
    # An error of its actors must not speak of the first one's.
    second.group.name = "second reward model"
    return second
