"""Reward training with the prompt of a ranking computed once against once an answer: forward and
backward, in turn.

python benchmarks/shared_prompts.py RUN --prompt-tokens 0 64 256 --steps 4 --repeats 3 --json FILE

RUN: a run folder whose prepare and sft stages are done. --prompt-tokens puts so many random tokens
before every prompt, to see from what length on it pays. Tokens per second are those of the answers'
whole conversations in both, so their ratio is that of the times; `pays` is what Rayward would
decide by itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rayward.actors.models.attention import attend_by_row
from rayward.actors.models.forward import RankContext, sequence_inputs
from rayward.actors.models.load import load_scalar
from rayward.actors.models.prefix import pays, shared_inputs, shared_lengths
from rayward.actors.training.rankings import RankedRows, ranking_loss, rankings_of
from rayward.configs.load import load
from rayward.data.packing import epoch_order, step_batches
from rayward.data.ragged import Ragged
from rayward.pipelines.rows.ranked import ranked_rows
from rayward.pipelines.rows.records import load_records
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.metrics import table

COLUMNS = (
    "more tokens",
    "a row",
    "a ranking",
    "separate tok/s",
    "shared tok/s",
    "ratio",
    "pays",
    "loss gap",
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--prompt-tokens", type=int, nargs="+", default=[0], help="random tokens before each prompt"
    )
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps in a measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--set", action="append", default=[], help="settings to try, as for rayward"
    )
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    logging.set_verbosity_error()  # a new score head is meant here
    torch.set_num_threads(options.threads)
    config = load(str(options.run / "config.yaml"), options.set)
    renderer = Renderer.of(config.model, options.run / "prepare" / "tokenizer")
    rows = ranked_rows(
        load_records(options.run / "prepare" / "rankings.jsonl"), renderer, config.seed
    )[1]
    start = config.reward.path or Run(options.run, config).model("sft")
    module = load_scalar(start, config.model.dtype, seed=config.seed)
    attend_by_row(module.classifier)
    found = [one(options, config, module, rows, more) for more in options.prompt_tokens]
    table("shared prompts", [tuple(of[name] for name in COLUMNS) for of in found], COLUMNS)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def one(
    options: argparse.Namespace, config: Any, module: Any, rows: RankedRows, more: int
) -> dict[str, Any]:
    """Both ways on the same steps of the same rankings, with `more` tokens before each prompt."""
    order = epoch_order(len(rows.sizes), config.seed, 0)
    steps = step_batches(order, config.reward.rankings_per_step)[: options.steps]
    hidden = module.classifier.config.get_text_config()
    data = [longer(rows.take(step), more, hidden.vocab_size) for step in steps]
    speeds: dict[bool, list[float]] = {False: [], True: []}
    losses: dict[bool, float] = {}
    tokens = sum(int(step.ids.lengths.sum()) for step in data)
    for _ in range(options.repeats + 1):  # the first one warms up
        for share in speeds:
            begun = time.perf_counter()
            losses[share] = sum(train_step(config, module, step, share) for step in data)
            speeds[share].append(tokens / (time.perf_counter() - begun))
    separate, shared = (statistics.median(values[1:]) for values in speeds.values())
    rankings, answers = sum(len(step.sizes) for step in data), sum(len(step.ids) for step in data)
    once = sum(int(shared_lengths(step.ids, step.sizes).sum()) for step in data)
    every = longer(rows, more, hidden.vocab_size)
    shown = (
        more,
        tokens / answers,
        once / rankings,
        separate,
        shared,
        shared / separate,
        pays(every.ids, every.sizes, hidden.hidden_size),
        abs(losses[True] - losses[False]) / rankings,
    )
    print(
        f"{more} more tokens: {shared / separate:.2f}; loss {losses[True] / rankings:.6f}",
        flush=True,
    )
    raw = {
        "separate": speeds[False][1:],
        "shared": speeds[True][1:],
        "losses": [losses[False], losses[True]],
    }
    return dict(zip(COLUMNS, shown, strict=True)) | {"repeats": raw}


def longer(rows: RankedRows, more: int, vocab_size: int) -> RankedRows:
    """Every ranking with `more` random tokens of its own before all its answers' rows."""
    generator = np.random.default_rng(0)
    drawn = np.repeat(
        generator.integers(4, vocab_size, (len(rows.sizes), more)), rows.sizes, axis=0
    )
    ids = Ragged.of([np.concatenate([before, rows.ids[row]]) for row, before in enumerate(drawn)])
    return RankedRows(ids, rows.sizes, rows.ranks, ids)


def train_step(config: Any, module: Any, step: RankedRows, share: bool) -> float:
    """Forward and backward of one optimizer step, cut and fed as the reward stage does; the sum of
    its losses.
    """
    context, budget, total = (
        RankContext(0, 1, torch.device("cpu")),
        config.reward.optimizer.micro_batch_tokens,
        0.0,
    )
    module.zero_grad()
    if share:
        plan = context.packs(shared_lengths(step.ids, step.sizes), budget)
    else:
        plan = rankings_of(
            step, context.micro_batches(step.ids.lengths, budget, step.sizes.tolist())
        )
    for micro in plan:
        part = step.take(micro)
        sizes = part.sizes.tolist()
        if share:
            inputs = shared_inputs(part.ids, sizes, context.device)
        else:
            inputs = dict(
                zip(
                    ("input_ids_BT", "chosen_BT"),
                    sequence_inputs(part.ids, context.device),
                    strict=True,
                )
            )
        loss, _ = ranking_loss(config.reward, module(**inputs), part)
        loss.backward()
        total += float(loss.detach())
    return total


if __name__ == "__main__":
    main()
