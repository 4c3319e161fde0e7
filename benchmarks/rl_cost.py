"""How the cost of RL grows: PPO with 1, 2 and 4 times the model, the length and the batch; measured
and predicted.

python benchmarks/rl_cost.py --json FILE

Real runs in mode sync on one machine whose cores all roles share. Models have random weights and
never end an answer, so every answer has its full length (rl_vs_trl.py). The rates of the cost model
(cluster/cost.py) come from two of the cases, --calibrate; its times of the others are predictions.
Iterations before --warm-up and the last, which sends no weights, are left out; of the others the
median counts. The bar: predictions within 25 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from rl_vs_trl import never_ending, ours

from rayward.cluster.cost import calibrate, predict
from rayward.cluster.operations import Load, Shape
from rayward.configs.load import load as load_config
from rayward.configs.plan import old_logprobs
from rayward.pipelines.run.files import read_json, read_jsonl
from rayward.pipelines.run.metrics import table
from rayward.pipelines.run.stage import versions

COLUMNS = (
    "",
    "parameters",
    "answers",
    "answer tokens",
    "samples/s",
    "iteration, s",
    "predicted, s",
    "error",
)
BAR = 0.25
MODELS = {  # about 3, 6 and 12M parameters: twice the layers, twice the width
    1: {"hidden_size": 256, "intermediate_size": 640, "layers": 4, "heads": 4},
    2: {"hidden_size": 256, "intermediate_size": 640, "layers": 8, "heads": 4},
    4: {"hidden_size": 512, "intermediate_size": 1280, "layers": 4, "heads": 8},
}
CASES = {"base": (1, 1, 1)}  # times the model, the length, the batch
CASES |= {
    f"{what} x {times}": tuple(
        times if what == name else 1 for name in ("model", "length", "batch")
    )
    for what in ("model", "length", "batch")
    for times in (2, 4)
}
WORLD = (
    "{demonstrations: 400, rankings: 400, answers_per_ranking: 2, prompts: 600, "
    "evaluation_prompts: 16}"
)
FIXED = [
    "model.context_tokens=400",
    f"data.toyworld={WORLD}",
    "evaluate.prompts=16",
    "sft.epochs=1",
    "reward.epochs=1",
    "rl.algorithms=[ppo]",
    "rl.epochs=2",
    "rl.monitor.prompts=0",
    "resources.rollout.threads=2",
]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--prompts",
        type=int,
        default=32,
        help="of an iteration of the base case, 4 answers to each",
    )
    parser.add_argument("--new-tokens", type=int, default=64, help="length of its answers")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--calibrate", nargs="+", choices=CASES, default=["base", "model x 4"])
    parser.add_argument(
        "--set", action="append", default=[], help="settings to try, as for rayward"
    )
    parser.add_argument("--keep", type=Path, help="leave the runs here")
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    if missing := set(options.calibrate) - set(options.cases):
        parser.error(f"--calibrate {' '.join(missing)} is not among --cases")
    if options.iterations < options.warm_up + 2:
        parser.error(
            f"--iterations {options.iterations}: at least {options.warm_up + 2} with this --warm-up"
        )
    with tempfile.TemporaryDirectory() as name:
        found = {
            case: measure(case, (options.keep or Path(name)) / case.replace(" ", ""), options)
            for case in options.cases
        }
    report(found, options)


def measure(case: str, run: Path, options: argparse.Namespace) -> tuple[Load, dict[str, float]]:
    """(what an iteration has to do, its seconds) of a case, in a run of its own."""
    model, length, batch = CASES[case]
    prompts = options.prompts * batch
    shape = ", ".join(
        f"{name}: {value}" for name, value in (MODELS[model] | {"vocab_size": 512}).items()
    )
    own = [
        f"model.scratch={{{shape}}}",
        f"rollout.max_new_tokens={options.new_tokens * length}",
        "rl.samples_per_prompt=4",
    ]
    own += [f"rl.iterations={options.iterations}", f"rl.prompts_per_iteration={prompts}"]
    own += [f"rl.samples_per_step={options.prompts * 2}"]
    settings = [part for setting in (*FIXED, *own, *options.set) for part in ("--set", setting)]
    command = [
        "-m",
        "rayward.pipelines.cli",
        "align",
        "quickstart",
        "--run",
        str(run),
        *settings,
        "--stages",
    ]
    ours(*command, "prepare,sft,reward")
    never_ending(run / "prepare" / "base", run / "sft" / "model")
    ours(*command, "rl")
    config = load_config(str(run / "config.yaml"))
    lines = list(read_jsonl(run / "rl" / "ppo" / "spans.jsonl"))[options.warm_up : -1]
    parts = [seconds_of(line) for line in lines]
    seconds = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
    prompt_tokens, answer_tokens = lengths(run, options)
    of = Shape.of(read_json(run / "sft" / "model" / "config.json"))
    load = Load(
        of,
        prompts,
        4,
        prompt_tokens,
        answer_tokens,
        config.rl.epochs,
        config.rl.optimizer.micro_batch_tokens,
        reward=of,
        critic=of,
        trainer_logprobs=old_logprobs(config) == "trainer",
        shared_prompts=config.rl.shared_prompts is not False,
        bytes_per_weight=4,
    )
    print(f"{case}: {load.answers / seconds['iteration']:.1f} samples/s", flush=True)
    return load, seconds


def seconds_of(line: dict[str, Any]) -> dict[str, float]:
    """The driver's seconds in the parts of an iteration that the cost model is calibrated on."""
    spent: dict[str, float] = {}
    for span in line["spans"]:
        if span["role"] == "driver":
            spent[span["name"]] = spent.get(span["name"], 0.0) + span["end"] - span["start"]
    rollout = spent["generate"] + spent["score"]
    whole = line["ended"] - line["begun"]
    return {
        "rollout": rollout,
        "update": spent["update"],
        "transfer": spent["transfer"],
        "iteration": whole,
    }


