"""Answers to one prompt as one row: the prompt's tokens are computed once, and no answer sees another.

A row is the tokens that all answers of a group begin with, then what follows in each. Positions go on from the shared
tokens in every answer, and a mask keeps the answers apart; CAUSAL_FROM shared tokens or more need none themselves.
Rows stand back to back, without padding; attention takes them one by one (`attend_by_row` of actors/models.py). Scores
and gradients are those of separate rows.

It saves the layers' work on repeated prompts and costs attention over longer rows; `pays` weighs the two by their
floating-point operations (per token and layer about 24 H^2 for the matrices, 4 H a key for attention).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data.ragged import Ragged

CAUSAL_FROM = 64  # where a second call of attention, causal and without a mask, is faster than a larger mask


def prefix_lengths(ids: Ragged, sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """Tokens that all answers of each group begin with, less than any of them has. `sizes`: answers a group."""
    found, row = [], 0
    for size in sizes:
        first, length = ids[row], int(ids.lengths[row : row + size].min()) - 1
        for other in range(row + 1, row + size):
            differs = np.flatnonzero(first[:length] != ids[other][:length])
            length = int(differs[0]) if len(differs) else length
        found.append(length)
        row += size
    return np.array(found, dtype=np.int64)


def shared_lengths(ids: Ragged, sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """Tokens of each group as one row."""
    ends = np.cumsum(sizes)
    totals = np.diff(np.concatenate([[0], ids.offsets[ends]]))
    return totals - prefix_lengths(ids, sizes) * (np.asarray(sizes) - 1)


def pays(ids: Ragged, sizes: np.ndarray, hidden_size: int) -> bool:
    """Whether rows that share their prompts take fewer operations than separate ones."""
    shared, alone = shared_lengths(ids, sizes).astype(float), ids.lengths.astype(float)

    def operations(lengths: np.ndarray) -> float:
        return float((24 * hidden_size * lengths + 4 * lengths**2).sum())

    return operations(shared) < operations(alone)


def shared_inputs(
    ids: Ragged, sizes: Sequence[int] | np.ndarray, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """(input ids, last tokens of the answers, positions: [1, T] each, masks) of the groups; answers in their order."""
    tokens, chosen, positions, masks, row = [], [], [], [], 0
    for size, prefix in zip(sizes, prefix_lengths(ids, sizes).tolist(), strict=True):
        owners = []
        for answer in range(size):
            start, length = (prefix if answer else 0), int(ids.lengths[row + answer])
            place = np.arange(start, length)
            tokens.append(ids[row + answer][start:])
            positions.append(place)
            chosen.append(place == length - 1)
            owners.append(np.where(place < prefix, 0, answer + 1))
        owner = np.concatenate(owners)
        sees = (owner[None, :] == 0) | (owner[None, :] == owner[:, None])
        mask = (sees & np.tri(len(owner), dtype=bool))[prefix if prefix >= CAUSAL_FROM else 0 :]
        masks.append(torch.from_numpy(mask).to(device)[None, None])
        row += size
    flat = (np.concatenate(parts)[None] for parts in (tokens, chosen, positions))
    ids_1T, chosen_1T, positions_1T = (torch.from_numpy(array).to(device) for array in flat)
    return ids_1T.long(), chosen_1T, positions_1T, masks
