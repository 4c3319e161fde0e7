"""The optimizer steps of one RL iteration, alike for policy and critic, and their metrics."""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rayward.actors.beside import done
from rayward.actors.models.layout import Layout
from rayward.actors.process import Rendezvous
from rayward.actors.spans import Timed
from rayward.actors.training.engine import MetricSums, TrainEngine
from rayward.configs.schema import Config
from rayward.data.packing import epoch_order, step_batches
from rayward.data.rollouts import Rollouts


class Learner(Timed):
    """A rank of a model that learns: how ranks find each other, and who has the GPU's memory."""

    rendezvous: Rendezvous
    engine: TrainEngine
    saving: Future[None] = done()

    def open(self) -> tuple[str, int]:
        """Rank 0: (host, port) that every rank's `start` takes."""
        return self.rendezvous.open()

    def offload(self) -> None:
        """Leave the GPU's memory to the rollout engines."""
        with self.span("offload"):
            self.engine.offload()

    def reload(self) -> None:
        """Take it back."""
        with self.span("reload"):
            self.engine.reload()

    def save_state(self, folder: str, copies: int) -> None:
        """Begin to write this rank's part of what the training goes on from. `copies`: see
        TrainEngine. A collective.
        """
        with self.span("checkpoint"):
            self.saving = self.engine.save_state(Path(folder), copies)

    def state_saved(self) -> None:
        """Wait until it is written. OSError: why it is not."""
        # One that failed would hold its copy.
        saving, self.saving = self.saving, done()
        saving.result()

    def load_state(self, folder: str, anew: Collection[str] = ()) -> None:
        """Go on from what any ranks wrote there, but for parts that begin `anew`. A collective."""
        self.engine.load_state(Path(folder), anew)


Loss = Callable[[nn.Module, Rollouts, dict[str, Any], Rollouts], tuple[Tensor, MetricSums]]
"""(engine, micro-batch, its inputs, all responses of the optimizer step) -> (sum over the
micro-batch's tokens, sums to report).
"""


def column(rollouts: Rollouts, name: str, device: torch.device) -> Tensor:
    """[N] a per-token column of rollouts."""
    return torch.from_numpy(getattr(rollouts, name)).to(device)


def rows_of_steps(
    rollouts: Rollouts, config: Config, iteration: int, epoch: int
) -> list[np.ndarray]:
    """Rows of each optimizer step of an epoch, the same on every rank.

    Prompts are shuffled with all their responses where a step holds whole prompts, and else the
    responses.
    """
    rl = config.rl
    # Responses to one prompt stand side by side; kept together they can share its tokens.
    whole_prompts = rl.samples_per_step % rl.samples_per_prompt == 0
    size = rl.samples_per_prompt if whole_prompts else 1
    # Epochs are numbered over all iterations, so that each has an order of its own.
    order = epoch_order(len(rollouts) // size, config.seed, iteration * rl.epochs + epoch)
    rows = (np.array(order)[:, None] * size + np.arange(size)).reshape(-1)
    return [np.array(step) for step in step_batches(rows.tolist(), rl.samples_per_step)]


def train(
    engine: TrainEngine,
    layout: Layout,
    rollouts: Rollouts,
    config: Config,
    iteration: int,
    loss: Loss,
    after_step: Callable[[MetricSums], None] = lambda sums: None,
) -> list[MetricSums]:
    """All epochs over an iteration's responses; this rank's sums of every optimizer step.

    `after_step` sees them too. A collective.
    """
    history: list[MetricSums] = []
    budget = config.rl.optimizer.micro_batch_tokens
    for epoch in range(config.rl.epochs):
        for rows in rows_of_steps(rollouts, config, iteration, epoch):
            step = rollouts.take(rows)
            plan, shared = layout.plan(step, budget)
            micro_batches = [step.take(micro_batch) for micro_batch in plan]
            # Every rank has all rollouts, so this is the count over all ranks without a collective.
            tokens = len(step.responses.values)

            def micro_batch_loss(
                module: nn.Module, batch: Rollouts, shared: bool = shared, step: Rollouts = step
            ) -> tuple[Tensor, MetricSums]:
                inputs = layout.inputs(batch, shared)
                return loss(module, *layout.local_slice(batch, inputs), step)

            sums = engine.step(micro_batches, micro_batch_loss, tokens)
            history.append(sums | {"tokens": tokens, **layout.cost(step, plan, shared)})
            after_step(history[-1])
    return history


def mean_over_steps(ranks: list[list[MetricSums]]) -> dict[str, float]:
    """Metrics of one update from every rank's sums of every step.

    `_sum` is divided by the tokens of all steps, `_max` is the largest. A `first_` metric is of the
    first step alone.
    """
    # Apart, since its sums are divided by the tokens of one step, and later steps do not have it.
    first = _mean([[steps[0]] for steps in ranks], lambda name: name.startswith("first_"))
    return first | _mean(ranks, lambda name: not name.startswith("first_"))


def _mean(ranks: list[list[MetricSums]], wanted: Callable[[str], bool]) -> dict[str, float]:
    steps = [step for rank in ranks for step in rank]
    # Of one rank: each counts the tokens of all ranks.
    tokens = float(np.sum([step["tokens"] for step in ranks[0]]))
    merged: dict[str, float] = {}
    for name in filter(wanted, steps[0]):
        values = [step[name] for step in steps]
        if name.endswith("_sum"):
            merged[name.removesuffix("_sum")] = float(np.sum(values)) / tokens
        elif name.endswith("_max"):
            merged[name] = float(np.max(values))
        elif name == "computed_tokens":
            merged[name] = float(np.sum(values))
        elif name not in ("tokens", "own_tokens"):
            # Gradient norm and learning rate are the same on every rank.
            merged[name] = float(np.mean(values))
    return merged
