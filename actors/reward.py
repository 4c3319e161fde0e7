"""The reward model as a service to the drivers: one score per conversation, read at its last token."""

from __future__ import annotations

import numpy as np
import torch

from actors.forward import Part, Place, sequence_inputs
from actors.models import load_scalar
from actors.process import device, set_threads
from configs.schema import Role
from data.ragged import Ragged


class RewardModel:
    """One process of the reward model; processes share the rows and know nothing of each other."""

    def __init__(self, folder: str, dtype: str, micro_batch_tokens: int, role: Role, rank: int):
        set_threads(role.threads)
        self.place = Place(rank, role.workers, device(role.gpus))
        self.token_budget = micro_batch_tokens
        self.module = load_scalar(folder, dtype).to(self.place.device).eval()

    @torch.no_grad()
    def score(self, sequences: Ragged) -> Part:
        """Scores of this process's rows of whole conversations (prompt and answer token ids)."""
        rows: list[int] = []
        scores: list[np.ndarray] = []
        for micro_batch in self.place.micro_batches(sequences.lengths, self.token_budget):
            if micro_batch:
                inputs = sequence_inputs(sequences.take(micro_batch), self.place.device)
                scores.append(self.module(*inputs).cpu().numpy())
                rows += micro_batch
        values = np.concatenate(scores) if scores else np.zeros(0, np.float32)
        return Part(np.array(rows, dtype=np.int64), Ragged(values, np.ones(len(rows), dtype=np.int64)))
