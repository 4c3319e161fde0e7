"""The critic: values of the states before each response token, learnt by clipped regression on the returns."""

from __future__ import annotations

from typing import Any

import torch

from actors.engine import Sums, TrainEngine
from actors.forward import Part, map_rollouts, response_inputs
from actors.models import load_scalar
from actors.process import Rendezvous, set_threads
from algorithms.policy import value_loss
from configs.plan import rl_arithmetic
from configs.schema import Config
from data.packing import epoch_order, step_batches
from data.rollouts import Rollouts


class Critic:
    """One rank of the critic, which starts as the reward model."""

    def __init__(self, folder: str, config: Config, rank: int):
        role = config.resources.critic
        set_threads(role.threads)
        self.config, self.folder = config, folder
        self.rendezvous = Rendezvous(rank, role.workers, config.cluster.call_timeout_s)

    def open(self) -> tuple[str, int]:
        return self.rendezvous.open()

    def start(self, host: str, port: int) -> None:
        """Join the group and load the model."""
        config, rl = self.config, self.config.rl
        self.place = self.rendezvous.join(host, port, config.resources.critic.gpus)
        self.engine = TrainEngine(
            load_scalar(self.folder, config.model.dtype),
            rl.optimizer,
            rl.critic_learning_rate,
            rl_arithmetic(config).critic_steps,
            config.model.dtype,
            self.place.device,
        )

    def values(self, rollouts: Rollouts) -> Part:
        """V(state before each response token) of this rank's rows."""
        return map_rollouts(
            rollouts,
            self.place,
            self.config.rl.optimizer.micro_batch_tokens,
            lambda batch: self.engine.infer(lambda engine: engine(*response_inputs(batch, self.place.device, shift=1))),
        )

    def update(self, rollouts: Rollouts, iteration: int) -> list[Sums]:
        """Train on one iteration's answers; this rank's sums of every optimizer step."""
        rl = self.config.rl
        lengths = rollouts.sequences().lengths
        history: list[Sums] = []
        for epoch in range(rl.epochs):
            order = epoch_order(len(rollouts), self.config.seed, iteration * rl.epochs + epoch)
            for rows in step_batches(order, rl.samples_per_step):
                step = rollouts.take(rows)
                micro_batches = self.place.micro_batches(lengths[rows], rl.optimizer.micro_batch_tokens)
                tokens = int(step.responses.lengths.sum())
                sums = self.engine.step((step.take(m) for m in micro_batches), self._loss, tokens)
                history.append(sums | {"tokens": tokens})
        return history

    def _loss(self, engine: Any, batch: Rollouts) -> tuple[torch.Tensor, Sums]:
        values_N = engine(*response_inputs(batch, self.place.device, shift=1))
        column = lambda name: torch.from_numpy(getattr(batch, name)).to(self.place.device)  # noqa: E731
        loss, sums = value_loss(values_N, column("values"), column("returns"), self.config.rl.value_clip)
        return loss, {name: float(value) for name, value in sums.items()}
