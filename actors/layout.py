"""How the rows of rollouts lie in a forward pass of a model: padded side by side, or back to back with shared prompts.

The second is taken where the model proves to give the same results, and where it takes fewer operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.forward import Place, response_inputs, sequence_inputs
from actors.models import attend_by_row
from actors.prefix import operations, response_units, shared_inputs, shared_responses
from data.ragged import Ragged
from data.rollouts import Rollouts

PROBE = ((1, 9), (1, 12), (5, 11), (5, 7), (5, 14))  # first id and length of rows, two of one group, three of another


@torch.no_grad()
def share_gap(model: Any, run: Callable[..., Tensor], device: torch.device, next_token: bool) -> float:
    """Largest gap between results of rows that share their beginning and of rows alone; infinite where it cannot be.

    `run` gives the outputs of the module around the Hugging Face `model`, a policy's with `next_token`. The model is
    left with the attention that sharing needs. A collective under ZeRO-3.
    """
    if not attend_by_row(model):
        return float("inf")
    vocab_size = model.config.get_text_config().vocab_size
    ids = Ragged.of([(start + np.arange(length)) % vocab_size for start, length in PROBE])
    shared = run(**shared_inputs(ids, [2, 3], device, next_token))
    alone = run(*sequence_inputs(ids, device))
    return float((shared - alone).abs().max())


def shares(
    model: Any, run: Callable[..., Tensor], device: torch.device, next_token: bool, wanted: bool | None, setting: str
) -> bool:
    """Whether a model can share the prompts of answers; it keeps its own attention where it cannot.

    `wanted` False does not try, True raises ValueError (naming the `setting`) where it cannot.
    """
    if wanted is False:
        return False
    before = model.config._attn_implementation
    gap = share_gap(model, run, device, next_token)
    if gap <= (1e-3 if next(model.parameters()).dtype == torch.float32 else 0.2):
        return True
    if wanted:
        raise ValueError(
            f"{setting}: results of answers that share their prompt differ by {gap:.2g} from those of the answers "
            "alone, so this model's attention does not keep them apart; set it to null or false"
        )
    model.set_attn_implementation(before)
    return False


class Layout:
    """The layout of one model's forward passes over rollouts."""

    def __init__(self, model: Any, run: Callable[..., Tensor], place: Place, policy: bool, wanted: bool | None):
        self.place, self.policy, self.wanted = place, policy, wanted
        self.able = shares(model, run, place.device, policy, wanted, "rl.shared_prompts")
        self.hidden_size = int(model.config.get_text_config().hidden_size)

    def shared(self, rollouts: Rollouts, token_budget: int) -> bool:
        """Whether these rollouts are read with shared prompts."""
        if not self.able or not len(rollouts):
            return False
        costs = response_units(rollouts, token_budget)[1]
        alone = rollouts.sequences().lengths
        return bool(self.wanted) or operations(costs, self.hidden_size) < operations(alone, self.hidden_size)

    def plan(self, rollouts: Rollouts, token_budget: int) -> tuple[list[list[int]], bool]:
        """(this rank's micro-batches as row numbers, whether their prompts are shared)."""
        if not self.shared(rollouts, token_budget):
            return self.place.micro_batches(rollouts.sequences().lengths, token_budget), False
        units, costs = response_units(rollouts, token_budget)
        packs = self.place.packs(costs, token_budget)
        return [[row for unit in pack for row in units[unit]] for pack in packs], True

    def inputs(self, batch: Rollouts, shared: bool) -> dict[str, Any]:
        """What the module takes to read the states before the response tokens of a micro-batch."""
        if shared and len(batch):
            return shared_responses(batch, self.place.device, self.policy)
        ids_BT, chosen_BT = response_inputs(batch, self.place.device, shift=0 if self.policy else 1)
        return {"input_ids_BT": ids_BT, "chosen_BT": chosen_BT}
