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
from transformers import AttentionInterface

from rayward.actors.models.attention import attention_by_row

Inputs = dict[str, Any]
"""What the modules of actors/models/load.py take to read rows that lie back to back."""


def check_heads(config: Any, size: int) -> None:
    """ValueError where the heads of a model with this Hugging Face config cannot be dealt out to
    `size` ranks.
    """
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    if heads % size or key_heads % size:
        raise ValueError(
            f"rl.sequence_parallel {size} must divide the model's {heads} attention heads and "
            f"{key_heads} key/value heads"
        )


def slice_of(inputs: Inputs, rank: int, size: int) -> tuple[Tensor, Inputs]:
    """(own_N: which of `read_N` stand in this rank's slice of the T tokens, the inputs of that
    slice).

    A row of 1 to `size` tokens, which nobody reads, makes T a multiple of `size`; the masks stay
    those of all rows.
    """
    ids_1T, read_N = inputs["input_ids_BT"], inputs["read_N"]
    dummies = size - ids_1T.shape[1] % size
    width = (ids_1T.shape[1] + dummies) // size
    start = rank * width
    own_N = (read_N >= start) & (read_N < start + width)
    mask = torch.ones(1, 1, dummies, dummies, dtype=torch.bool, device=ids_1T.device).tril()
    found: Inputs = {"row_masks": [*inputs["row_masks"], mask], "read_N": read_N[own_N] - start}
    for name in ("input_ids_BT", "positions_BT"):
        found[name] = nn.functional.pad(inputs[name], (0, dummies))[:, start : start + width]
    if "targets_N" in inputs:
        found["targets_N"] = inputs["targets_N"][own_N]
    return own_N, found


class Ulysses:
    """The ranks that share their rows with this one, and a model whose attention works across
    them.
    """

    def __init__(self, model: Any, group: ProcessGroup):
        """Raises ValueError where the heads of the Hugging Face `model` do not divide."""
        from deepspeed.sequence.layer import DistributedAttention

        self.group, self.rank, self.size = group, group.rank(), group.size()
        check_heads(model.config.get_text_config(), self.size)
        across = DistributedAttention(_local, group, scatter_idx=2, gather_idx=1)

        def attention(
            module: nn.Module,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Tensor | None,
            **more: Any,
        ) -> tuple[Tensor, None]:
            """transformers' attention of [1, heads, T/S, size]; of whole rows where no masks come
            with them.
            """
            if more.get("row_masks") is None:
                return attention_by_row(module, query, key, value, attention_mask, **more)
            parts = (x.transpose(1, 2) for x in (query, key, value))
            return across(*parts, 0, module=module, **more), None

        AttentionInterface.register("rayward_ulysses", attention)
        model.set_attn_implementation("rayward_ulysses")

    def own(self, inputs: Inputs) -> tuple[Tensor, Inputs]:
        """`slice_of` this rank."""
        return slice_of(inputs, self.rank, self.size)

    def read(self, run: Callable[..., Tensor], inputs: Inputs) -> Tensor:
        """What `run` gives at all N positions that are read, on each of the ranks, in fp32 and
        without a gradient.
        """
        own_N, own = self.own(inputs)
        out_N = torch.zeros(own_N.shape, device=own_N.device)
        out_N[own_N] = run(**own).detach().float()
        # Each position is one rank's, 0 everywhere else.
        torch.distributed.all_reduce(out_N, group=self.group)
        return out_N


def _local(query: Tensor, key: Tensor, value: Tensor, *, module: nn.Module, **more: Any) -> Tensor:
    """Attention of this rank's heads, [1, T, heads/S, size]."""
    return attention_by_row(
        module, *(x.transpose(1, 2) for x in (query, key, value)), None, **more
    )[0]
