"""The critic: values of the states before each response token, learnt by clipped regression."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rayward.actors.models.layout import Layout
from rayward.actors.models.load import load_scalar
from rayward.actors.process import Rendezvous
from rayward.actors.training.engine import MetricSums, TrainEngine
from rayward.actors.training.updates import Learner, column, train
from rayward.algorithms.policy import value_loss
from rayward.configs.plan import rl_arithmetic
from rayward.configs.schema import Config
from rayward.data.ragged import Shard
from rayward.data.rollouts import Rollouts


class Critic(Learner):
    """One rank of the critic, which starts as a reward model, or as the policy with a new head."""

    def __init__(self, folder: str, new_head: bool, config: Config, rank: int):
        super().__init__()
        role = config.resources.critic
        torch.set_num_threads(role.compute_threads)
        self.config, self.folder, self.new_head = config, folder, new_head
        self.rendezvous = Rendezvous(rank, role.workers, config.cluster.call_timeout_s)

    def start(self, host: str, port: int) -> None:
        """Join the group and load the model. A collective."""
        config, rl = self.config, self.config.rl
        self.context = self.rendezvous.join(host, port, config.resources.critic.gpus)
        # A seed allows a new head, and every rank draws the same; without one, a folder that has no
        # head is an error.
        self.engine = TrainEngine(
            load_scalar(self.folder, config.model.dtype, config.seed if self.new_head else None),
            rl.optimizer,
            rl.critic_learning_rate,
            rl_arithmetic(config).critic_steps,
            config.model.dtype,
            self.context.device,
        )
        group = self.rendezvous.subgroup(rl.sequence_parallel)
        self.layout = Layout(
            self.engine.hf_model, self._values, self.context, False, rl.shared_prompts, group
        )

    def _values(self, *rows: Tensor, **inputs: Any) -> Tensor:
        return self.engine.infer(lambda engine: engine(*rows, **inputs))

    def values(self, rollouts: Rollouts) -> Shard:
        """V(state before each response token) of this rank's rows. A collective under ZeRO-3."""
        with self.span("values"):
            return self.layout.read(
                rollouts, self.config.rl.optimizer.micro_batch_tokens, self._values
            )

    def update(self, rollouts: Rollouts, iteration: int) -> list[MetricSums]:
        """Train on one iteration's responses; this rank's sums of every step. A collective."""
        with self.span("update"):
            return train(self.engine, self.layout, rollouts, self.config, iteration, self._loss)

    def _loss(
        self, engine: nn.Module, batch: Rollouts, inputs: dict[str, Any], _step: Rollouts
    ) -> tuple[Tensor, MetricSums]:
        values_N, device = engine(**inputs), self.context.device
        # `values` are those before the update: what the loss clips the new ones around.
        old_values_N, returns_N = column(batch, "values", device), column(batch, "returns", device)
        loss, sums = value_loss(values_N, old_values_N, returns_N, self.config.rl.value_clip)
        return loss, {name: float(value) for name, value in sums.items()}