def lengths(run: Path, options: argparse.Namespace) -> tuple[int, int]:
    """Mean tokens of the prompts and of the answers that were measured."""
    from rayward.pipelines.rows.records import load_records
    from rayward.pipelines.rows.renderer import Renderer

    config = load_config(str(run / "config.yaml"))
    renderer = Renderer.of(config.model, run / "prepare" / "tokenizer")
    prompts = [
        len(renderer.prompt(record.turns))
        for record in load_records(run / "prepare" / "prompts.jsonl")
    ]
    rows = list(read_jsonl(run / "rl" / "ppo" / "metrics.jsonl"))[options.warm_up : -1]
    return round(statistics.mean(prompts)), round(statistics.mean(row["length"] for row in rows))


def report(found: dict[str, tuple[Load, dict[str, float]]], options: argparse.Namespace) -> None:
    """Print the table and the rates; write the file."""
    rates = calibrate([found[case] for case in options.calibrate])
    rows, cases = [], {}
    for case, (load, seconds) in found.items():
        of = predict(load, rates, shared=True)
        measured, error = seconds["iteration"], of.sync_s / seconds["iteration"] - 1
        mark = " (calibrated)" if case in options.calibrate else ""
        speed = load.answers / measured
        rows.append(
            (
                case + mark,
                f"{load.policy.parameters / 1e6:.1f}M",
                load.answers,
                load.answer_tokens,
                speed,
                measured,
                of.sync_s,
                f"{error:+.0%}",
            )
        )
        cases[case] = {
            "samples_per_s": speed,
            "measured": seconds,
            "predicted_s": of.sync_s,
            "phases": of.phases,
        }
        cases[case]["error"] = error
    table("PPO, sync", rows, COLUMNS)
    print(rates)
    worst = max(
        (abs(of["error"]) for name, of in cases.items() if name not in options.calibrate),
        default=0.0,
    )
    print(f"largest error of a prediction {worst:.1%}; the bar is {BAR:.0%}")
    if options.json:
        settings = {
            name: value for name, value in vars(options).items() if name not in ("json", "keep")
        }
        written = {
            "largest_error": worst,
            "bar": BAR,
            "cases": cases,
            "rates": vars(rates),
            "settings": settings,
        }
        options.json.write_text(
            json.dumps(written | {"versions": versions()}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
