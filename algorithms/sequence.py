"""Token log-probabilities in bounded memory, and the helpers that turn ragged sequences into padded ones
and back.

A fp32 log-softmax over the vocabulary is the largest tensor of RLHF training (16 k tokens x 152 k entries
is 10 GB), and bf16 is too coarse for it: log-probs are then wrong by about 1e-2, which shows up as a fake
KL. So both log-prob functions work in fp32 on a chunk of tokens at a time, and recompute the chunk in the
backward pass (Chen et al., "Training deep nets with sublinear memory cost", arXiv:1604.06174) instead of
keeping it, unless all chunks together fit into KEPT_BYTES: then keeping them saves the second product with the head.

Shapes: N = tokens, B = sequences, T = longest sequence, V = vocabulary, H = hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

DEFAULT_CHUNK_TOKENS = 1024
CHUNK_BYTES = 64 * 2**20
"""Most fp32 logits that are made at a time: with a large vocabulary a chunk has fewer tokens."""
KEPT_BYTES = 64 * 2**20
"""Most fp32 logits of one call that are kept for its backward pass; the entropy keeps up to three more such tensors."""

ChunkStats = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(logits or hidden states, targets) of a chunk -> its (log-probs, entropies if wanted)."""


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
            raise ValueError(f"{name} has shape {list(tensors[name].shape)}, but must be [N]: flatten it")
        if len(tensors[name]) != len(tensors[names[0]]):
            raise ValueError(
                f"{names[0]} has {len(tensors[names[0]])} entries and {name} has {len(tensors[name])}: "
                "both must hold the same tokens in the same order"
            )
    return len(tensors[names[0]])


def checked_lengths(lengths: Sequence[int], total: int, what: str = "tokens", minimum: int = 0) -> list[int]:
    """`lengths` as a list of ints; ValueError if one is below `minimum` or they do not sum to `total`."""
    checked = [int(length) for length in lengths]
    for row, length in enumerate(checked):
        if length < minimum:
            raise ValueError(f"sequence {row} has {length} {what}, but needs at least {minimum}: drop it")
    if sum(checked) != total:
        raise ValueError(
            f"lengths sum to {sum(checked)}, but the flat tensor holds {total} {what}: "
            "pass one length per sequence, in the order in which the sequences were flattened"
        )
    return checked


# ----------------------------------------------------------------------------------------------------------
# Log-probabilities


def token_logprobs(
    logits_NV: Tensor, targets_N: Tensor, temperature: float = 1.0, chunk_tokens: int = DEFAULT_CHUNK_TOKENS
) -> Tensor:
    """log softmax(logits / temperature) at the targets: fp32 [N].

    `logits_NV` (any float dtype) is never modified, and no fp32 tensor of more than `chunk_tokens * V`
    elements is made of it; its gradient has its dtype. The caller has aligned the two: `logits_NV[i]`
    predicts `targets_N[i]` (int64). Use the temperature of the rollout in policy, reference and old
    log-probs alike. ValueError: shapes that do not fit, temperature <= 0, chunk_tokens < 1.
    """
    _check_logprob_arguments(logits_NV, targets_N, temperature, chunk_tokens)

    def from_logits(logits_cV: Tensor, targets_c: Tensor) -> tuple[Tensor, Tensor | None]:
        return _select_logprobs(logits_cV, targets_c, temperature, with_entropy=False)

    # split, not slices: its backward joins the chunk gradients once, where N / chunk slices would each add a
    # zero-filled [N, V].
    chunk_tokens = _fitting(chunk_tokens, logits_NV.shape[1])
    chunks = zip(torch.split(logits_NV, chunk_tokens), torch.split(targets_N, chunk_tokens), strict=True)
    recomputed = _too_large(*logits_NV.shape)
    return torch.cat([_stats(from_logits, *chunk, recomputed)[0] for chunk in chunks])


