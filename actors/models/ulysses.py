"""Ulysses sequence parallelism (arXiv:2309.14509): S ranks share the tokens of rows, and in
attention the heads.

All of a model but attention treats tokens one by one, so a rank works on a slice of them. Attention
needs every token of a row but treats heads one by one: an all-to-all brings [T/S tokens, all heads]
to [T tokens, heads/S], another one brings the result back (DeepSpeed's `DistributedAttention`). Key
and value heads travel before they are repeated. Departure: the T tokens are several rows back to
back, which may share their beginnings (actors/models/prefix.py).

Shapes: T = tokens of a micro-batch, S = ranks that share them, N = positions that are read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from rayward.actors.models.attention import attention_by_row

Inputs = dict[str, Any]
"""What the modules of actors/models/load.py take to read rows that lie back to back."""


def check_heads(config: PretrainedConfig, size: int) -> None:
    """ValueError where the heads of a model with this config cannot be dealt out to `size` ranks.

    Key/value heads as well: a rank's query heads must meet the ones that they share.
    """
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    if heads % size or key_heads % size:
        raise ValueError(
            f"rl.sequence_parallel {size} must divide the model's {heads} attention heads and "
            f"{key_heads} key/value heads"
        )


def slice_of(inputs: Inputs, rank: int, size: int) -> tuple[Tensor, Inputs]:
    """(local_N: which of `read_N` stand in this rank's slice of the T tokens, the slice's inputs).

    A row of 1 to `size` tokens, which nobody reads, makes T a multiple of `size`; the masks stay
    those of all rows.
    """
    ids_1T, read_N = inputs["input_ids_BT"], inputs["read_N"]
    # 1 to `size`, never 0: each rank has a token also of an empty micro-batch, and every rank the
    # same number, since the all-to-all cuts evenly.
    dummies = size - ids_1T.shape[1] % size
    width = (ids_1T.shape[1] + dummies) // size
    start = rank * width
    local_N = (read_N >= start) & (read_N < start + width)
    # The dummy tokens are a row by themselves, so that no other row changes.
    mask = torch.ones(1, 1, dummies, dummies, dtype=torch.bool, device=ids_1T.device).tril()
    local: Inputs = {
        # All masks on every rank: after the all-to-all each has all T tokens.
        "row_masks": [*inputs["row_masks"], mask],
        "read_N": read_N[local_N] - start,
    }
    # Positions are cut with their tokens, so a slice's rotary embeddings are those of its rows.
    for name in ("input_ids_BT", "positions_BT"):
        local[name] = nn.functional.pad(inputs[name], (0, dummies))[:, start : start + width]
    if "targets_N" in inputs:
        # The target of a slice's last token may stand in the next slice, so it travels along.
        local["targets_N"] = inputs["targets_N"][local_N]
    return local_N, local


class Ulysses:
    """The ranks that share their rows with this one, and a model whose attention works across."""

    def __init__(self, model: PreTrainedModel, group: ProcessGroup):
        """Raises ValueError where the heads of the Hugging Face `model` do not divide."""
        from deepspeed.sequence.layer import DistributedAttention

        self.group, self.rank, self.size = group, group.rank(), group.size()
        check_heads(model.config.get_text_config(), self.size)
        # Its tensors are [1, tokens, heads, size]: heads (2) are scattered, tokens (1) gathered.
        across = DistributedAttention(_local_attention, group, scatter_idx=2, gather_idx=1)

        def attention(
            module: nn.Module,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Tensor | None,
            **kwargs: Any,
        ) -> tuple[Tensor, None]:
            """transformers' attention of [1, heads, T/S, size]; [1, T/S, heads, size].

            Of whole rows where no masks come with them: the probes of saving and of weight transfer
            give every rank the same rows.
            """
            if kwargs.get("row_masks") is None:
                return attention_by_row(module, query, key, value, attention_mask, **kwargs)
            parts = (x.transpose(1, 2) for x in (query, key, value))
            # 0 is the dimension of the batch.
            return across(*parts, 0, module=module, **kwargs), None

        # One name for all models of a process: an actor has one group and one model.
        AttentionInterface.register("rayward_ulysses", attention)
        model.set_attn_implementation("rayward_ulysses")

    def local_slice(self, inputs: Inputs) -> tuple[Tensor, Inputs]:
        """`slice_of` this rank."""
        return slice_of(inputs, self.rank, self.size)

    def read(self, run: Callable[..., Tensor], inputs: Inputs) -> Tensor:
        """What `run` gives at all N positions that are read, on each of the ranks, in fp32 and
        without a gradient. A collective of the group.
        """
        local_N, local = self.local_slice(inputs)
        out_N = torch.zeros(local_N.shape, device=local_N.device)
        out_N[local_N] = run(**local).detach().float()
        # Each position is one rank's, 0 everywhere else: the sum is exact.
        torch.distributed.all_reduce(out_N, group=self.group)
        return out_N


def _local_attention(
    query: Tensor, key: Tensor, value: Tensor, *, module: nn.Module, **kwargs: Any
) -> Tensor:
    """Attention of this rank's heads to all tokens: [1, T, heads/S, size] to the same shape."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return attention_by_row(module, q, k, v, None, **kwargs)[0]
