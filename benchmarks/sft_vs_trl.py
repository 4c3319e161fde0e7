"""Supervised fine-tuning in real (unpadded) tokens a second: Rayward's SFT stage against TRL's
SFTTrainer, in turn.

python benchmarks/sft_vs_trl.py [RUN] --rows 512 --repeats 3 --json FILE

RUN: a run folder whose prepare stage is done; nothing is written there. Without it the toy world is
prepared, and its short conversations are joined to longer ones of 1 to --join of them
(log-uniform); the model's vocabulary is larger than that world's, which gives its head the weight
that heads have in chat models of about 1B parameters or less. With --vocabulary 640 it has the 5 %
that it has in models of 7B.

Both train the same Llama (random weights) in fp32 on the same token rows, with the same loss mask,
AdamW at a constant rate, clipping, rows a step and threads. TRL takes the rows as they come
(Rayward's steps in Rayward's order, so that losses can be compared), grouped by length, grouped
with its steps cut into --accumulate batches, and packed (bfd) into rows of the context, one a
batch, about as many tokens a step; the ratio is against the fastest. How far packed rows read each
other there is measured in its first step. Time runs from the end of the last warm-up step to the
end of the last step, with all that lies between: loading, planning, metrics. Start and saving are
left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

if sys.argv[1:2] != ["--trl-half"]:  # that half runs elsewhere, on TRL alone
    from peers import peer_python, toy_run, trl_half_of

# The head then takes 25 % of the weights that multiply, as in Llama 3.2 1B (21 %) and Qwen3 0.6B
# (26 %).
TOY_VOCABULARY = 4096
VERSIONS = ("torch", "transformers", "deepspeed", "ray")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "run", type=Path, nargs="?", help="folder of a run with prepare; none: the toy world"
    )
    parser.add_argument(
        "--peer-python", help="Python of an environment with TRL; none: one is made (peers.py)"
    )
    parser.add_argument(
        "--rows", type=int, default=512, help="rows to train on; whole steps of them are taken"
    )
    parser.add_argument("--rows-per-step", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument(
        "--join", type=int, help="toy conversations in a row at most; none: 12, with a RUN 1"
    )
    parser.add_argument(
        "--context", type=int, help="longest row, in tokens; none: 512, with a RUN its own"
    )
    parser.add_argument(
        "--accumulate",
        type=int,
        default=4,
        help="batches a step of TRL's third try; 1 leaves it out",
    )
    parser.add_argument("--warm-up", type=int, default=3, help="first steps that are not timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--micro-batch-tokens", type=int, default=1024, help="ours, in one forward pass"
    )
    parser.add_argument(
        "--hidden", type=int, default=256, help="width of the model, a multiple of 64"
    )
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument(
        "--vocabulary", type=int, help=f"of the model; none: the tokenizer's, toy {TOY_VOCABULARY}"
    )
    parser.add_argument(
        "--set", action="append", default=[], help="settings to try, as for rayward"
    )
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    options.peer_python = options.peer_python or peer_python()
    options.join = options.join or (1 if options.run else 12)
    options.vocabulary = options.vocabulary or (0 if options.run else TOY_VOCABULARY)
    with tempfile.TemporaryDirectory() as folder:
        if options.run is None:
            options.run, options.context = toy_run(Path(folder)), options.context or 512
        measure(options, Path(folder))


def measure(options: argparse.Namespace, folder: Path) -> None:
    """All repeats, a table, the ratio."""
    from rayward.configs.load import load
    from rayward.data.packing import epoch_order, step_batches
    from rayward.pipelines.rows.conversations import sft_rows
    from rayward.pipelines.rows.renderer import Renderer

    settings = [
        f"sft.optimizer.{name}"
        for name in ("schedule=constant", "warmup_fraction=0", "weight_decay=0")
    ]
    settings += [
        f"sft.optimizer.micro_batch_tokens={options.micro_batch_tokens}",
        f"sft.epochs={options.epochs}",
    ]
    settings += [f"sft.samples_per_step={options.rows_per_step}", "model.dtype=float32"]
    settings += ["resources.train.workers=1", f"resources.train.threads={options.threads}"]
    settings += [f"model.context_tokens={options.context}"] if options.context else []
    config = load(str(options.run / "config.yaml"), [*options.set, *settings])
    renderer = Renderer.of(config.model, options.run / "prepare" / "tokenizer")
    parameters = build(folder / "base", renderer.tokenizer, options, config.model.context_tokens)
    chats, encoded = chats_of(options, renderer, config)
    ids, weights = sft_rows(encoded)
    orders = [epoch_order(len(ids), config.seed, epoch) for epoch in range(config.sft.epochs)]
    steps = [rows for order in orders for rows in step_batches(order, options.rows_per_step)]
    if len(steps) <= options.warm_up:
        raise SystemExit(
            f"{len(chats)} rows are {len(steps)} steps; more than {options.warm_up} are needed"
        )
    write_task(folder, ids, weights, [row for step in steps for row in step], config, options)
    kinds = {"trl": ("sequential", 1), "trl, grouped": ("group_by_length", 1)}
    if options.accumulate > 1:
        kinds[f"trl, grouped, {options.accumulate} batches a step"] = (
            "group_by_length",
            options.accumulate,
        )
    kinds["trl, packed"] = ("packed", 1)
    lengths = ids.lengths
    cuts = [round(cut) for cut in statistics.quantiles(lengths.tolist(), n=10)]
    print(
        f"{len(ids)} rows of {lengths.min()} to {lengths.max()} tokens, mean "
        f"{lengths.mean():.0f}, tenths {cuts}"
    )
    print(
        f"{(weights.values > 0).mean():.0%} of the tokens have a loss; {len(steps)} steps of "
        f"{options.rows_per_step}"
    )
    print(f"{parameters / 1e6:.1f}M parameters", flush=True)
    found: dict[str, list[dict[str, Any]]] = {"rayward": []} | {name: [] for name in kinds}
    for repeat in range(options.repeats):
        found["rayward"].append(
            rayward_half(options.run, config, chats, folder) | work(ids, steps, config)
        )
        for name, (strategy, accumulate) in kinds.items():
            found[name].append(trl_half_of(__file__, options, folder, strategy, accumulate))
        for runs in found.values():
            runs[-1]["tokens_per_s"] = speed(runs[-1], options.warm_up)
        speeds = ", ".join(f"{name} {runs[-1]['tokens_per_s']:.0f}" for name, runs in found.items())
        print(f"repeat {repeat + 1}, tokens/s: {speeds}", flush=True)
    report(found, options, {"rows": len(ids), "tokens": len(ids.values), "parameters": parameters})


def speed(half: dict[str, Any], warm_up: int) -> float:
    """Tokens of the rows per second, from the end of the warm-up."""
    ends, tokens = half["ends"], half["tokens"]
    return (tokens[-1] - tokens[warm_up - 1]) / (ends[-1] - ends[warm_up - 1])


def build(folder: Path, tokenizer: Any, options: argparse.Namespace, context_tokens: int) -> int:
    """Write the model that both begin with; its number of parameters."""
    from rayward.actors.models.load import build_from_scratch
    from rayward.configs.sections.model import Scratch

    shape = {
        "hidden_size": options.hidden,
        "intermediate_size": options.hidden * 8 // 3,
        "layers": options.layers,
    }
    heads = max(1, options.hidden // 64)
    model = build_from_scratch(
        Scratch(**shape, heads=heads, vocab_size=len(tokenizer)), tokenizer, context_tokens, 0
    )
    if options.vocabulary:
        if options.vocabulary < len(tokenizer):
            raise SystemExit(
                f"--vocabulary {options.vocabulary}, but the tokenizer has {len(tokenizer)} tokens"
            )
        model.resize_token_embeddings(options.vocabulary, mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def chats_of(
    options: argparse.Namespace, renderer: Any, config: Any
) -> tuple[list[Any], list[Any]]:
    """Conversations with their token rows: whole steps of those that fit the context."""
    import random
    from collections import Counter
    from dataclasses import replace

    from rayward.pipelines.rows.conversations import fit_conversations
    from rayward.pipelines.rows.records import load_records, subset

    records, rng = (
        load_records(options.run / "prepare" / "conversations.jsonl"),
        random.Random(config.seed),
    )
    joined, rest = [], iter(records)
    for record in rest:
        more = [next(rest, record) for _ in range(int((options.join + 1) ** rng.random()) - 1)]
        joined.append(
            replace(record, turns=tuple(turn for one in (record, *more) for turn in one.turns))
        )
    few = subset(joined, options.rows, config.seed)
    chats, encoded = fit_conversations(few, renderer, Counter(), config.sft)
    if any(weight not in (0, 1) for row in encoded for weight in row.weights):
        raise SystemExit(
            "TRL has no loss weights other than 0 and 1; take a run without sft.quality.weighting"
        )
    whole = len(chats) // options.rows_per_step * options.rows_per_step
    return chats[:whole], encoded[:whole]


def write_task(
    folder: Path, ids: Any, weights: Any, order: list[int], config: Any, options: Any
) -> None:
    """What the half in the other environment reads."""
    of = config.sft.optimizer
    named = {
        "learning_rate": of.learning_rate,
        "adam_epsilon": of.eps,
        "max_grad_norm": of.max_grad_norm,
    }
    named |= {"adam_beta1": of.betas[0], "adam_beta2": of.betas[1]}
    labels = [
        [int(i) if w else -100 for i, w in zip(ids[row], weights[row], strict=True)]
        for row in order
    ]
    task = {
        "rows": {"input_ids": [ids[row].tolist() for row in order], "labels": labels},
        "settings": named,
    }
    task |= {
        "threads": options.threads,
        "rows_per_step": options.rows_per_step,
        "context": config.model.context_tokens,
    }
    (folder / "task.json").write_text(json.dumps(task))


def work(ids: Any, steps: list[list[int]], config: Any) -> dict[str, Any]:
    """Rayward's plan: tokens of the rows up to the end of each step, and how many are computed for
    them.
    """
    from rayward.data.packing import plan_micro_batches

    tokens, computed = [0], 0
    for step in steps:
        lengths = ids.take(step).lengths.tolist()
        padded = config.sft.packing is False  # on the CPU it packs unless it is told not to
        plan = (
            plan_micro_batches(lengths, 1, config.sft.optimizer.micro_batch_tokens)[0]
            if padded
            else []
        )
        tokens.append(tokens[-1] + sum(lengths))
        computed += sum(max(lengths[row] for row in micro) * len(micro) for micro in plan) or sum(
            lengths
        )
    return {"tokens": tokens[1:], "computed": computed}


def timed_loop(job: Any) -> None:
    """Rayward's loop as it is; messages also carry the time at which they are sent."""
    from rayward.actors.training import supervised

    class Stamped(supervised.Reporter):
        def tell(self, message: dict[str, Any]) -> None:
            message.get("time", {})["end"] = time.perf_counter()
            super().tell(message)

    supervised.Reporter = Stamped  # type: ignore[misc]
    supervised.sft_loop(job)


