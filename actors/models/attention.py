"""Attention of rows that lie back to back: each by itself, without a mask of all tokens by all.

Shapes: T = tokens of all rows, Q = queries that a mask is of.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils import is_flash_attn_2_available

SPECIAL_ATTENTION_FIELDS = (
    "sliding_window",
    "attention_chunk_size",
    "attn_logit_softcapping",
    "index_topk",
)
"""Fields of configs whose models attend to fewer tokens than all before, or change the products."""


def attends_plainly(config: PretrainedConfig) -> bool:
    """Whether every layer is softmax attention to all tokens before, and nothing more."""
    text = config.get_text_config()
    if any(getattr(text, name, None) for name in SPECIAL_ATTENTION_FIELDS):
        return False
    layers = getattr(text, "layer_types", None) or []
    return set(layers) <= {"full_attention"}


def attend_by_row(model: PreTrainedModel) -> bool:
    """Let attention take packed rows one by one; False where the model's does more than that."""
    if not attends_plainly(model.config):
        return False
    # Under a name for which transformers knows no mask function it makes no mask. Under "sdpa" it
    # would make one of T x T, which at 64k tokens is 4 GB.
    AttentionInterface.register("rayward_by_row", attention_by_row)
    model.set_attn_implementation("rayward_by_row")
    return True


def attend_to_packs(
    model: PreTrainedModel, device: torch.device, wanted: bool | None = None
) -> bool:
    """Give a model the attention that is fast on packed rows; False where there is none.

    It is row by row on the CPU, flash-attn on GPUs in bf16 if it is installed. (Unpacked rows reach
    torch's own flash kernels through SDPA anyway.) With `wanted`, row by row on GPUs too, if there
    is nothing faster: SDPA would take a mask of all tokens by all.
    """
    if device.type == "cpu":
        return attend_by_row(model)
    # flash-attn has no fp32 kernels.
    if model.dtype != torch.bfloat16 or not is_flash_attn_2_available():
        return bool(wanted) and attend_by_row(model)
    model.set_attn_implementation("flash_attention_2")
    return True


def packed(positions_BT: Tensor) -> dict[str, Any]:
    """What attention needs to know of packed rows, by flash attention's names; B is 1."""
    # A position of 0 begins a row. The bounds are [rows + 1], the last one is T; flash attention's
    # kernels take them as int32 only.
    starts = (positions_BT[0] == 0).nonzero()[:, 0]
    bounds = torch.cat([starts, starts.new_tensor([positions_BT.shape[1]])]).int()
    longest = int(positions_BT.max()) + 1
    return {
        "position_ids": positions_BT,
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def attention_by_row(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention of [1, heads, T, size], each row by itself; [1, T, heads, size].

    A row is causal, or has its mask in `row_masks`: [1, 1, Q, T], of its last Q queries, 0 where
    none needs one; those before are causal among themselves. Attention dropout is not applied:
    models are loaded with every rate 0.
    """
    bounds, masks = kwargs.get("cu_seq_lens_q"), kwargs.pop("row_masks", None)
    if masks is not None:
        lengths = [mask.shape[-1] for mask in masks]
    elif bounds is not None:
        lengths = bounds.diff().tolist()
        masks = [None] * len(lengths)
    else:  # padded rows side by side
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    group = query.shape[1] // key.shape[1]
    if group > 1:
        # SDPA can read a shared head of keys by itself (enable_gqa), but with a mask only in its
        # slow kernel that writes all products out.
        key = key.repeat_interleave(group, dim=1)
        value = value.repeat_interleave(group, dim=1)
    attend = partial(nn.functional.scaled_dot_product_attention, scale=kwargs.get("scaling"))
    parts = []
    rows = zip(masks, *(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    for mask, q, k, v in rows:
        if mask is None:
            parts.append(attend(q, k, v, is_causal=True))
            continue
        causal = q.shape[2] - mask.shape[2]
        first, last = q.split([causal, mask.shape[2]], dim=2)
        # Queries and keys of the causal part are cut to the same length: SDPA lays the triangle of
        # is_causal at the first key, so it would be wrong for `last` against all keys.
        if causal:
            parts.append(attend(first, k[:, :, :causal], v[:, :, :causal], is_causal=True))
        if mask.shape[2]:
            parts.append(attend(last, k, v, attn_mask=mask))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None
