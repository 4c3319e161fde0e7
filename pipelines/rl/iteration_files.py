"""What is written of every RL iteration: figures, seconds, spans, transcripts and rollouts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rayward.actors.rollout.generation import Generation
from rayward.configs.schema import Config
from rayward.data import rollout_file
from rayward.data.records import Prompt
from rayward.data.rollouts import Rollouts
from rayward.pipelines.rl.advantages import RewardShaper
from rayward.pipelines.rl.rl_actors import RlActors
from rayward.pipelines.rl.trace import seconds_of, union
from rayward.pipelines.run.stage import Stage, write_json, write_jsonl


@dataclass
class IterationWriter:
    """Writes it; `history` holds every line of metrics."""

    stage: Stage
    actors: RlActors
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("transcripts", "rollouts"):
            (self.stage.folder / name).mkdir()
        self.origin = time.time()

    def start(self, iteration: int) -> None:
        self.iteration, self.begun = iteration, time.time()
        self.figures: dict[str, Any] = {"time": {}}
        self.own: list[dict[str, Any]] = []

    def time(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """What `work` returns; the driver's seconds are remembered."""
        begun = time.time()
        try:
            return work(*arguments)
        finally:
            self.own.append(
                {"role": "driver", "rank": 0, "name": name, "start": begun, "end": time.time()}
            )

    def note(self, figures: dict[str, Any]) -> None:
        """Figures for this iteration's line of metrics."""
        self.figures = {
            **self.figures,
            **figures,
            "time": {**self.figures["time"], **figures.get("time", {})},
        }

    def files(self, rollouts: Rollouts, prompts: list[Prompt], shaper: RewardShaper) -> None:
        """Transcripts, rollouts, and what reward shaping remembers."""
        folder = self.stage.folder
        write_jsonl(
            folder / "transcripts" / f"{self.iteration:05d}.jsonl",
            self.actors.transcripts(rollouts, prompts),
        )
        if self.stage.run.config.rl.save_rollouts:
            path = folder / "rollouts" / f"{self.iteration:05d}.parquet"
            rollout_file.write(path, rollouts, [prompt.id for prompt in prompts])
        write_json(folder / "reward_state.json", shaper.state_dict())

    def end(
        self, rollouts: Rollouts, generation_s: float = 0.0, ahead: Generation | None = None
    ) -> dict[str, Any]:
        """The iteration's line of metrics; all that the clock decides stands under "time".

        `generation_s`: seconds that the engines took for these answers; `ahead`: the next ones, on
        their way.
        """
        self.actors.take_spans(ahead=ahead)
        spans, self.actors.spans = self.own + self.actors.spans, []
        shifted = [
            {**span, **{at: round(span[at] - self.origin, 5) for at in ("start", "end")}}
            for span in spans
        ]
        ends = {"begun": self.begun - self.origin, "ended": time.time() - self.origin}
        line = {
            "iteration": self.iteration,
            **{name: round(at, 5) for name, at in ends.items()},
            "spans": shifted,
        }
        with (self.stage.folder / "spans.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        computed = self.figures["time"].pop("computed_tokens", 0.0)
        known = speeds(line, rollouts, self.stage.run.config, self.actors.about, computed)
        if generation_s:
            known["generated_tokens_per_s"] = round(
                len(rollouts.responses.values) / generation_s, 4
            )
        self.note({"time": known})
        self.history.append(self.figures)
        return self.figures


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
    ("driver", "advantages"): "advantages_s",
}
"""Names of the seconds of metrics.jsonl."""
WORK = ("generate", "monitor", "score", "reference", "logprobs", "values", "update")


def speeds(
    line: dict[str, Any],
    rollouts: Rollouts,
    config: Config,
    about: list[dict[str, float]],
    computed: float,
) -> dict[str, Any]:
    """Seconds by phase, idle seconds by role, and rates of an iteration; `about` is what each
    policy rank says.

    `computed`: tokens that the layers of all policy ranks saw in the update, shared prompts once
    and padding too.
    """
    found = seconds_of(line)
    wall = found["iteration_s"]
    seconds = {"generate_s": 0.0} | {
        PHASES[task]: of for task, of in found["busy_s"].items() if task in PHASES
    }
    work = [
        (span["start"], span["end"])
        for span in line["spans"]
        if span["name"] in WORK and span["role"] != "driver"
    ]
    inside = union((max(start, line["begun"]), min(end, line["ended"])) for start, end in work)
    trained = len(rollouts.sequences().values) * config.rl.epochs
    rates = {
        "samples_per_s": len(rollouts) / wall,
        "overhead_share": 1.0 - sum(end - start for start, end in inside) / wall,
    }
    if spent := seconds.get("policy_update_s"):
        peak = sum(rank["peak_flops"] for rank in about)
        rates["training_tokens_per_s"] = trained / spent
        rates["peak_share"] = about[0]["flops_per_token"] * computed / spent / peak
    known = {"iteration_s": wall, **seconds, "outside_s": found["outside_s"], **rates}
    return {name: round(value, 4) for name, value in known.items()} | {
        "idle_s": {role: round(value, 4) for role, value in found["idle_s"].items()}
    }
