"""Reward-model training in pairs per second: Rayward's reward stage against TRL's RewardTrainer, in
turn.

python benchmarks/reward_vs_trl.py [RUN] --pairs 512 --repeats 3 --json FILE

RUN: a run folder whose prepare stage is done; nothing is written there. Without it the toy world is
prepared.

Both train the same sequence classifier (random weights, one label) in fp32 on the same token rows
(the best answer of a ranking against each worse one; --pairs of them, drawn by the seed), with as
many pairs a step, AdamW at a constant rate, clipping and threads. TRL takes them as they come
(Rayward's steps in Rayward's order, so that losses can be compared), grouped by length, and grouped
with its steps cut into --accumulate batches; the ratio is against the fastest. Time runs from the
end of the last warm-up step to the end of the last step, with all that lies between: loading,
planning, metrics. Start and saving are left out. Length grouping begins with the longest batch,
which warms up, and needs many pairs: it sorts within (pairs / rows / 4) steps, 50 at most.
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

IDS = ("chosen_ids", "rejected_ids")
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
        "--pairs", type=int, default=512, help="pairs to train on; whole steps of them are taken"
    )
    parser.add_argument("--rows", type=int, default=32, help="pairs in an optimizer step")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument(
        "--accumulate", type=int, default=4, help="batches of TRL's third try; 1 leaves it out"
    )
    parser.add_argument("--warm-up", type=int, default=3, help="first steps that are not timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--micro-batch-tokens", type=int, default=4096, help="ours, in one forward pass"
    )
    parser.add_argument(
        "--hidden", type=int, default=512, help="width of the model, a multiple of 64"
    )
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument(
        "--set", action="append", default=[], help="settings to try, as for rayward"
    )
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    options.peer_python = options.peer_python or peer_python()
    with tempfile.TemporaryDirectory() as folder:
        options.run = options.run or toy_run(Path(folder))
        measure(options, Path(folder))


def measure(options: argparse.Namespace, folder: Path) -> None:
    """All repeats, a table, the ratio."""
    from rayward.configs.load import load
    from rayward.pipelines.rows.ranked import ranked_rows
    from rayward.pipelines.rows.renderer import Renderer

    constant = ("schedule=constant", "warmup_fraction=0", "weight_decay=0")
    fixed = [f"reward.optimizer.{setting}" for setting in constant]
    fixed += [f"reward.rankings_per_step={options.rows}", f"reward.epochs={options.epochs}"]
    fixed += [f"reward.path={folder}/base", "model.dtype=float32"]
    fixed += [
        f"reward.optimizer.micro_batch_tokens={options.micro_batch_tokens}",
        "resources.train.workers=1",
    ]
    fixed += [f"resources.train.threads={options.threads}"]
    config = load(str(options.run / "config.yaml"), [*options.set, *fixed])
    renderer = Renderer.of(config.model, options.run / "prepare" / "tokenizer")
    parameters = build(folder / "base", renderer.tokenizer, options, config.model.context_tokens)
    pairs = pairs_of(options, renderer, config.seed)
    rows = ranked_rows(pairs, renderer, config.seed)[1]
    steps = len(pairs) // options.rows * options.epochs
    if steps <= options.warm_up:
        raise SystemExit(
            f"{len(pairs)} pairs are {steps} steps; more than {options.warm_up} are needed"
        )
    write_task(folder, rows, config, options)
    kinds = {"trl": ("sequential", 1), "trl, grouped": ("group_by_length", 1)}
    if options.accumulate > 1:
        kinds[f"trl, grouped, {options.accumulate} batches a step"] = (
            "group_by_length",
            options.accumulate,
        )
    planned = work(rows, config, options.hidden)
    print(
        f"{len(pairs)} pairs, {steps} steps of {options.rows}, {parameters / 1e6:.1f}M parameters",
        flush=True,
    )
    found: dict[str, list[dict[str, Any]]] = {"rayward": []} | {name: [] for name in kinds}
    for repeat in range(options.repeats):
        found["rayward"].append(rayward_half(options.run, config, pairs, folder) | planned)
        for name, (strategy, accumulate) in kinds.items():
            found[name].append(trl_half_of(__file__, options, folder, strategy, accumulate))
        for runs in found.values():
            ends = runs[-1]["ends"]
            runs[-1]["pairs_per_s"] = (
                options.rows * (steps - options.warm_up) / (ends[-1] - ends[options.warm_up - 1])
            )
        speeds = ", ".join(f"{name} {runs[-1]['pairs_per_s']:.1f}" for name, runs in found.items())
        print(f"repeat {repeat + 1}, pairs/s: {speeds}", flush=True)
    report(found, options, {"pairs": len(pairs), "steps": steps, "parameters": parameters})


def build(folder: Path, tokenizer: Any, options: argparse.Namespace, context_tokens: int) -> int:
    """Write the classifier that both begin with; its number of parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    heads = max(1, options.hidden // 64)
    shape = {"hidden_size": options.hidden, "intermediate_size": options.hidden * 8 // 3}
    special = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    model = LlamaForSequenceClassification(
        LlamaConfig(
            **shape,
            **special,
            num_hidden_layers=options.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            vocab_size=len(tokenizer),
            initializer_range=options.hidden**-0.5,
            max_position_embeddings=context_tokens,
            num_labels=1,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def pairs_of(options: argparse.Namespace, renderer: Any, seed: int) -> list[Any]:
    """Rankings of two: the best answer of a ranking and a worse one; whole steps of those that fit
    the context.
    """
    from collections import Counter
    from dataclasses import replace

    from rayward.pipelines.rows.rankings import fit_rankings
    from rayward.pipelines.rows.records import load_records, subset

    found = []
    for ranking in load_records(options.run / "prepare" / "rankings.jsonl"):
        ranks = ranking.ranks or range(len(ranking.answers))
        for answer, rank in zip(ranking.answers, ranks, strict=True):
            if rank > ranks[0]:
                found.append(replace(ranking, answers=(ranking.answers[0], answer), ranks=None))
    fitting = subset(fit_rankings(found, renderer, Counter())[0], options.pairs, seed)
    return fitting[: len(fitting) // options.rows * options.rows]


def order_of(rows: Any, config: Any) -> list[int]:
    """Pairs in the order in which Rayward sees them, all epochs."""
    from rayward.data.packing import epoch_order

    return [
        row
        for epoch in range(config.reward.epochs)
        for row in epoch_order(len(rows.sizes), config.seed, epoch)
    ]


def write_task(folder: Path, rows: Any, config: Any, options: argparse.Namespace) -> None:
    """What the half in the other environment reads."""
    both = {
        name: [rows.ids[2 * pair + i].tolist() for pair in order_of(rows, config)]
        for i, name in enumerate(IDS)
    }
    of = config.reward.optimizer
    named = {
        "learning_rate": of.learning_rate,
        "adam_epsilon": of.eps,
        "max_grad_norm": of.max_grad_norm,
    }
    named |= {"adam_beta1": of.betas[0], "adam_beta2": of.betas[1]}
    task = {
        "rows": both,
        "settings": named,
        "threads": options.threads,
        "rows_per_step": options.rows,
    }
    (folder / "task.json").write_text(json.dumps(task))


def work(rows: Any, config: Any, hidden: int) -> dict[str, int]:
    """Rayward's plan: tokens of the pairs (shared prompts once) and what its layers compute for
    them, padding too.
    """
    from rayward.actors.models.prefix import pays, shared_lengths
    from rayward.data.packing import plan_micro_batches, step_batches

    budget, share = config.reward.optimizer.micro_batch_tokens, config.reward.shared_prompts
    share = pays(rows.ids, rows.sizes, hidden) if share is None else share
    tokens = computed = 0
    for step in step_batches(order_of(rows, config), config.reward.rankings_per_step):
        part = rows.take(step)
        lengths = (shared_lengths(part.ids, part.sizes) if share else part.ids.lengths).tolist()
        plan = [] if share else plan_micro_batches(lengths, 1, budget, part.sizes.tolist())[0]
        tokens += sum(lengths)
        computed += sum(max(lengths[row] for row in micro) * len(micro) for micro in plan) or sum(
            lengths
        )
    return {"tokens": tokens, "computed": computed}


def timed_loop(job: Any) -> None:
    """Rayward's loop as it is; messages also carry the time at which they are sent."""
    from rayward.actors.training import ranked, reward_model

    class Stamped(ranked.Reporter):
        def tell(self, message: dict[str, Any]) -> None:
            message["time"]["end"] = time.perf_counter()
            super().tell(message)

    ranked.Reporter = Stamped  # type: ignore[misc]
    reward_model.reward_loop(job)


def rayward_half(run_folder: Path, config: Any, pairs: list[Any], folder: Path) -> dict[str, Any]:
    """Losses and the ends of the steps of one training in the real stage."""
    import ray

    from rayward.cluster.connect import connect
    from rayward.pipelines.rows.ranked import ranked_rows
    from rayward.pipelines.rows.renderer import Renderer
    from rayward.pipelines.run.files import read_jsonl
    from rayward.pipelines.run.folder import Run
    from rayward.pipelines.run.stage import Stage
    from rayward.pipelines.stages import reward

    reward.reward_loop = timed_loop
    stage = Stage(Run(run_folder, config), str(folder / "stage"), "", {})
    stage.open()
    connect(config.cluster)
    renderer = Renderer.of_run(stage.run)
    rows = ranked_rows(pairs, renderer, config.seed)[1]
    heldout = ranked_rows(pairs[:4], renderer, config.seed)
    reward.fit(stage, rows, *heldout, "model", config.seed)
    ray.shutdown()  # its processes would take time from the other half
    lines = list(read_jsonl(stage.folder / "metrics.jsonl"))
    return {
        "losses": [line["loss"] for line in lines],
        "ends": [line["time"]["end"] for line in lines],
    }


def trl_half(folder: Path, strategy: str, accumulate: int) -> None:
    """Train with TRL and write what was seen."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import TrainerCallback

    task = json.loads((folder / "task.json").read_text())
    torch.set_num_threads(task["threads"])
    seen: dict[str, Any] = {"losses": [], "ends": [], "tokens": 0, "computed": 0}

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            seen["ends"].append(time.perf_counter())

    class Trainer(trl.RewardTrainer):
        def training_step(self, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
            seen["tokens"] += int(inputs["attention_mask"].sum())
            seen["computed"] += inputs["attention_mask"].numel()
            loss = super().training_step(model, inputs, *more, **named)
            seen["losses"].append(float(loss))
            return loss

    rows = task["rows"]
    rows["length"] = [
        max(map(len, pair)) for pair in zip(*(rows[name] for name in IDS), strict=True)
    ]
    config = trl.RewardConfig(
        output_dir=str(folder / "trl"),
        num_train_epochs=1,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        use_cpu=True,
        dataloader_pin_memory=False,
        train_sampling_strategy=strategy,
        remove_unused_columns=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        gradient_accumulation_steps=accumulate,
        per_device_train_batch_size=task["rows_per_step"] // accumulate,
        **task["settings"],
    )
    data = Dataset.from_dict(rows)
    Trainer(
        model=str(folder / "base"), args=config, train_dataset=data, callbacks=[Clock()]
    ).train()
    seen["versions"] = {
        name: metadata.version(name) for name in ("trl", "accelerate", *VERSIONS[:2])
    }
    (folder / "trl.json").write_text(json.dumps(seen))


def report(
    found: dict[str, list[dict[str, Any]]], options: argparse.Namespace, about: dict[str, Any]
) -> None:
    """Print medians and the ratio; write the file."""
    median = {
        name: statistics.median(run["pairs_per_s"] for run in runs) for name, runs in found.items()
    }
    padding = {name: 1 - runs[0]["tokens"] / runs[0]["computed"] for name, runs in found.items()}
    for name, runs in found.items():
        speeds = [run["pairs_per_s"] for run in runs]
        pair = runs[0]["computed"] / about["steps"] / options.rows
        share = f"padding {padding[name]:.1%}, {pair:.0f} tokens computed a pair"
        print(
            f"{name}: {median[name]:.2f} pairs/s ({min(speeds):.2f} to {max(speeds):.2f}); {share}"
        )
    ours, theirs = found["rayward"][0]["losses"], found["trl"][0]["losses"]
    gap = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    print(
        f"loss of the first step: rayward {ours[0]:.6f}, trl {theirs[0]:.6f}; largest gap of any "
        f"step {gap:.2g}"
    )
    ratios = {name: median["rayward"] / median[name] for name in found if name != "rayward"}
    print(
        "rayward / " + "; rayward / ".join(f"{name}: {value:.2f}" for name, value in ratios.items())
    )
    print(f"ratio (the fastest TRL): {min(ratios.values()):.3f}")
    if options.json:
        versions = {name: metadata.version(name) for name in VERSIONS} | found["trl"][0]["versions"]
        figures = {
            "ratio": min(ratios.values()),
            "ratios": ratios,
            "pairs_per_s": median,
            "padding": padding,
        }
        figures |= {"first_loss": {"rayward": ours[0], "trl": theirs[0]}, "largest_loss_gap": gap}
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
