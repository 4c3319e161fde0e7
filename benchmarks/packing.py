"""Padded micro-batches against rows back to back: SFT forward and backward on the rows of a
prepared run, in turn.

python benchmarks/packing.py RUN --steps 8 --repeats 3

RUN: a run folder whose prepare stage is done. Prints tokens per second of both, their ratio, and
the share of padding.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rayward.actors.models.attention import attend_by_row
from rayward.actors.models.forward import RankContext, packed_inputs, weighted_inputs
from rayward.actors.models.load import load_policy
from rayward.algorithms.sequence import weighted_nll
from rayward.configs.load import load
from rayward.data.packing import epoch_order, step_batches
from rayward.pipelines.rows.conversations import fit_conversations, sft_rows
from rayward.pipelines.rows.records import load_records
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.run.folder import Run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps in a measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = load(str(options.run / "config.yaml"))
    run, context = Run(options.run, config), RankContext(0, 1, torch.device("cpu"))
    renderer = Renderer.of(config.model, options.run / "prepare" / "tokenizer")
    chats = load_records(options.run / "prepare" / "conversations.jsonl")
    ids, weights = sft_rows(fit_conversations(chats, renderer, Counter(), config.sft)[1])
    order = epoch_order(len(ids), config.seed, 0)
    steps = step_batches(order, config.sft.samples_per_step)[: options.steps]
    policy, budget = (
        load_policy(run.base, config.model.dtype),
        config.sft.optimizer.micro_batch_tokens,
    )
    tokens = sum(int(ids.take(rows).lengths.sum()) for rows in steps)

    def once(cut: Any, inputs: Any) -> tuple[float, float]:
        begun, losses = time.perf_counter(), 0.0
        for rows in steps:
            for micro in cut(ids.take(rows).lengths, budget):
                chosen = [rows[index] for index in micro]
                arguments, weights_N = inputs(
                    ids.take(chosen), weights.take(chosen), context.device
                )
                loss = weighted_nll(policy(*arguments)[0], weights_N)
                loss.backward()
                losses += float(loss.detach())
        return tokens / (time.perf_counter() - begun), losses

    attend_by_row(policy.lm)
    kinds = {
        "padded": (context.micro_batches, weighted_inputs),
        "packed": (context.packs, packed_inputs),
    }
    speeds: dict[str, list[float]] = {name: [] for name in kinds}
    losses = {}
    for _ in range(options.repeats + 1):
        for name, (cut, inputs) in kinds.items():
            speed, losses[name] = once(cut, inputs)
            speeds[name].append(speed)
    shares = [padding_share(ids.take(rows).lengths, context, budget) for rows in steps]
    # The first one warms up.
    median = {name: statistics.median(values[1:]) for name, values in speeds.items()}
    print(
        f"{len(steps)} steps of {config.sft.samples_per_step} rows, {budget} tokens a "
        f"micro-batch, {tokens} tokens"
    )
    print(
        f"padding in padded micro-batches {statistics.mean(shares):.1%}; losses "
        f"{sorted(losses.items())}"
    )
    for name, value in median.items():
        print(
            f"{name}: {value:.0f} tokens/s ({min(speeds[name][1:]):.0f} to "
            f"{max(speeds[name][1:]):.0f})"
        )
    print(f"packed / padded: {median['packed'] / median['padded']:.2f}")


def padding_share(lengths: np.ndarray, context: RankContext, budget: int) -> float:
    """Share of the tokens of padded micro-batches that are padding."""
    padded = sum(
        int(lengths[micro].max()) * len(micro) for micro in context.micro_batches(lengths, budget)
    )
    return 1 - int(lengths.sum()) / padded


if __name__ == "__main__":
    main()
