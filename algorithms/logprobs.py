"""Log-probabilities of tokens from hidden states and the head, in bounded memory.

A fp32 log-softmax over the vocabulary is the largest tensor of RLHF training (16 k tokens x 152 k
entries is 10 GB), and bf16 is too coarse for it: log-probs are then wrong by about 1e-2, which
shows up as a fake KL. So they are made in fp32 on a chunk of tokens at a time, and the backward
pass makes the chunk's logits again instead of keeping them: that is checkpointing at the head (Chen
et al., "Training deep nets with sublinear memory cost", arXiv:1604.06174). Where all fp32 logits
fit into KEPT_BYTES they are kept, which saves the second product with the head.

What is multiplied in which format: the product with a bf16 head gives fp32 on GPUs (torch.mm's
out_dtype; vLLM does the same with `head_dtype`) and bf16 on the CPU, as vLLM's engine there. The
head's gradient adds up over chunks in fp32.

Shapes: N = tokens, c = tokens of a chunk, V = vocabulary, H = hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rayward.algorithms.sequence import at_least_fp32

CHUNK_TOKENS = {"cpu": 1024, "cuda": 8192}
CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 1024 * 2**20}
"""Most fp32 logits that are made at a time: with a large vocabulary a chunk has fewer tokens.
Several tensors of that size exist at once. GPUs need larger products to be busy, and have the
memory."""
KEPT_BYTES = 64 * 2**20
"""Most fp32 logits of one call that are kept for its backward pass. The entropy keeps up to three
more such tensors."""


@dataclass(frozen=True)
class LogitMap:
    """What a model does to its logits: `softcap` * tanh(logits / `softcap`), then times `scale`."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits_cV: Tensor, temperature: float) -> Tensor:
        """The fp32 (or fp64) logits of the distribution at a temperature."""
        # Before the cap and the division: in bf16 both would round once more.
        logits_cV = at_least_fp32(logits_cV)
        if self.softcap is not None:
            logits_cV = torch.tanh(logits_cV / self.softcap) * self.softcap
        divisor = temperature / self.scale
        return logits_cV if divisor == 1 else logits_cV / divisor


