"""How the rows of rollouts lie in a forward pass: padded side by side, or back to back with shared
prompts.

The second is taken where the model proves to give the same results, and where it takes fewer
operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rayward.actors.models.attention import attend_by_row
from rayward.actors.models.forward import (
    RankContext,
    map_rollouts,
    response_inputs,
    sequence_inputs,
)
from rayward.actors.models.prefix import (
    group_sizes,
    operations,
    response_units,
    shared_answers,
    shared_inputs,
    shared_responses,
)
from rayward.actors.models.ulysses import Ulysses
from rayward.data.ragged import Ragged, Shard
from rayward.data.rollouts import Rollouts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# First id and length of rows, two of one group, three of another. Rows of a group count up from the
# same id, so the shared part is all but the last token of the shortest: tokens of one row that saw
# another row's, or a wrong position, would change the results.
PROBE_ROWS = ((1, 9), (1, 12), (5, 11), (5, 7), (5, 14))


@torch.no_grad()
def share_gap(
    model: PreTrainedModel, run: Callable[..., Tensor], device: torch.device, next_token: bool
) -> float:
    """Largest gap between results of rows that share their beginning and of rows alone.

    Infinite where the model cannot share. `run` gives the outputs of the module around the Hugging
    Face `model`, a policy's with `next_token`. The model is left with the attention that sharing
    needs. A collective under ZeRO-3.
    """
    if not attend_by_row(model):
        return float("inf")
    vocab_size = model.config.get_text_config().vocab_size
    ids = Ragged.of([(start + np.arange(length)) % vocab_size for start, length in PROBE_ROWS])
    if next_token:
        last = Ragged.of([np.arange(length) == length - 1 for length in ids.lengths.tolist()])
        shared = run(**shared_answers(ids, [2, 3], last, device))
    else:
        shared = run(**shared_inputs(ids, [2, 3], device))
    alone = run(*sequence_inputs(ids, device))
    return float((shared - alone).abs().max())


def shares(
    model: PreTrainedModel,
    run: Callable[..., Tensor],
    device: torch.device,
    next_token: bool,
    wanted: bool | None,
    setting: str,
) -> bool:
    """Whether a model can share the prompts of answers; it keeps its own attention where it cannot.

    `wanted` False does not try, True raises ValueError (naming the `setting`) where it cannot.
    """
    if wanted is False:
        return False
    before = model.config._attn_implementation
    gap = share_gap(model, run, device, next_token)
    # Only rounding may lie between the two, which is much coarser in bf16.
    if gap <= (1e-3 if next(model.parameters()).dtype == torch.float32 else 0.2):
        return True
    if wanted:
        raise ValueError(
            f"{setting}: results of answers that share their prompt differ by {gap:.2g} from "
            "those of the answers alone, so this model's attention does not keep them apart; set "
            "it to null or false"
        )
    # `share_gap` has replaced it.
    model.set_attn_implementation(before)
    return False


class Layout:
    """The layout of one model's forward passes over rollouts.

    The ranks of a `group` share the tokens of rows, which then always lie back to back; ValueError
    where they cannot.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        run: Callable[..., Tensor],
        context: RankContext,
        policy: bool,
        wanted: bool | None,
        group: torch.distributed.ProcessGroup | None = None,
    ):
        self.context, self.policy, self.wanted = context, policy, wanted
        # Before Ulysses is put in: the proof runs whole rows by the attention of one rank.
        self.can_share = shares(model, run, context.device, policy, wanted, "rl.shared_prompts")
        self.ulysses: Ulysses | None = None
        if group is not None:
            size = group.size()
            if not self.can_share:
                raise ValueError(
                    f"rl.sequence_parallel {size} needs attention that keeps rows apart which lie "
                    "back to back, and this model's does not; set it to 1"
                )
            self.ulysses = Ulysses(model, group)
            # Ranks of a group are consecutive and plan as one: they must get the same micro-batches
            # in the same order, since each all-to-all inside waits for all of them.
            self.context = RankContext(
                context.rank // size, context.world_size // size, context.device
            )
        self.hidden_size = int(model.config.get_text_config().hidden_size)

    def plan(self, rollouts: Rollouts, token_budget: int) -> tuple[list[list[int]], bool]:
        """(this rank's micro-batches as row numbers, whether their prompts are shared).

        `token_budget`: tokens of a micro-batch on one rank.
        """
        # The budget is one rank's memory, and a group's micro-batch is cut into as many slices.
        token_budget *= self.ulysses.size if self.ulysses else 1
        alone = rollouts.sequences().lengths
        if self.can_share and len(rollouts):
            units, costs = response_units(rollouts, token_budget)
            fewer = operations(costs, self.hidden_size) < operations(alone, self.hidden_size)
            # With Ulysses always: only rows that come with masks are cut into slices.
            if self.ulysses or self.wanted or fewer:
                packs = self.context.packs(costs, token_budget)
                return [[row for unit in pack for row in units[unit]] for pack in packs], True
        return self.context.micro_batches(alone, token_budget), False

    def cost(self, rollouts: Rollouts, plan: list[list[int]], shared: bool) -> dict[str, float]:
        """Tokens that this rank's layers see in a plan, and which share of them is padding."""
        computed = padded = 0
        lengths = rollouts.sequences().lengths
        for rows in filter(None, plan):
            if shared:
                batch = rollouts.take(rows)
                sizes = group_sizes(batch)
                # A prompt counts once for its group: that of the group's first row.
                prompts = batch.prompts.lengths[np.cumsum(sizes) - sizes]
                computed += int(prompts.sum() + batch.responses.lengths.sum())
            else:
                computed += int(lengths[rows].max()) * len(rows)
                padded += int(lengths[rows].max()) * len(rows) - int(lengths[rows].sum())
        # Summed over ranks, which report it alike, it is then the tokens of the step.
        ranks = self.ulysses.size if self.ulysses else 1
        return {"computed_tokens": computed / ranks, "padding": padded / max(1, computed)}

    def inputs(self, batch: Rollouts, shared: bool) -> dict[str, Any]:
        """What the module takes to read the states before the response tokens of a micro-batch."""
        if shared and len(batch):
            return shared_responses(batch, self.context.device, self.policy)
        if self.ulysses:
            # An empty micro-batch, which has to pass every all-to-all and every collective of ZeRO
            # all the same. `slice_of` gives each rank a dummy token of it.
            none_1T = torch.zeros(1, 0, dtype=torch.long, device=self.context.device)
            empty = {
                "input_ids_BT": none_1T,
                "positions_BT": none_1T,
                "row_masks": [],
                "read_N": none_1T[0],
            }
            return {**empty, "targets_N": none_1T[0]} if self.policy else empty
        # A policy takes the tokens that it predicts, and steps back by itself; a critic is read at
        # the positions that are chosen.
        shift = 0 if self.policy else 1
        ids_BT, chosen_BT = response_inputs(batch, self.context.device, shift)
        return {"input_ids_BT": ids_BT, "chosen_BT": chosen_BT}

    def local_slice(
        self, batch: Rollouts, inputs: dict[str, Any]
    ) -> tuple[Rollouts, dict[str, Any]]:
        """What this rank reads of a micro-batch and its inputs: all, unless ranks share them."""
        if self.ulysses is None:
            return batch, inputs
        local_N, inputs = self.ulysses.local_slice(inputs)
        # The columns of the loss (advantages, old log-probs) are cut as its log-probs are.
        return batch.keep(local_N.cpu().numpy()), inputs

    def read(self, rollouts: Rollouts, token_budget: int, run: Callable[..., Tensor]) -> Shard:
        """What `run` gives for the inputs of this rank's micro-batches.

        One of the ranks that share rows has the results of all. A collective of these ranks, and
        under ZeRO-3 of all.
        """
        plan, shared = self.plan(rollouts, token_budget)

        def score(batch: Rollouts) -> Tensor:
            inputs = self.inputs(batch, shared)
            return self.ulysses.read(run, inputs) if self.ulysses else run(**inputs)

        results = map_rollouts(rollouts, plan, score)
        if self.ulysses and self.ulysses.rank:
            # Every rank of the group has them, and `merge` refuses a row that comes twice.
            return Shard(results.rows[:0], results.values.take([]))
        return results
