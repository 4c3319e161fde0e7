"""Attention of rows that lie back to back: each by itself, without a mask of all tokens by all.

Shapes: T = tokens of all rows, Q = queries that a mask is of.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils import is_flash_attn_2_available

UNLIKE = ("sliding_window", "attention_chunk_size", "attn_logit_softcapping", "index_topk")
"""Fields of configs whose models attend to fewer tokens than all before, or change what attention
computes.
"""


def attends_plainly(config: Any) -> bool:
    """Whether each token of each layer looks at all before it, and softmax of scaled products is
    all that is done.
    """
    text = config.get_text_config()
    layers = getattr(text, "layer_types", None) or []
    return not any(getattr(text, name, None) for name in UNLIKE) and set(layers) <= {
        "full_attention"
    }


def attend_by_row(model: Any) -> bool:
    """Let a model's attention take packed rows one by one; False where it does more than that
    computes.
    """
    if not attends_plainly(model.config):
        return False
    AttentionInterface.register("rayward_by_row", attention_by_row)
    model.set_attn_implementation("rayward_by_row")
    return True


def attend_to_packs(model: Any, device: torch.device, wanted: bool | None = None) -> bool:
    """Give a model the attention that is fast on packed rows, where there is one: row by row on the
    CPU, flash-attn on GPUs in bf16 if it is installed. (Unpacked rows reach torch's own flash
    kernels through SDPA anyway.)

    With `wanted`, row by row on GPUs too, if there is nothing faster: SDPA would take a mask of all
    tokens by all.
    """
    if device.type == "cpu":
        return attend_by_row(model)
    if model.dtype != torch.bfloat16 or not is_flash_attn_2_available():
        return bool(wanted) and attend_by_row(model)
    model.set_attn_implementation("flash_attention_2")
    return True


def packed(positions_BT: Tensor) -> dict[str, Any]:
    """What attention needs to know of packed rows; the bounds are those of flash attention's
    kernels.
    """
    starts = (positions_BT[0] == 0).nonzero()[:, 0]
    bounds = torch.cat([starts, starts.new_tensor([positions_BT.shape[1]])]).int()
    longest = int(positions_BT.max()) + 1
    found = {
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }
    return {"position_ids": positions_BT, **found}


def attention_by_row(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **more: Any,
) -> tuple[Tensor, None]:
    """transformers' attention of [1, heads, T, size], each row by itself, with its mask in
    `row_masks` or causal.

    A mask [1, 1, Q, T] is of a row's last Q queries, 0 where none needs one; those before are
    causal among themselves.
    """
    bounds, masks = more.get("cu_seq_lens_q"), more.pop("row_masks", None)
    if bounds is None and masks is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    lengths = [mask.shape[-1] for mask in masks] if masks else bounds.diff().tolist()
    if groups := query.shape[1] // key.shape[1] - 1:
        key, value = (x.repeat_interleave(groups + 1, dim=1) for x in (key, value))
    attend = partial(nn.functional.scaled_dot_product_attention, scale=more.get("scaling"))
    parts = []
    rows = zip(
        masks or [None] * len(lengths),
        *(x.split(lengths, dim=2) for x in (query, key, value)),
        strict=True,
    )
    for mask, q, k, v in rows:
        if mask is None:
            parts.append(attend(q, k, v, is_causal=True))
            continue
        causal = q.shape[2] - mask.shape[2]
        first, last = q.split([causal, mask.shape[2]], dim=2)
        if causal:
            parts.append(attend(first, k[:, :, :causal], v[:, :, :causal], is_causal=True))
        if mask.shape[2]:
            parts.append(attend(last, k, v, attn_mask=mask))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None