def token_logprobs_from_hidden(
    hidden_NH: Tensor,
    head_weight_VH: Tensor,
    targets_N: Tensor,
    temperature: float = 1.0,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
    bias: Tensor | None = None,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The same from the last hidden states and the LM head: (logprobs_N, entropy_N or None), both fp32.

    Never builds [N, V]: each chunk's logits are made (in the dtype of the model, as the model itself makes
    them) and reduced in fp32; where they are many they are dropped and made again in the backward pass. So the
    head must still be whole during backward: under ZeRO-3 call this inside the forward of the module that owns
    it. The head's gradient adds up over chunks in the head's dtype. The entropy is that of
    softmax(logits / temperature), in nats, and differentiable. `bias` is [V]. ValueError: as `token_logprobs`,
    or hidden sizes that differ.
    """
    _check_logprob_arguments(hidden_NH, targets_N, temperature, chunk_tokens)
    if head_weight_VH.dim() != 2 or head_weight_VH.shape[1] != hidden_NH.shape[1]:
        raise ValueError(
            f"hidden states have size {hidden_NH.shape[1]}, but the head weight has shape "
            f"{list(head_weight_VH.shape)}: pass the LM head's weight as [V, H]"
        )

    def from_hidden(hidden_cH: Tensor, targets_c: Tensor) -> tuple[Tensor, Tensor | None]:
        logits_cV = F.linear(hidden_cH, head_weight_VH, bias)
        return _select_logprobs(logits_cV, targets_c, temperature, with_entropy)

    chunk_tokens = _fitting(chunk_tokens, head_weight_VH.shape[0])
    chunks = zip(torch.split(hidden_NH, chunk_tokens), torch.split(targets_N, chunk_tokens), strict=True)
    recomputed = _too_large(len(hidden_NH), len(head_weight_VH))
    parts = [_stats(from_hidden, *chunk, recomputed) for chunk in chunks]
    logprobs_N = torch.cat([logprobs_c for logprobs_c, _ in parts])
    return logprobs_N, torch.cat([e_c for _, e_c in parts if e_c is not None]) if with_entropy else None


def _too_large(num_tokens: int, vocabulary: int) -> bool:
    """Whether the fp32 logits are recomputed rather than kept."""
    return 4 * num_tokens * vocabulary > KEPT_BYTES


def _stats(chunk_stats: ChunkStats, x_cX: Tensor, targets_c: Tensor, recomputed: bool) -> tuple[Tensor, Tensor | None]:
    if not recomputed:
        return chunk_stats(x_cX, targets_c)
    # No random numbers are drawn, so saving the states of the generators would be wasted time.
    stats = checkpoint(chunk_stats, x_cX, targets_c, use_reentrant=False, preserve_rng_state=False)
    return cast(tuple[Tensor, Tensor | None], stats)


def _select_logprobs(
    logits_cV: Tensor, targets_c: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    all_logprobs_cV = F.log_softmax(at_least_fp32(logits_cV) / temperature, dim=-1)
    logprobs_c = all_logprobs_cV.gather(1, targets_c[:, None]).squeeze(1)
    if not with_entropy:
        return logprobs_c, None
    # A vocabulary padded to a round number has -inf logits there: 0 * -inf would be NaN, 0 * finite is 0.
    finite_cV = all_logprobs_cV.clamp(min=torch.finfo(all_logprobs_cV.dtype).min)
    return logprobs_c, -(all_logprobs_cV.exp() * finite_cV).sum(-1)


def _fitting(chunk_tokens: int, vocabulary: int) -> int:
    """Tokens of a chunk, fewer than asked for where their logits would be more than CHUNK_BYTES."""
    return max(1, min(chunk_tokens, CHUNK_BYTES // (4 * vocabulary)))


def _check_logprob_arguments(x_NX: Tensor, targets_N: Tensor, temperature: float, chunk_tokens: int) -> None:
    if x_NX.dim() != 2 or targets_N.shape != x_NX.shape[:1]:
        raise ValueError(
            f"input of shape {list(x_NX.shape)} and targets of shape {list(targets_N.shape)} do not fit: "
            "flatten to [N, ...] and [N], keeping only the positions that are trained"
        )
    if temperature <= 0.0:
        raise ValueError(f"temperature is {temperature}, but must be > 0: use 1.0 for greedy samples")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}, but must be at least 1")


def weighted_nll(logprobs_N: Tensor, weights_N: Tensor) -> Tensor:
    """Weighted cross-entropy, sum over tokens of -weight * logprob: the SFT loss, and that of C-RLFT.

    The caller divides by the sum of the weights over the whole optimizer step. C-RLFT (OpenChat,
    arXiv:2309.11235) is this loss with a weight per source class (1 expert, 0.1 other) and a role name per
    class.
    """
    check_same_length(logprobs_N=logprobs_N, weights_N=weights_N)
    return -(at_least_fp32(logprobs_N) * weights_N).sum()


# ----------------------------------------------------------------------------------------------------------
# Ragged sequences


def segments(lengths: Sequence[int]) -> list[slice]:
    """Where each sequence lies in the flat tensor."""
    ends = list(accumulate(int(length) for length in lengths))
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def split_segments(x_N: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """The flat tensor as one view per sequence. ValueError if the lengths do not sum to N."""
    return list(torch.split(x_N, checked_lengths(lengths, len(x_N))))


def concat_segments(parts: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """One tensor per sequence -> (flat tensor, lengths). ValueError if there is none: its dtype would be a
    guess."""
    if not parts:
        raise ValueError("0 sequences to join, but at least 1 is needed: skip the empty batch")
    return torch.cat(list(parts)), [len(part) for part in parts]


def last_token_index(lengths: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Flat index of the last token of each sequence: int64 [B]. ValueError for an empty sequence, which has
    none.

    From lengths, never from a search for the pad token: where pad equals EOS that search loses the EOS.
    """
    checked = checked_lengths(lengths, sum(int(length) for length in lengths), minimum=1)
    return torch.tensor(checked, dtype=torch.int64, device=device).cumsum(0) - 1


