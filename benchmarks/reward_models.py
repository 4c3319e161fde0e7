"""Reward models from the same SFT model: K-wise loss against pair-split, several seeds, and noise
in the labels.

Both losses see the same rankings in the same order for the same number of steps, so they cost the
same.

On the toy world, over the share of pairs whose order is wrong (measured on rankings without noise):
  rayward align quickstart --run RUN --stages prepare,sft && python benchmarks/reward_models.py RUN
  --noise 0 0.1 0.3
On real files (measured by source on the files given):
  rayward align real_small --run RUN --stages prepare,sft --set data.root=DATA
  python benchmarks/reward_models.py RUN --test DATA/nectar/test.jsonl.gz DATA/hh_rlhf/test.jsonl.gz
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from rayward.cluster.connect import connect
from rayward.configs.load import load
from rayward.data.toy.toyworld import rankings
from rayward.pipelines.model_tools.reward_eval import rankings_of
from rayward.pipelines.rows.left_out import LeftOut
from rayward.pipelines.rows.ranked import ranked_rows
from rayward.pipelines.rows.records import load_records
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.metrics import table
from rayward.pipelines.run.stage import Stage
from rayward.pipelines.scoring.reward_measures import by_source
from rayward.pipelines.stages.reward import fit

COLUMNS = (
    "task",
    "loss",
    "seed",
    "pairs",
    "accuracy [95 %]",
    "longer",
    "tau",
    "top-1",
    "ECE",
    "seconds",
)


def main() -> None:
    """Train, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run with prepare and sft")
    parser.add_argument(
        "--noise",
        type=float,
        nargs="*",
        default=[],
        help="toy world: shares of pairs that are wrong",
    )
    parser.add_argument("--test", nargs="*", default=[], help="real files to measure on")
    parser.add_argument("--losses", nargs="+", default=["plackett_luce", "pairs"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument(
        "--set", action="append", default=[], help="settings to try, as for rayward"
    )
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    if bool(options.noise) == bool(options.test):
        parser.error("give either --noise or --test")
    found = []
    for task in options.noise or ["real"]:
        for seed in options.seeds:
            for loss in options.losses:
                found += one(options, task, loss, seed)
    table("reward models", [row_of(of) for of in found], COLUMNS)
    for task, loss in dict.fromkeys((of["task"], of["loss"]) for of in found):
        same = [of["accuracy"]["mean"] for of in found if (of["task"], of["loss"]) == (task, loss)]
        spread = f" (from {min(same):.4f} to {max(same):.4f})" if len(same) > 1 else ""
        print(f"{task}, {loss}: mean accuracy {statistics.mean(same):.4f}{spread}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def one(options: argparse.Namespace, task: Any, loss: str, seed: int) -> list[dict[str, Any]]:
    """Train one reward model and measure it, by source."""
    config = load(str(options.run / "config.yaml"), [*options.set, f"reward.loss={loss}"])
    run = Run(options.run, config)
    connect(config.cluster)
    if task == "real":
        train = load_records(options.run / "prepare" / "rankings.jsonl")
        heldout = list(rankings_of(options.test, left_out := LeftOut()))
        print(f"left out of the test files: {dict(left_out)}")
    else:
        world = config.data.toyworld
        assert world is not None
        train = rankings(world.rankings, world.answers_per_ranking, task, seed)[0]
        heldout = rankings(400, world.answers_per_ranking, 0.0, seed + 1000)[0]
    begun = time.perf_counter()
    stage = Stage(run, f"bench/{task}-{loss}-{seed}", "", {})
    stage.open()
    renderer = Renderer.of_run(run)
    rows = ranked_rows(train, renderer, seed)[1]
    fitted = fit(stage, rows, *ranked_rows(heldout, renderer, seed), "model", seed)
    seconds = time.perf_counter() - begun
    made = []
    for source, of in by_source(fitted.scores, fitted.heldout, fitted.rows, seed).items():
        name = f"noise {task:g}" if task != "real" else source
        made.append(
            {
                "task": name,
                "loss": loss,
                "seed": seed,
                "seconds": seconds,
                "steps": fitted.steps,
                **of,
            }
        )
    print(
        json.dumps({key: made[0][key] for key in ("task", "loss", "seed", "accuracy", "seconds")}),
        flush=True,
    )
    return made


def row_of(of: dict[str, Any]) -> tuple:
    """A line of the table."""
    accuracy = of["accuracy"]
    shown = f"{accuracy['mean']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]"
    numbers = (
        accuracy["length_baseline"],
        of["kendall_tau"],
        of["top_1"],
        of["calibration"]["error"],
    )
    shown_numbers = [f"{number:.3f}" for number in numbers]
    return (
        of["task"],
        of["loss"],
        of["seed"],
        accuracy["pairs"],
        shown,
        *shown_numbers,
        f"{of['seconds']:.0f}",
    )


if __name__ == "__main__":
    main()
