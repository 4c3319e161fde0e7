"""Rows to device tensors and back: what policy, critic, reference and reward share when they read or score rollouts.

Every rank computes the same plan of micro-batches (data.packing) and works on its own part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actors.models import last_tokens, response_tokens
from data.packing import plan_micro_batches
from data.ragged import Ragged
from data.rollouts import Rollouts


@dataclass(frozen=True)
class Place:
    """Which part of the work is this process's: its rank among how many, and where it computes."""

    rank: int
    world_size: int
    device: torch.device

    def micro_batches(
        self, lengths: Sequence[int] | np.ndarray, token_budget: int, group_sizes: Sequence[int] | None = None
    ) -> list[list[int]]:
        """This rank's micro-batches as row indices."""
        plan = plan_micro_batches([int(n) for n in lengths], self.world_size, token_budget, group_sizes)
        return plan[self.rank]


def to_device(rows: Ragged, chosen_BT: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """(input_ids_BT, chosen_BT) on the device; no rows become one dummy row with nothing chosen."""
    if len(rows) == 0:
        return torch.zeros(1, 2, dtype=torch.long, device=device), torch.zeros(1, 2, dtype=torch.bool, device=device)
    ids_BT = torch.from_numpy(rows.padded().astype(np.int64))
    return ids_BT.to(device), torch.from_numpy(chosen_BT).to(device)


def response_inputs(rollouts: Rollouts, device: torch.device, shift: int = 0) -> tuple[Tensor, Tensor]:
    """Input ids with the response tokens chosen, or (shift 1) the positions that come before them."""
    chosen_BT = response_tokens(rollouts.prompts.lengths, rollouts.responses.lengths, shift)
    return to_device(rollouts.sequences(), chosen_BT, device)


def sequence_inputs(rows: Ragged, device: torch.device) -> tuple[Tensor, Tensor]:
    """Input ids with the last token of each row chosen."""
    return to_device(rows, last_tokens(rows.lengths), device)


@dataclass(frozen=True)
class Part:
    """One rank's results: which rows, and their values."""

    rows: np.ndarray
    values: Ragged


def map_rollouts(rollouts: Rollouts, place: Place, token_budget: int, score: Callable[[Rollouts], Tensor]) -> Part:
    """Per-token values of this rank's share of the answers. `score` returns them flat for a micro-batch."""
    rows: list[int] = []
    flat: list[np.ndarray] = []
    for micro_batch in place.micro_batches(rollouts.sequences().lengths, token_budget):
        values_N = score(rollouts.take(micro_batch))
        rows += micro_batch
        flat.append(values_N.float().cpu().numpy())
    values = np.concatenate(flat) if flat else np.zeros(0, np.float32)
    return Part(
        np.array(rows, dtype=np.int64), Ragged(values, rollouts.responses.lengths[np.array(rows, dtype=np.int64)])
    )


def merge(parts: Sequence[Part], num_rows: int) -> np.ndarray:
    """The values of all rows in row order, flat. Raises ValueError where a row is missing or came twice."""
    position = {int(row): (part.values, i) for part in parts for i, row in enumerate(part.rows)}
    counted = sum(len(part.rows) for part in parts)
    if len(position) != num_rows or counted != num_rows:
        raise ValueError(f"{counted} results for {len(position)} of {num_rows} rows")
    return np.concatenate([values[i] for values, i in (position[row] for row in range(num_rows))])
