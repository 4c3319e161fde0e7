"""Sums over ragged sequences, and the helpers that turn them into padded ones and back.

Shapes: N = tokens, B = sequences, T = longest sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """`x` in fp32, or unchanged if it is fp64 already (tests check gradients in fp64)."""
    return x if x.dtype == torch.float64 else x.float()


def check_same_length(**tensors: Tensor) -> int:
    """Returns N of 1-D tensors that must all be [N]; ValueError names the two that differ.

    Without it [N] against [N, 1] broadcasts to [N, N] and trains on nonsense without an error.
    """
    names = list(tensors)
    for name in names:
        if tensors[name].dim() != 1:
            raise ValueError(
                f"{name} has shape {list(tensors[name].shape)}, but must be [N]: flatten it"
            )
        if len(tensors[name]) != len(tensors[names[0]]):
            raise ValueError(
                f"{names[0]} has {len(tensors[names[0]])} entries and {name} has "
                f"{len(tensors[name])}: both must hold the same tokens in the same order"
            )
    return len(tensors[names[0]])


def checked_lengths(
    lengths: Sequence[int], total: int, what: str = "tokens", minimum: int = 0
) -> list[int]:
    """`lengths` as ints; ValueError if one is below `minimum` or they do not sum to `total`."""
    checked = [int(length) for length in lengths]
    for row, length in enumerate(checked):
        if length < minimum:
            raise ValueError(
                f"sequence {row} has {length} {what}, but needs at least {minimum}: drop it"
            )
    if sum(checked) != total:
        raise ValueError(
            f"lengths sum to {sum(checked)}, but the flat tensor holds {total} {what}: "
            "pass one length per sequence, in the order in which the sequences were flattened"
        )
    return checked


def weighted_nll(logprobs_N: Tensor, weights_N: Tensor) -> Tensor:
    """Weighted cross-entropy, sum over tokens of -weight * logprob: the loss of SFT and C-RLFT.

    The caller divides by the sum of the weights over the whole optimizer step. C-RLFT (OpenChat,
    arXiv:2309.11235) is this loss with a weight per source class (1 expert, 0.1 other) and a role
    name per class.
    """
    check_same_length(logprobs_N=logprobs_N, weights_N=weights_N)
    return -(at_least_fp32(logprobs_N) * weights_N).sum()


# ------------------------------------------------------------------------------------
# Ragged sequences


def pad_segments(x_N: Tensor, lengths: Sequence[int]) -> Tensor:
    """Right-padded [B, T], zeros after each sequence. Differentiable. ValueError: lengths not of
    N."""
    inside_BT = _inside(checked_lengths(lengths, len(x_N)), x_N.device)
    # Row-major, as the flat tokens lie: the i-th True takes the i-th token.
    return x_N.new_zeros(inside_BT.shape).masked_scatter(inside_BT, x_N)


def unpad_segments(x_BT: Tensor, lengths: Sequence[int]) -> Tensor:
    """The inverse of `pad_segments`: flat [N]. Differentiable. ValueError: lengths not of T."""
    inside_BT = _inside(lengths, x_BT.device)
    if inside_BT.shape != x_BT.shape:
        raise ValueError(
            f"{len(lengths)} lengths of at most {max(lengths, default=0)} do not describe a "
            f"padded tensor of shape {list(x_BT.shape)}: pass the lengths it was padded with"
        )
    return x_BT[inside_BT]


def _inside(lengths: Sequence[int], device: torch.device) -> Tensor:
    """[B, T] True where a sequence has a token."""
    lengths_B = torch.tensor(lengths, dtype=torch.int64, device=device)
    return torch.arange(max(lengths, default=0), device=device) < lengths_B[:, None]


def segment_sum(x_N: Tensor, lengths: Sequence[int]) -> Tensor:
    """Sum over each sequence: [B], 0 for an empty one. It makes the log-prob of a whole
    response."""
    return pad_segments(x_N, lengths).sum(1)