def pad_segments(x_N: Tensor, lengths: Sequence[int], fill: float = 0.0) -> Tensor:
    """Right-padded [B, T] with `fill` after each sequence. Differentiable. ValueError if lengths do not sum
    to N."""
    checked = checked_lengths(lengths, len(x_N))
    shape_BT = (len(checked), max(checked, default=0))
    padded = x_N.new_full((shape_BT[0] * shape_BT[1],), fill)
    return padded.scatter(0, _padded_positions(checked, x_N.device), x_N).view(shape_BT)


def unpad_segments(x_BT: Tensor, lengths: Sequence[int]) -> Tensor:
    """The inverse of `pad_segments`: flat [N]. Differentiable. ValueError if a length does not fit into T."""
    checked = [int(length) for length in lengths]
    if (len(checked), max(checked, default=0)) != tuple(x_BT.shape):
        raise ValueError(
            f"{len(checked)} lengths of at most {max(checked, default=0)} do not describe a padded tensor of "
            f"shape {list(x_BT.shape)}: pass the lengths it was padded with"
        )
    return x_BT.reshape(-1).gather(0, _padded_positions(checked, x_BT.device))


def _padded_positions(lengths: list[int], device: torch.device) -> Tensor:
    """Index of each flat token in the flattened [B, T] tensor, built on the CPU so that no GPU waits."""
    lengths_B = torch.tensor(lengths, dtype=torch.int64)
    # In row b every token moves right by the padding of the rows before it.
    padding_before_B = (max(lengths, default=0) - lengths_B).cumsum(0).roll(1)
    padding_before_B[:1] = 0
    return (torch.arange(sum(lengths)) + padding_before_B.repeat_interleave(lengths_B)).to(device)


def segment_sum(x_N: Tensor, lengths: Sequence[int]) -> Tensor:
    """Sum over each sequence: [B], 0 for an empty one; for instance the log-prob of a whole response."""
    return pad_segments(x_N, lengths).sum(1)


def segment_mean(x_N: Tensor, lengths: Sequence[int]) -> Tensor:
    """Mean over each sequence: [B]. ValueError for an empty one, which has no mean."""
    checked = checked_lengths(lengths, len(x_N), minimum=1)
    return segment_sum(x_N, checked) / torch.tensor(checked, device=x_N.device)
