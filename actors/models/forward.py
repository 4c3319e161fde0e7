"""Rows to device tensors and back: what all models share when they read or score rollouts.

Every rank computes the same plan of micro-batches (rayward.data.packing) and works on its own part
of it.

Shapes: B = rows, T = longest row, or tokens of all rows where they lie back to back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayward.actors.models.heads import last_tokens, response_tokens
from rayward.actors.pulse import tick
from rayward.data.packing import plan_micro_batches, plan_packs
from rayward.data.ragged import Ragged, Shard
from rayward.data.rollouts import Rollouts


@dataclass(frozen=True)
class RankContext:
    """Which part of the work is this process's: its rank among how many, and where it computes."""

    rank: int
    world_size: int
    device: torch.device

    def micro_batches(
        self,
        lengths: Sequence[int] | np.ndarray,
        token_budget: int,
        group_sizes: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """This rank's micro-batches as row indices."""
        # No plan is sent: `lengths` are those of all ranks' rows, so that each computes the same.
        plan = plan_micro_batches(
            [int(n) for n in lengths], self.world_size, token_budget, group_sizes
        )
        return plan[self.rank]

    def packs(self, lengths: np.ndarray, token_budget: int) -> list[list[int]]:
        """This rank's micro-batches for `packed_inputs`."""
        return plan_packs(lengths.tolist(), self.world_size, token_budget)[self.rank]


def to_device(rows: Ragged, chosen_BT: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """(input_ids_BT, chosen_BT) on the device; no rows become one dummy row with nothing chosen."""
    if len(rows) == 0:
        # A rank with an empty micro-batch still runs forward and backward: the others wait for it
        # in the collectives of ZeRO.
        ids_BT = torch.zeros(1, 2, dtype=torch.long, device=device)
        return ids_BT, torch.zeros(1, 2, dtype=torch.bool, device=device)
    ids_BT = torch.from_numpy(rows.padded().astype(np.int64))
    return ids_BT.to(device), torch.from_numpy(chosen_BT).to(device)


def weighted_inputs(
    ids: Ragged, weights: Ragged, device: torch.device
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Input ids with the tokens chosen that have a loss weight, and their weights, flat.

    The first token of a row has no loss, since no state predicts it.
    """
    weights_BT = weights.padded() if len(ids) else np.zeros((1, 2), np.float32)
    chosen_BT = weights_BT > 0
    # Without column 0, as `TokenPolicy` reads `chosen_BT`: its log-probs and these weights match.
    weights_N = torch.from_numpy(weights_BT[:, 1:][chosen_BT[:, 1:]])
    return to_device(ids, chosen_BT, device), weights_N.to(device)


def packed_inputs(
    ids: Ragged, weights: Ragged, device: torch.device
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The same as one row without padding; positions start at 0 where a row does."""
    if len(ids) == 0:
        return weighted_inputs(ids, weights, device)
    starts = ids.offsets[:-1]
    weights_T = weights.values.copy()
    # Else the last state of one row would be taught the first token of the next.
    weights_T[starts] = 0.0
    # What keeps rows apart: attention finds their bounds at the zeros.
    positions_T = np.arange(len(weights_T)) - np.repeat(starts, ids.lengths)
    inputs = (ids.values.astype(np.int64), weights_T > 0, positions_T)
    ids_BT, chosen_BT, positions_BT = (torch.from_numpy(array[None]).to(device) for array in inputs)
    weights_N = torch.from_numpy(weights_T[weights_T > 0])
    return (ids_BT, chosen_BT, positions_BT), weights_N.to(device)


def response_inputs(
    rollouts: Rollouts, device: torch.device, shift: int = 0
) -> tuple[Tensor, Tensor]:
    """Input ids with the response tokens chosen, or (shift 1) the positions before them."""
    chosen_BT = response_tokens(rollouts.prompts.lengths, rollouts.responses.lengths, shift)
    return to_device(rollouts.sequences(), chosen_BT, device)


def sequence_inputs(rows: Ragged, device: torch.device) -> tuple[Tensor, Tensor]:
    """Input ids with the last token of each row chosen."""
    return to_device(rows, last_tokens(rows.lengths), device)


def map_rollouts(
    rollouts: Rollouts, micro_batches: list[list[int]], score: Callable[[Rollouts], Tensor]
) -> Shard:
    """Per-token values of the responses in this rank's micro-batches; `score` gives one's, flat."""
    scored = ((rows, score(rollouts.take(rows))) for rows in micro_batches)
    return collect(scored, rollouts.responses.lengths)


def collect(results: Iterable[tuple[list[int], Tensor]], lengths: np.ndarray) -> Shard:
    """The results of micro-batches, each (its rows, their values flat), as fp32 on the host.

    `lengths`: how many values each row has, of all rows there are.
    """
    all_rows: list[int] = []
    flat = [np.zeros(0, np.float32)]  # concatenate takes no empty list
    for rows, values in results:
        all_rows += rows
        # Here and not in the end, so that a generator's results leave the GPU one by one.
        flat.append(values.float().cpu().numpy())
        tick()
    rows_B = np.array(all_rows, dtype=np.int64)
    return Shard(rows_B, Ragged(np.concatenate(flat), lengths[rows_B]))