def token_logprobs_from_hidden(
    hidden_NH: Tensor,
    head_weight_VH: Tensor,
    targets_N: Tensor,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    bias: Tensor | None = None,
    with_entropy: bool = False,
    logit_map: LogitMap = LogitMap(),
) -> tuple[Tensor, Tensor | None]:
    """log softmax(logits / temperature) at the targets: (logprobs_N, entropy_N or None), both fp32.

    From the last hidden states and the LM head. Never builds [N, V]: a chunk has at most
    `chunk_tokens` (None: CHUNK_TOKENS of the device) tokens, fewer where their logits would be more
    than CHUNK_BYTES. The head must still be whole during backward: under ZeRO-3 call this inside
    the forward of the module that owns it. The caller has aligned the two: `hidden_NH[i]` predicts
    `targets_N[i]` (int64). Use the temperature of the rollout in policy, reference and old
    log-probs alike. The entropy is that of softmax(logits / temperature), in nats, and
    differentiable. `bias` is [V]. ValueError: shapes that do not fit, temperature <= 0,
    chunk_tokens < 1.
    """
    if hidden_NH.dim() != 2 or targets_N.shape != hidden_NH.shape[:1]:
        raise ValueError(
            f"input of shape {list(hidden_NH.shape)} and targets of shape {list(targets_N.shape)} "
            "do not fit: flatten to [N, H] and [N], keeping only the positions that are trained"
        )
    if head_weight_VH.dim() != 2 or head_weight_VH.shape[1] != hidden_NH.shape[1]:
        raise ValueError(
            f"hidden states have size {hidden_NH.shape[1]}, but the head weight has shape "
            f"{list(head_weight_VH.shape)}: pass the LM head's weight as [V, H]"
        )
    if temperature <= 0.0:
        raise ValueError(
            f"temperature is {temperature}, but must be > 0: use 1.0 for greedy samples"
        )
    device = hidden_NH.device.type
    if chunk_tokens is None:
        chunk_tokens = CHUNK_TOKENS.get(device, CHUNK_TOKENS["cuda"])
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}, but must be at least 1")
    logits_bytes = 4 * len(head_weight_VH)  # of one token
    chunk_tokens = max(
        1, min(chunk_tokens, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // logits_bytes)
    )
    logprobs_of = _TokenLogprobs(temperature, logit_map, with_entropy)
    fits = len(hidden_NH) * logits_bytes <= KEPT_BYTES
    # Autograd adds up the head's gradient over chunks in the head's own format, so half formats
    # take _Chunked however few their tokens are.
    if fits and hidden_NH.dtype in (torch.float32, torch.float64):
        # split, not slices: its backward joins the chunk gradients once, where N / chunk slices
        # would each add a zero-filled [N, H].
        chunks = zip(hidden_NH.split(chunk_tokens), targets_N.split(chunk_tokens), strict=True)
        logprobs_N, entropy_N = _join(
            [logprobs_of(F.linear(h_cH, head_weight_VH, bias), t_c) for h_cH, t_c in chunks]
        )
    else:
        logprobs_N, entropy_N = _Chunked.apply(
            hidden_NH, head_weight_VH, bias, targets_N, logprobs_of, chunk_tokens
        )
    return logprobs_N, entropy_N if with_entropy else None


@dataclass(frozen=True)
class _TokenLogprobs:
    """Makes a chunk's log-probs and entropies of its logits."""

    temperature: float
    logit_map: LogitMap
    with_entropy: bool

    def __call__(self, logits_cV: Tensor, targets_c: Tensor) -> tuple[Tensor, Tensor]:
        """(logprobs_c, entropy_c, which is zeros where nobody wants it)."""
        all_logprobs_cV = F.log_softmax(self.logit_map(logits_cV, self.temperature), dim=-1)
        logprobs_c = all_logprobs_cV.gather(1, targets_c[:, None]).squeeze(1)
        if not self.with_entropy:
            return logprobs_c, torch.zeros_like(logprobs_c)
        # A vocabulary padded to a round number has -inf logits there: 0 * -inf would be NaN, 0 *
        # finite is 0.
        finite_cV = all_logprobs_cV.clamp(min=torch.finfo(all_logprobs_cV.dtype).min)
        return logprobs_c, -(all_logprobs_cV.exp() * finite_cV).sum(-1)


class _Chunked(torch.autograd.Function):
    """Log-probs and entropies by chunks; the backward pass makes each chunk's logits again.

    The gradients of the head are sums over chunks in fp32, rounded to the head's own format once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        logprobs_of: _TokenLogprobs,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N)
        ctx.logprobs_of, ctx.chunk_tokens = logprobs_of, chunk_tokens
        # An output that is not used, such as the entropy, then has no gradient instead of zeros.
        ctx.set_materialize_grads(False)
        # No graph is recorded here, so each chunk's logits are freed before the next are made.
        chunks = zip(hidden_NH.split(chunk_tokens), targets_N.split(chunk_tokens), strict=True)
        return _join([logprobs_of(_logits(h_cH, weight_VH, bias_V), t_c) for h_cH, t_c in chunks])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, targets_N = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        used = [number for number, gradient in enumerate(gradients) if gradient is not None]
        per_token = (hidden_NH, targets_N, *(gradients[number] for number in used))
        # bf16 sums over many chunks would drop the small terms; fp64 heads (tests) stay fp64.
        sum_dtype = torch.promote_types(weight_VH.dtype, torch.float32)
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=sum_dtype) if needs_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=sum_dtype) if needs_bias else None
        grad_hidden: list[Tensor] = []
        chunks = zip(*(x.split(ctx.chunk_tokens) for x in per_token), strict=True)
        for h_cH, t_c, *grads_c in chunks:
            # A leaf: the graph reaches from the outputs to the logits, and the products with the
            # head below are written out, so that they can be summed in `sum_dtype`.
            logits_cV = _logits(h_cH, weight_VH, bias_V).requires_grad_()
            with torch.enable_grad():
                outputs = ctx.logprobs_of(logits_cV, t_c)
            used_outputs = [outputs[number] for number in used]
            (grad_logits_cV,) = torch.autograd.grad(used_outputs, logits_cV, grads_c)
            if grad_bias_V is not None:
                grad_bias_V += grad_logits_cV.sum(0, dtype=sum_dtype)
            # The products below need both sides in one format.
            grad_logits_cV = grad_logits_cV.to(weight_VH.dtype)
            if needs_hidden:
                grad_hidden.append(grad_logits_cV @ weight_VH)
            if grad_weight_VH is not None:
                _add_product(grad_weight_VH, grad_logits_cV, h_cH)
        # One gradient for each argument of forward; the last three are no tensors to learn.
        return (
            torch.cat(grad_hidden) if needs_hidden else None,
            None if grad_weight_VH is None else grad_weight_VH.to(weight_VH.dtype),
            None if grad_bias_V is None or bias_V is None else grad_bias_V.to(bias_V.dtype),
            None,
            None,
            None,
        )


def _join(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _widens(x: Tensor) -> bool:
    """Whether a product of such matrices can come in fp32: of half formats, on GPUs."""
    return x.device.type == "cuda" and x.dtype in (torch.bfloat16, torch.float16)


def _logits(hidden_cH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    if not _widens(weight_VH):
        return F.linear(hidden_cH, weight_VH, bias_V)
    logits_cV = torch.mm(hidden_cH, weight_VH.t(), out_dtype=torch.float32)
    return logits_cV if bias_V is None else logits_cV + bias_V


def _add_product(sum_VH: Tensor, grad_logits_cV: Tensor, hidden_cH: Tensor) -> None:
    """Adds a chunk's share of the head's gradient to `sum_VH`, in place."""
    if sum_VH.dtype == grad_logits_cV.dtype:
        # Into the sum itself: a product of its own would be one more [V, H].
        torch.addmm(sum_VH, grad_logits_cV.t(), hidden_cH, out=sum_VH)
    elif _widens(grad_logits_cV):
        sum_VH += torch.mm(grad_logits_cV.t(), hidden_cH, out_dtype=torch.float32)
    else:  # each chunk's product is rounded once, the sum is not
        sum_VH += grad_logits_cV.t() @ hidden_cH
