"""What shows reward hacking while a policy learns: figures and alarms of each iteration, and fixed
prompts to read.

A policy that exploits its reward model gets higher scores for worse answers: longer, looping, all
alike, or liked by no other reward model. Nothing here changes what is learned: the second reward
model is only asked, and the fixed prompts have request seeds of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from rayward.actors.group import ExtraPrompts
from rayward.algorithms.diversity import distinct_n, distinct_ratio, repetition_rate
from rayward.configs.plan import in_turn
from rayward.data.rollouts import Rollouts
from rayward.pipelines.rl.alarms import MEANINGS, alarms_of, compared, next_running
from rayward.pipelines.rows.rows import fit_prompts, prepared, some
from rayward.pipelines.run.stage import Stage, StageError, write_jsonl

if TYPE_CHECKING:
    from rayward.pipelines.rl.rl_actors import RlActors


class Monitor:
    """Watches one algorithm; `alarms` holds every alarm of every iteration."""

    def __init__(self, stage: Stage, algorithm: str, actors: RlActors):
        self.folder, self.algorithm, self.actors, self.config = (
            stage.folder,
            algorithm,
            actors,
            stage.run.config,
        )
        self.at = self.config.rl.monitor
        known = prepared(stage.run, "evaluation_prompts") or prepared(stage.run, "prompts")
        chosen = some(known, self.at.prompts, self.config.seed)
        self.prompts, self.ids = fit_prompts(
            chosen, actors.renderer, self.config.rollout.max_new_tokens, Counter()
        )
        self.alarms: list[dict[str, Any]] = []
        self.running: dict[str, int] = {}
        self.first: dict[str, float] = {}
        self.first_answers: list[list[int]] = []
        (self.folder / "fixed").mkdir()

    def fixed(self, iteration: int) -> ExtraPrompts | None:
        """The fixed prompts, where this iteration has a look at them; their seeds are the same in
        every iteration.
        """
        if not self.prompts or not in_turn(self.config, self.at.every, iteration):
            return None
        return ExtraPrompts(self.ids, (self.config.seed, "monitor"))

    def ask(self, iteration: int) -> Rollouts | None:
        """Answers to them by the weights that the engines hold: the same as beside other prompts,
        only slower.
        """
        beside, rollout = self.fixed(iteration), self.config.rollout
        if beside is None:
            return None
        stops = self.actors.renderer.stop_token_ids
        return self.actors.rollout.generate(
            beside.prompts,
            1,
            beside.seed_parts,
            stops,
            rollout.temperature,
            rollout.max_new_tokens,
            what="monitor",
        )

    def look(
        self,
        iteration: int,
        rollouts: Rollouts,
        measures: Mapping[str, float],
        fixed: Rollouts | None,
    ) -> dict[str, float]:
        """Figures of an iteration, before its update; prints alarms that come up and end."""
        if fixed:
            write_jsonl(self.folder / "fixed" / f"{iteration:05d}.jsonl", self._told(fixed))
        answers = [rollouts.responses[row].tolist() for row in range(len(rollouts))]
        watched = ("score", "kl", "length", "mismatch_factor")
        now = {name: measures[name] for name in watched if name in measures} | {
            "truncated": 1 - measures["finished"],
            "repetition": float(np.mean([repetition_rate(answer, 4) for answer in answers])),
            "distinct_2": distinct_n(answers, 2),
        }
        self.first_answers = self.first_answers or answers
        now["distinct"] = distinct_ratio(answers, self.first_answers, 2)
        scores = self.actors.second_scores
        if scores is not None and np.isfinite(scores).any():
            now |= {
                "second_score": float(np.nanmean(scores)),
                "second_std": float(np.nanstd(scores)),
            }
        self.first = self.first or now
        figures = compared(self.first, now)
        figures["alarms"] = self._sound(iteration, figures)
        return {f"monitor/{name}": value for name, value in figures.items() if name not in measures}

    def _told(self, answers: Rollouts) -> list[dict[str, Any]]:
        """The answers to the fixed prompts, and what both reward models say."""
        actors = self.actors
        scored = answers.with_columns(
            scores=actors.reward.score(answers, self.prompts, lenient=True)
        )
        second = (
            actors.second.score(answers, self.prompts)
            if actors.second
            else np.full(len(answers), np.nan)
        )
        rows = actors.transcripts(scored, self.prompts)
        known = [None if np.isnan(score) else float(score) for score in second]
        return [row | {"second": score} for row, score in zip(rows, known, strict=True)]

    def _sound(self, iteration: int, figures: Mapping[str, float]) -> int:
        found = alarms_of(figures, self.at)
        where = f"{self.algorithm} iteration {iteration}"
        for name, (value, limit) in found.items():
            self.alarms.append(
                {"iteration": iteration, "name": name, "value": value, "limit": limit}
            )
            if name not in self.running:
                beyond = ">" if name.startswith("max") else "<"
                meaning = MEANINGS[name].format(value=value)
                tqdm.write(f"ALARM {where}: {name[4:]} {value:.3g} {beyond} {limit:g} ({meaning})")
        write_jsonl(self.folder / "alarms.jsonl", self.alarms)
        before, self.running = self.running, next_running(self.running, figures, found)
        for name in before.keys() - self.running.keys():
            tqdm.write(
                f"alarm over, {where}: {name[4:]} {figures[name[4:]]:.3g} (rl.monitor.{name})"
            )
        return len(found)

    def check(self) -> None:
        """Raise StageError where rl.monitor says that alarms stop the stage and one has lasted."""
        for name, iterations in self.running.items():
            if self.at.stop_on_alarm and iterations >= self.at.patience:
                value = next(
                    alarm["value"] for alarm in reversed(self.alarms) if alarm["name"] == name
                )
                raise StageError(
                    f"{self.algorithm} stopped by rl.monitor.stop_on_alarm: {name} for "
                    f"{iterations} iterations in a row: {MEANINGS[name].format(value=value)}. See "
                    f"{self.folder / 'transcripts'}; to go on, set stop_on_alarm false, or "
                    f"rl.monitor.{name} to null for no such alarm"
                )
