"""Frozen language models: the reference that KL is measured against, and finished models on their
way to evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rayward.actors.models.forward import RankContext
from rayward.actors.models.layout import Layout
from rayward.actors.models.load import load_policy
from rayward.actors.models.proof import transfer_probe
from rayward.actors.models.saved import saved_buffers
from rayward.actors.process import device
from rayward.actors.spans import Timed
from rayward.configs.schema import Config
from rayward.data.ragged import Shard
from rayward.data.rollouts import Rollouts

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from transformers import PreTrainedModel

    from rayward.actors.rollout.weights import WeightSender


class FrozenModel(Timed):
    """One process of a group that shares the rows; its members know nothing of each other."""

    def __init__(self, folder: str, config: Config, temperature: float, rank: int):
        super().__init__()
        role = config.resources.reference
        torch.set_num_threads(role.compute_threads)
        self.config, self.temperature = config, temperature
        self.context = RankContext(rank, role.workers, device(role.gpus))
        self.sender: WeightSender | None = None
        self.load(folder)

    def load(self, folder: str) -> None:
        """Hold the model of another folder from now on."""
        self.module = load_policy(folder, self.config.model.dtype, self.temperature)
        self.module.to(self.context.device).eval()
        # A layout is proved at once by forward passes, which here need no gradient.
        with torch.no_grad():
            self.layout = Layout(
                self.module.lm, self._logprobs, self.context, True, self.config.rl.shared_prompts
            )

    def _logprobs(self, *rows: Tensor, **inputs: Any) -> Tensor:
        return self.module(*rows, **inputs)[0]

    @torch.no_grad()
    def logprobs(self, rollouts: Rollouts) -> Shard:
        """Log-probs of this process's rows at the temperature that was given."""
        with self.span("logprobs"):
            return self.layout.read(
                rollouts, self.config.rl.optimizer.micro_batch_tokens, self._logprobs
            )

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of every weight, and of the buffers that are saved."""
        # Whole on this process, so unlike a policy's this is no collective.
        parameters = (
            (name, parameter.detach()) for name, parameter in self.module.lm.named_parameters()
        )
        return chain(parameters, saved_buffers(self.module.lm))

    @property
    def hf_model(self) -> PreTrainedModel:
        """The Hugging Face model inside."""
        return self.module.lm

    def connect(self, engines: Sequence[ActorHandle], backend: str) -> None:
        """Open the way to the rollout engines; only the process of rank 0 talks to them."""
        # Brings in vLLM, which drivers that import this file do not need.
        from rayward.actors.rollout.weights import sender_to

        # Every process has all weights: one is enough to send them, as a group by itself.
        if self.context.rank == 0:
            alone = RankContext(0, 1, self.context.device)
            self.sender = sender_to(engines, self, backend, alone, self.config)

    def send_weights(self, version: int) -> dict[str, Any] | None:
        """Bring the weights of the loaded model to every engine as `version`.

        Returns what a policy's does.
        """
        if self.sender is None:
            return None
        sent = self.sender.send(version)
        probe = transfer_probe(self.module, self.config.model.context_tokens)
        return sent | {"probe": probe} if sent else None

    def send_again(self, engines: Sequence[ActorHandle], version: int) -> None:
        """Bring what was sent last to engines that were started anew."""
        if self.sender is not None:
            self.sender.again(engines, version)
