"""What is written of every RL iteration: figures, seconds, spans, transcripts and rollouts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from rayward.actors.rollout.generation import Arrived, Generation
from rayward.configs.schema import Config
from rayward.data import rollout_file
from rayward.data.records import Prompt
from rayward.data.rollouts import Rollouts
from rayward.pipelines.rl.advantages import RewardShaper
from rayward.pipelines.rl.rl_actors import RlActors
from rayward.pipelines.rl.trace import seconds_of, union
from rayward.pipelines.rl.transcripts import transcripts
from rayward.pipelines.run.files import write_json, write_jsonl
from rayward.pipelines.run.stage import Stage

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class IterationWriter:
    """Writes it; `history` holds every line of metrics."""

    stage: Stage
    actors: RlActors
    history: list[dict[str, Any]] = field(default_factory=list)
    before_s: float = 0.0
    """Seconds of an earlier try, which `history` is of."""

    def __post_init__(self) -> None:
        for name in ("transcripts", "rollouts"):
            (self.stage.folder / name).mkdir(exist_ok=True)
        # Seconds in spans.jsonl count from here, less what an earlier try took.
        self.origin = time.time() - self.before_s

    def start(self, iteration: int) -> None:
        self.iteration, self.started_at = iteration, time.time()
        self.figures: dict[str, Any] = {"time": {}}
        self.driver_spans: list[dict[str, Any]] = []

    def timed(self, name: str, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """What `work` returns; the driver's seconds are remembered as a span of this name."""
        # The clock of the actors' spans, which stand in the same file.
        started_at = time.time()
        try:
            return work(*arguments, **named)
        finally:
            self.driver_spans.append(
                {"role": "driver", "rank": 0, "name": name, "start": started_at, "end": time.time()}
            )

    def note(self, figures: Mapping[str, Any]) -> None:
        """Figures for this iteration's line of metrics."""
        # What "time" holds so far stays: transfer, update and phases each add to it.
        self.figures = {
            **self.figures,
            **figures,
            "time": {**self.figures["time"], **figures.get("time", {})},
        }

    def save(self, rollouts: Rollouts, prompts: list[Prompt], shaper: RewardShaper) -> None:
        """Transcripts, rollouts, and what reward shaping remembers."""
        folder = self.stage.folder
        write_jsonl(
            folder / "transcripts" / f"{self.iteration:05d}.jsonl",
            transcripts(self.actors.renderer, rollouts, prompts),
        )
        if self.stage.run.config.rl.save_rollouts:
            path = folder / "rollouts" / f"{self.iteration:05d}.parquet"
            rollout_file.write(path, rollouts, [prompt.id for prompt in prompts])
        write_json(folder / "reward_state.json", shaper.state_dict())

    def end(
        self,
        rollouts: Rollouts,
        tokens_per_s: float = 0.0,
        in_flight: Generation | Arrived | None = None,
    ) -> dict[str, Any]:
        """The iteration's line of metrics; all that the clock decides stands under "time".

        `tokens_per_s`: how fast the engines made these responses, 0 of a replay; `in_flight`: the
        next ones, on their way.
        """
        self.actors.take_spans(in_flight=in_flight)
        spans, self.actors.spans = self.driver_spans + self.actors.spans, []
        line = {
            "iteration": self.iteration,
            "begun": self._since_origin(self.started_at),
            "ended": self._since_origin(time.time()),
            "spans": [
                {
                    **span,
                    "start": self._since_origin(span["start"]),
                    "end": self._since_origin(span["end"]),
                }
                for span in spans
            ],
        }
        with (self.stage.folder / "spans.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        # Material of a rate, no figure of its own.
        computed = self.figures["time"].pop("computed_tokens", 0.0)
        times = speeds(line, rollouts, self.stage.run.config, self.actors.machine, computed)
        if tokens_per_s:
            times["generated_tokens_per_s"] = round(tokens_per_s, 4)
        self.note({"time": times})
        self.history.append(self.figures)
        return self.figures

    @property
    def seconds(self) -> float:
        """So far, with those of earlier tries."""
        return self._since_origin(time.time())

    def _since_origin(self, seconds: float) -> float:
        return round(seconds - self.origin, 5)


PHASES = {
    ("rollout", "generate"): "generate_s",
    ("reward", "score"): "reward_s",
    ("reference", "logprobs"): "reference_s",
    ("policy", "reference"): "reference_s",
    ("critic", "values"): "values_s",
    ("policy", "logprobs"): "logprobs_s",
    ("policy", "update"): "policy_update_s",
    ("critic", "update"): "critic_update_s",
    ("second", "score"): "second_s",
    ("policy", "send_weights"): "transfer_s",
    ("driver", "monitor"): "monitor_s",
    ("driver", "save"): "save_s",
    ("driver", "checkpoint"): "checkpoint_s",
    ("driver", "advantages"): "advantages_s",
}
"""Names of the seconds of metrics.jsonl."""
WORK = ("generate", "monitor", "score", "reference", "logprobs", "values", "update")
"""Spans of actors that are work on the iteration; all else of it is overhead."""


def speeds(
    line: dict[str, Any],
    rollouts: Rollouts,
    config: Config,
    machine: list[dict[str, float]],
    computed: float,
) -> dict[str, Any]:
    """Seconds by phase, idle seconds by role, and rates of an iteration; `machine` is what each
    policy rank says (`Policy.describe`).

    `computed`: tokens that the layers of all policy ranks saw in the update, shared prompts once
    and padding too.
    """
    times = seconds_of(line)
    wall = times["iteration_s"]
    # First, and 0 of a replay: every line has the key, in the same place.
    seconds = {"generate_s": 0.0}
    for task, busy_s in times["busy_s"].items():
        if task in PHASES:
            seconds[PHASES[task]] = busy_s
    work = [
        (span["start"], span["end"])
        for span in line["spans"]
        if span["name"] in WORK and span["role"] != "driver"
    ]
    # What engines sample ahead reaches over the ends of the iteration.
    inside = union((max(start, line["begun"]), min(end, line["ended"])) for start, end in work)
    rates = {
        "samples_per_s": len(rollouts) / wall,
        "overhead_share": 1.0 - sum(end - start for start, end in inside) / wall,
    }
    if update_s := seconds.get("policy_update_s"):
        trained_tokens = len(rollouts.sequences().values) * config.rl.epochs
        rates["training_tokens_per_s"] = trained_tokens / update_s
        # Operations that the computed tokens take, over what all ranks could do in that time.
        peak_flops = sum(rank["peak_flops"] for rank in machine)
        rates["peak_share"] = machine[0]["flops_per_token"] * computed / update_s / peak_flops
    figures = {"iteration_s": wall, **seconds, "outside_s": times["outside_s"], **rates}
    return {name: round(value, 4) for name, value in figures.items()} | {
        "idle_s": {role: round(value, 4) for role, value in times["idle_s"].items()}
    }
