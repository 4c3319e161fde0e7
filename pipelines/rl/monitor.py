"""What shows reward hacking while a policy learns: figures and alarms of each iteration, and fixed
prompts to read.

A policy that exploits its reward model gets higher scores for worse answers: longer, looping, all
alike, or liked by no other reward model. Nothing here changes what is learned: the second reward
model is only asked, and the fixed prompts have request seeds of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from rayward.actors.rollout_group import ExtraPrompts
from rayward.algorithms.diversity import distinct_n, distinct_ratio, repetition_rate
from rayward.configs.plan import in_turn
from rayward.data.rollouts import Rollouts
from rayward.pipelines.rl.alarms import MEANINGS, alarms_of, compared, next_running
from rayward.pipelines.rl.transcripts import transcripts
from rayward.pipelines.rows.prompts import fit_prompts
from rayward.pipelines.rows.records import prepared, subset
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.files import write_jsonl
from rayward.pipelines.run.stage import Stage

if TYPE_CHECKING:
    from rayward.pipelines.rl.rl_actors import RlActors

STATE = ("alarms", "running", "first", "first_responses")


class Monitor:
    """Watches one algorithm; `alarms` holds every alarm of every iteration."""

    def __init__(self, stage: Stage, algorithm: str, actors: RlActors):
        self.folder, self.algorithm, self.actors = stage.folder, algorithm, actors
        self.config, self.settings = stage.run.config, stage.run.config.rl.monitor
        # Held-out prompts show whether what is learned carries over; some runs have none.
        known = prepared(stage.run, "evaluation_prompts") or prepared(stage.run, "prompts")
        chosen = subset(known, self.settings.prompts, self.config.seed)
        self.prompts, self.ids = fit_prompts(
            chosen, actors.renderer, self.config.rollout.max_new_tokens, Counter()
        )
        self.alarms: list[dict[str, Any]] = []
        # Iterations in a row, by alarm.
        self.running: dict[str, int] = {}
        # Figures and responses of iteration 0, which later ones are compared with.
        self.first: dict[str, float] = {}
        self.first_responses: list[list[int]] = []
        (self.folder / "fixed").mkdir(exist_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """What it remembers from iteration to iteration."""
        # Copies, since the next iteration adds to them.
        return {name: copy(getattr(self, name)) for name in STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        for name in STATE:
            setattr(self, name, state[name])

    def fixed_prompts(self, iteration: int) -> ExtraPrompts | None:
        """The fixed prompts, where it is their turn; always with the same seeds."""
        if not self.prompts or not in_turn(self.config, self.settings.every, iteration):
            return None
        # No iteration in it: then only the weights make one look differ from the next.
        return ExtraPrompts(self.ids, (self.config.seed, "monitor"))

    def sample_fixed(self, iteration: int) -> Rollouts | None:
        """Responses to them by the weights that the engines hold: the same as beside other prompts,
        only slower.
        """
        fixed, rollout = self.fixed_prompts(iteration), self.config.rollout
        if fixed is None:
            return None
        return self.actors.rollout.generate(
            fixed.prompts,
            1,
            fixed.seed_parts,
            self.actors.renderer.stop_token_ids,
            rollout.temperature,
            rollout.max_new_tokens,
            span_name="monitor",
        )

    def measure(
        self,
        iteration: int,
        rollouts: Rollouts,
        measures: Mapping[str, float],
        fixed: Rollouts | None,
    ) -> dict[str, float]:
        """Figures of an iteration, before its update; prints alarms that come up and end."""
        if fixed:
            write_jsonl(self.folder / "fixed" / f"{iteration:05d}.jsonl", self._fixed_rows(fixed))
        responses = [rollouts.responses[row].tolist() for row in range(len(rollouts))]
        watched = ("score", "kl", "length", "mismatch_factor", "equal_groups")
        current = {name: measures[name] for name in watched if name in measures} | {
            "truncated": 1 - measures["finished"],
            "repetition": float(np.mean([repetition_rate(ids, 4) for ids in responses])),
            "distinct_2": distinct_n(responses, 2),
        }
        self.first_responses = self.first_responses or responses
        current["distinct"] = distinct_ratio(responses, self.first_responses, 2)
        scores = self.actors.scoring.second_scores
        # nanmean of nothing but NaN would warn, and give a figure that JSON cannot hold.
        if scores is not None and np.isfinite(scores).any():
            current |= {
                "second_score": float(np.nanmean(scores)),
                "second_std": float(np.nanstd(scores)),
            }
        self.first = self.first or current
        figures = compared(self.first, current)
        figures["alarms"] = self._sound(iteration, figures)
        # The others stand in the line of metrics already.
        return {f"monitor/{name}": value for name, value in figures.items() if name not in measures}

    def _fixed_rows(self, responses: Rollouts) -> list[dict[str, Any]]:
        """The responses to the fixed prompts, and what both reward models say."""
        actors = self.actors
        # Lenient: who only watches does not end a run for a response that has no score.
        scores = actors.reward.score(responses, self.prompts, lenient=True)
        second = np.full(len(responses), np.nan)
        if actors.second:
            second = actors.second.score(responses, self.prompts)
        scored = responses.with_columns(scores=scores)
        rows = transcripts(actors.renderer, scored, self.prompts)
        second_or_none = [None if np.isnan(score) else float(score) for score in second]
        return [row | {"second": score} for row, score in zip(rows, second_or_none, strict=True)]

    def _sound(self, iteration: int, figures: Mapping[str, float]) -> int:
        """Note the alarms of an iteration and print those that come up or end; their number."""
        alarms = alarms_of(figures, self.settings)
        where = f"{self.algorithm} iteration {iteration}"
        for name, (value, limit) in alarms.items():
            self.alarms.append(
                {"iteration": iteration, "name": name, "value": value, "limit": limit}
            )
            if name not in self.running:
                beyond = ">" if name.startswith("max") else "<"
                meaning = MEANINGS[name].format(value=value)
                tqdm.write(f"ALARM {where}: {name[4:]} {value:.3g} {beyond} {limit:g} ({meaning})")
        # Also where there is none: the file says that the algorithm was watched.
        write_jsonl(self.folder / "alarms.jsonl", self.alarms)
        before, self.running = self.running, next_running(self.running, figures, alarms)
        for name in before.keys() - self.running.keys():
            tqdm.write(
                f"alarm over, {where}: {name[4:]} {figures[name[4:]]:.3g} (rl.monitor.{name})"
            )
        return len(alarms)

    def check_patience(self) -> None:
        """Raise StageError where rl.monitor says that alarms stop the stage and one has lasted."""
        for name, iterations in self.running.items():
            if self.settings.stop_on_alarm and iterations >= self.settings.patience:
                # Not of the last iteration, where that did not measure it.
                value = next(
                    alarm["value"] for alarm in reversed(self.alarms) if alarm["name"] == name
                )
                raise StageError(
                    f"{self.algorithm} stopped by rl.monitor.stop_on_alarm: {name} for "
                    f"{iterations} iterations in a row: {MEANINGS[name].format(value=value)}. See "
                    f"{self.folder / 'transcripts'}; to go on, set stop_on_alarm false, or "
                    f"rl.monitor.{name} to null for no such alarm"
                )
