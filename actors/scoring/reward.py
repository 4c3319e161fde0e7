"""The reward model as a service to the drivers: a score per conversation, read at its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayward.actors.models.forward import RankContext, collect, sequence_inputs
from rayward.actors.models.layout import shares
from rayward.actors.models.load import load_scalar
from rayward.actors.models.prefix import pays, shared_inputs, shared_lengths
from rayward.actors.process import device
from rayward.actors.spans import Timed
from rayward.configs.sections.machines import Role
from rayward.data.ragged import Ragged, Shard


class RewardModel(Timed):
    """One process of the reward model; processes share the rows and know nothing of each other."""

    def __init__(self, folder: str, dtype: str, micro_batch_tokens: int, role: Role, rank: int):
        super().__init__()
        torch.set_num_threads(role.compute_threads)
        self.context = RankContext(rank, role.workers, device(role.gpus))
        self.token_budget = micro_batch_tokens
        self.module = load_scalar(folder, dtype).to(self.context.device).eval()
        model = self.module.classifier
        self.hidden_size = int(model.config.get_text_config().hidden_size)
        with torch.no_grad():
            # By a proof with forward passes: whether answers that share a prompt's row keep apart.
            self.can_share = shares(model, self._scores, self.context.device, False, None, "reward")

    def _scores(self, *rows: Tensor, **inputs: Any) -> Tensor:
        return self.module(*rows, **inputs)

    @torch.no_grad()
    def score(self, sequences: Ragged, sizes: np.ndarray | None = None) -> Shard:
        """fp32 scores of this process's rows of whole conversations (prompt and response ids).

        `sizes`: how many rows that stand side by side begin alike, for instance responses to a
        prompt; they may share it. The sum is the number of rows.
        """
        with self.span("score"):
            if sizes is not None and self.can_share and pays(sequences, sizes, self.hidden_size):
                batches = self._shared(sequences, sizes)
            else:
                batches = self._alone(sequences)
            scores = ((rows, self._scores(**inputs)) for rows, inputs in batches)
            return collect(scores, np.ones(len(sequences), np.int64))  # one value a row

    def _alone(self, sequences: Ragged) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """(rows, inputs) of micro-batches of separate rows."""
        for micro_batch in self.context.micro_batches(sequences.lengths, self.token_budget):
            # A plan gives ranks equally many, some of them empty. Nothing here waits for the other
            # ranks, so these are skipped.
            if micro_batch:
                ids_BT, chosen_BT = sequence_inputs(
                    sequences.take(micro_batch), self.context.device
                )
                yield micro_batch, {"input_ids_BT": ids_BT, "chosen_BT": chosen_BT}

    def _shared(
        self, sequences: Ragged, sizes: np.ndarray
    ) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """(rows, inputs) of micro-batches of whole groups, each group in one row of tokens."""
        firsts = np.cumsum(sizes) - sizes  # the first row of each group
        for groups in self.context.packs(shared_lengths(sequences, sizes), self.token_budget):
            if groups:
                rows = [
                    row
                    for group in groups
                    for row in range(firsts[group], firsts[group] + sizes[group])
                ]
                yield rows, shared_inputs(sequences.take(rows), sizes[groups], self.context.device)
