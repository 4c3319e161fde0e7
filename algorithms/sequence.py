"""Token log-probabilities in bounded memory, and the helpers that turn ragged sequences into padded ones
and back.

A fp32 log-softmax over the vocabulary is the largest tensor of RLHF training (16 k tokens x 152 k entries
is 10 GB), and bf16 is too coarse for it: log-probs are then wrong by about 1e-2, which shows up as a fake
KL. So log-probs are made in fp32 on a chunk of tokens at a time, and the chunk is recomputed in the
backward pass (Chen et al., "Training deep nets with sublinear memory cost", arXiv:1604.06174) instead of
keeping it, unless all chunks together fit into KEPT_BYTES: then keeping them saves the second product with the head.

Shapes: N = tokens, B = sequences, T = longest sequence, V = vocabulary, H = hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

DEFAULT_CHUNK_TOKENS = 1024
CHUNK_BYTES = 64 * 2**20
"""Most fp32 logits that are made at a time: with a large vocabulary a chunk has fewer tokens."""
KEPT_BYTES = 64 * 2**20
"""Most fp32 logits of one call that are kept for its backward pass; the entropy keeps up to three more such tensors."""


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


def token_logprobs_from_hidden(
    hidden_NH: Tensor,
    head_weight_VH: Tensor,
    targets_N: Tensor,
    temperature: float = 1.0,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
    bias: Tensor | None = None,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """log softmax(logits / temperature) at the targets, from the last hidden states and the LM head:
    (logprobs_N, entropy_N or None), both fp32.

    Never builds [N, V]: each chunk's logits are made (in the dtype of the model, as the model itself makes
    them) and reduced in fp32; where they are many they are dropped and made again in the backward pass. So the
    head must still be whole during backward: under ZeRO-3 call this inside the forward of the module that owns
    it. The head's gradient adds up over chunks in the head's dtype. A chunk has fewer tokens than
    `chunk_tokens` where their logits would be more than CHUNK_BYTES. The caller has aligned the two:
    `hidden_NH[i]` predicts `targets_N[i]` (int64). Use the temperature of the rollout in policy, reference and
    old log-probs alike. The entropy is that of softmax(logits / temperature), in nats, and differentiable.
    `bias` is [V]. ValueError: shapes that do not fit, temperature <= 0, chunk_tokens < 1.
    """
    if hidden_NH.dim() != 2 or targets_N.shape != hidden_NH.shape[:1]:
        raise ValueError(
            f"input of shape {list(hidden_NH.shape)} and targets of shape {list(targets_N.shape)} do not fit: "
            "flatten to [N, H] and [N], keeping only the positions that are trained"
        )
    if head_weight_VH.dim() != 2 or head_weight_VH.shape[1] != hidden_NH.shape[1]:
        raise ValueError(
            f"hidden states have size {hidden_NH.shape[1]}, but the head weight has shape "
            f"{list(head_weight_VH.shape)}: pass the LM head's weight as [V, H]"
        )
    if temperature <= 0.0:
        raise ValueError(f"temperature is {temperature}, but must be > 0: use 1.0 for greedy samples")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}, but must be at least 1")

    def plain(hidden_cH: Tensor, targets_c: Tensor) -> tuple[Tensor, Tensor | None]:
        logits_cV = F.linear(hidden_cH, head_weight_VH, bias)
        return _select_logprobs(logits_cV, targets_c, temperature, with_entropy)

    stats: Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]] = plain
    logits_bytes = 4 * len(head_weight_VH)  # of one token
    if len(hidden_NH) * logits_bytes > KEPT_BYTES:
        # No random numbers are drawn, so saving the states of the generators would be wasted time.
        stats = partial(checkpoint, plain, use_reentrant=False, preserve_rng_state=False)
    chunk_tokens = max(1, min(chunk_tokens, CHUNK_BYTES // logits_bytes))
    # split, not slices: its backward joins the chunk gradients once, where N / chunk slices would each add a
    # zero-filled [N, H].
    parts = list(map(stats, hidden_NH.split(chunk_tokens), targets_N.split(chunk_tokens)))
    logprobs_N = torch.cat([logprobs_c for logprobs_c, _ in parts])
    return logprobs_N, torch.cat([e_c for _, e_c in parts if e_c is not None]) if with_entropy else None


def _select_logprobs(
    logits_cV: Tensor, targets_c: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    logits_cV = at_least_fp32(logits_cV)
    all_logprobs_cV = F.log_softmax(logits_cV if temperature == 1 else logits_cV / temperature, dim=-1)
    logprobs_c = all_logprobs_cV.gather(1, targets_c[:, None]).squeeze(1)
    if not with_entropy:
        return logprobs_c, None
    # A vocabulary padded to a round number has -inf logits there: 0 * -inf would be NaN, 0 * finite is 0.
    finite_cV = all_logprobs_cV.clamp(min=torch.finfo(all_logprobs_cV.dtype).min)
    return logprobs_c, -(all_logprobs_cV.exp() * finite_cV).sum(-1)


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


def pad_segments(x_N: Tensor, lengths: Sequence[int]) -> Tensor:
    """Right-padded [B, T] with zeros after each sequence. Differentiable. ValueError if lengths do not sum
    to N."""
    inside_BT = _inside(checked_lengths(lengths, len(x_N)), x_N.device)
    return x_N.new_zeros(inside_BT.shape).masked_scatter(inside_BT, x_N)


def unpad_segments(x_BT: Tensor, lengths: Sequence[int]) -> Tensor:
    """The inverse of `pad_segments`: flat [N]. Differentiable. ValueError if a length does not fit into T."""
    inside_BT = _inside(lengths, x_BT.device)
    if inside_BT.shape != x_BT.shape:
        raise ValueError(
            f"{len(lengths)} lengths of at most {max(lengths, default=0)} do not describe a padded tensor of "
            f"shape {list(x_BT.shape)}: pass the lengths it was padded with"
        )
    return x_BT[inside_BT]


def _inside(lengths: Sequence[int], device: torch.device) -> Tensor:
    """[B, T] True where a sequence has a token."""
    lengths_B = torch.tensor(lengths, dtype=torch.int64, device=device)
    return torch.arange(max(lengths, default=0), device=device) < lengths_B[:, None]


def segment_sum(x_N: Tensor, lengths: Sequence[int]) -> Tensor:
    """Sum over each sequence: [B], 0 for an empty one; for instance the log-prob of a whole response."""
    return pad_segments(x_N, lengths).sum(1)
