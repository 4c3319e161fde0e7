"""Answers to one prompt as one row: the prompt's tokens are computed once, and no answer sees another.

A row is the tokens that all answers of a group begin with, then what follows in each. Positions go on from the shared
tokens in every answer, and a mask [B, 1, T, T] keeps the answers apart, which transformers hands to the attention as it
is. Scores and gradients are those of separate rows.

It saves the layers' work on repeated prompts and costs attention over longer rows; `pays` weighs the two by their
floating-point operations (per token and layer about 24 H^2 for the matrices, 4 H a key for attention).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data.ragged import Ragged


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(input ids, last tokens of the answers, positions, mask) of the groups, one row each; answers in their order."""
    prefixes = prefix_lengths(ids, sizes)
    rows, chosen, positions, owners = ([list[np.ndarray]() for _ in sizes] for _ in range(4))
    row = 0
    for group, (size, prefix) in enumerate(zip(sizes, prefixes.tolist(), strict=True)):
        for answer in range(size):
            start = prefix if answer else 0
            tokens = ids[row + answer][start:]
            rows[group].append(tokens)
            chosen[group].append(np.arange(start, start + len(tokens)) == start + len(tokens) - 1)
            positions[group].append(np.arange(start, start + len(tokens)))
            owners[group].append(np.where(np.arange(start, start + len(tokens)) < prefix, 0, answer + 1))
        row += size
    ids_BT, chosen_BT, positions_BT, owners_BT = (
        Ragged.of([np.concatenate(parts) for parts in of], np.int64).padded()
        for of in (rows, chosen, positions, owners)
    )
    owner_BT = torch.from_numpy(owners_BT).to(device)
    causal_TT = torch.ones(owner_BT.shape[1], owner_BT.shape[1], dtype=torch.bool, device=device).tril()
    sees_BTT = (owner_BT[:, None, :] == 0) | (owner_BT[:, None, :] == owner_BT[:, :, None])
    tensors = (torch.from_numpy(array).to(device) for array in (ids_BT, chosen_BT > 0, positions_BT))
    return *tensors, (sees_BTT & causal_TT)[:, None]  # type: ignore[return-value]