def rayward_half(run_folder: Path, config: Any, chats: list[Any], folder: Path) -> dict[str, Any]:
    """Losses and the ends of the steps of one training in the real stage."""
    import ray

    from rayward.cluster.connect import connect
    from rayward.pipelines.rows.renderer import Renderer
    from rayward.pipelines.run.files import read_jsonl
    from rayward.pipelines.run.folder import Run
    from rayward.pipelines.run.stage import Stage
    from rayward.pipelines.training import fine_tuning

    fine_tuning.sft_loop = timed_loop
    fine_tuning.show_batch = lambda *_: None
    stage = Stage(Run(run_folder, config), str(folder / "stage"), "", {})
    stage.open()
    connect(config.cluster)
    rows, _ = fine_tuning.rows_of(chats, Renderer.of_run(stage.run))
    fine_tuning.fine_tune(stage, str(folder / "base"), rows, config.sft, "sft")
    ray.shutdown()  # its processes would take time from the other half
    lines = list(read_jsonl(stage.folder / "metrics.jsonl"))
    return {
        "losses": [line["loss"] for line in lines],
        "ends": [line["time"]["end"] for line in lines],
    }


def trl_half(
    folder: Path, strategy: str, accumulate: int, more: dict[str, Any] | None = None
) -> None:
    """Train with TRL, `more` over the settings, and write what was seen."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import TrainerCallback

    task = json.loads((folder / "task.json").read_text())
    torch.set_num_threads(task["threads"])
    seen: dict[str, Any] = {"losses": [], "ends": [], "tokens": [], "computed": 0}
    now, packed = {"loss": 0.0, "tokens": 0}, strategy == "packed"

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            seen["ends"].append(time.perf_counter())
            seen["tokens"].append(now["tokens"])
            seen["losses"].append(now["loss"])
            now["loss"] = 0.0

    class Trainer(trl.SFTTrainer):
        def training_step(self, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
            ids = inputs["input_ids"]
            if packed and "leak" not in seen:
                seen["leak"] = leak(model, inputs)
            now["tokens"] += ids.numel() if packed else int(inputs["attention_mask"].sum())
            seen["computed"] += ids.numel()
            loss = super().training_step(model, inputs, *more, **named)
            now["loss"] += float(loss)
            return loss

    rows = task["rows"]
    batch = task["rows_per_step"] // accumulate
    length: dict[str, Any] = {"max_length": None, "train_sampling_strategy": strategy}
    if packed:
        tokens = sum(map(len, rows["input_ids"])) * task["rows_per_step"] / len(rows["input_ids"])
        batch, accumulate = 1, max(1, round(tokens / task["context"]))
        length = {"max_length": task["context"], "packing": True, "packing_strategy": "bfd"}
    named = length | task["settings"] | {"gradient_checkpointing": False} | (more or {})
    config = trl.SFTConfig(
        output_dir=str(folder / "trl"),
        num_train_epochs=1,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        bf16=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        gradient_accumulation_steps=accumulate,
        per_device_train_batch_size=batch,
        **named,
    )
    data = Dataset.from_dict(rows)
    Trainer(
        model=str(folder / "base"), args=config, train_dataset=data, callbacks=[Clock()]
    ).train()
    seen["versions"] = {
        name: metadata.version(name) for name in ("trl", "accelerate", *VERSIONS[:2])
    }
    (folder / "trl.json").write_text(json.dumps(seen))


def leak(model: Any, inputs: Any) -> float:
    """Largest gap of a logit between the packed rows of a batch and the same rows alone: none if
    they are apart.
    """
    import torch

    with torch.no_grad():
        packed = model(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"]).logits[0]
        parts = inputs["input_ids"].split(inputs["cu_seq_lens_q"].diff().tolist(), dim=1)
        return float(
            (packed - torch.cat([model(input_ids=part).logits[0] for part in parts])).abs().max()
        )


def table(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Print medians and ratios; all as figures."""
    median = {
        name: statistics.median(run["tokens_per_s"] for run in runs) for name, runs in found.items()
    }
    padding = {
        name: 1 - runs[0]["tokens"][-1] / runs[0]["computed"] for name, runs in found.items()
    }
    for name, runs in found.items():
        speeds = [run["tokens_per_s"] for run in runs]
        spread = f"({min(speeds):.0f} to {max(speeds):.0f})"
        print(
            f"{name}: {median[name]:.0f} tokens/s {spread}; padding {padding[name]:.1%}, "
            f"{len(runs[0]['ends'])} steps"
        )
    ours, theirs = found["rayward"][0]["losses"], found["trl"][0]["losses"]
    gap = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    print(
        f"loss of the first step: rayward {ours[0]:.6f}, trl {theirs[0]:.6f}; largest gap of any "
        f"step {gap:.2g}"
    )
    print(
        f"trl, packed: logits of packed rows differ by {found['trl, packed'][0]['leak']:.2g} from "
        "those rows alone"
    )
    ratios = {name: median["rayward"] / median[name] for name in found if name != "rayward"}
    print(
        "rayward / " + "; rayward / ".join(f"{name}: {value:.2f}" for name, value in ratios.items())
    )
    print(f"ratio (the fastest TRL): {min(ratios.values()):.3f}")
    figures = {
        "ratio": min(ratios.values()),
        "ratios": ratios,
        "tokens_per_s": median,
        "padding": padding,
    }
    return figures | {"first_loss": {"rayward": ours[0], "trl": theirs[0]}, "largest_loss_gap": gap}


def report(
    found: dict[str, list[dict[str, Any]]], options: argparse.Namespace, about: dict[str, Any]
) -> None:
    """Print the table; write the file."""
    figures = table(found)
    if options.json:
        versions = {name: metadata.version(name) for name in VERSIONS} | found["trl"][0]["versions"]
        settings = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(options).items()
        }
        written = {**figures, **about, "settings": settings, "versions": versions, "repeats": found}
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    trl_half(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])) if sys.argv[1:2] == [
        "--trl-half"
    ] else main()
