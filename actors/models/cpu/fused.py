"""Norms and rotary embeddings in few passes over memory, on CPUs in fp32: outputs bit for bit the
model's own.

Written op by op, as models come, the two take a fifth of a small model's training; as one function
each with its own gradient less than half of that. What a model has is replaced only where it proves
to compute the same. The model can be copied, and saved as Hugging Face models are, but no longer
pickled whole.

Shapes: B = rows, T = tokens, X = width, N = tokens of all rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, partial
from inspect import isfunction, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ARGUMENTS = ["q", "k", "cos", "sin", "unsqueeze_dim"]
"""What a rotation takes that can be replaced."""


def fuse(model: nn.Module) -> int:
    """Replace RMS norms and rotary embeddings of a Hugging Face model; how many. The model still
    runs on GPUs, in bf16 and in fp64, with what it had.

    The function that rotates belongs to the code of an architecture, so all its models in this
    process share it.
    """
    norms = [
        module
        for module in model.modules()
        if type(module).__name__.endswith("RMSNorm") and _fuse_norm(module)
    ]
    codes = {
        type(module).__module__
        for module in model.modules()
        if type(module).__name__.endswith("Attention")
    }
    return len(norms) + sum(_fuse_rotary(sys.modules[name]) for name in sorted(codes))


class _RMSNorm(torch.autograd.Function):
    """weight * x / sqrt(mean(x^2) + eps)."""

    @staticmethod
    def forward(ctx: Any, x_BTX: Tensor, weight_X: Tensor, eps: float) -> Tensor:
        scale_BT1 = x_BTX.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x_BTX, weight_X, scale_BT1)
        return (x_BTX * scale_BT1).mul_(weight_X)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor | None, None]:
        x_BTX, weight_X, scale_BT1 = ctx.saved_tensors
        (gradient_BTX,) = gradients
        per_token_NX = (x_BTX * scale_BT1).mul_(gradient_BTX).flatten(0, -2)
        for_x = for_weight = None
        if ctx.needs_input_grad[1]:
            for_weight = per_token_NX.sum(0)
        if ctx.needs_input_grad[0]:
            along_BT1 = (
                (per_token_NX @ weight_X).view_as(scale_BT1).mul_(scale_BT1).div_(-x_BTX.shape[-1])
            )
            for_x = (gradient_BTX * weight_X).addcmul_(x_BTX, along_BT1).mul_(scale_BT1)
        return for_x, for_weight, None


class _Rotary(torch.autograd.Function):
    """Both halves of every head turned: (a cos - b sin, b cos + a sin)."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        a_sin, b_sin = sin.chunk(2, dim=-1)
        return _turned(query, cos, -a_sin, b_sin), _turned(key, cos, -a_sin, b_sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        a_sin, b_sin = sin.chunk(2, dim=-1)
        query, key = (_turned(gradient, cos, b_sin, -a_sin) for gradient in gradients)
        return query, key, None, None


def _turned(x: Tensor, cos: Tensor, into_a: Tensor, into_b: Tensor) -> Tensor:
    """(a cos + b into_a, b cos + a into_b) for the halves a and b of the last dimension."""
    a, b = x.chunk(2, dim=-1)
    out = x * cos
    out_a, out_b = out.chunk(2, dim=-1)
    out_a.add_(b * into_a)  # addcmul_ would round once where models do it twice
    out_b.add_(a * into_b)
    return out


def _plain(*tensors: Tensor) -> bool:
    """Whether all are fp32 on the CPU."""
    return all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)


def _fuse_norm(norm: nn.Module) -> bool:
    weights = dict(norm.named_parameters())
    weight_X = weights.get("weight")
    if (
        weight_X is None
        or len(weights) > 1
        or weight_X.ndim != 1
        or not len(weight_X)
        or not _plain(weight_X)
    ):
        return False
    if not isinstance(_eps(norm), float) or hasattr(norm, "unfused"):
        return False
    fused, probe = _fused_norm(type(norm)), torch.randn(1, 3, len(weight_X), generator=_draws())
    if not _agree(norm, partial(fused.forward, norm), probe):
        return False
    norm.__class__ = fused
    return True


def _eps(norm: Any) -> Any:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


@cache
def _fused_norm(unfused: type[nn.Module]) -> Any:
    """The class of a norm with another `forward`: weights stay where ZeRO-3 and copies of the model
    look for them.
    """

    def forward(self: Any, x_BTX: Tensor) -> Tensor:
        if _plain(x_BTX, self.weight):
            return _RMSNorm.apply(x_BTX, self.weight, _eps(self))
        return unfused.forward(self, x_BTX)

    return type(unfused.__name__, (unfused,), {"forward": forward, "unfused": unfused})


def _fuse_rotary(code: Any) -> bool:
    whole = getattr(code, "apply_rotary_pos_emb", None)
    # Not one that is replaced already, takes other arguments, or is an object (as with the package
    # `kernels`).
    if (
        not isfunction(whole)
        or whole.__name__ == "fused_rotary"
        or list(signature(whole).parameters) != ARGUMENTS
    ):
        return False

    def fused_rotary(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        fits = q.shape[-1] == k.shape[-1] == cos.shape[-1] and not (
            cos.requires_grad or sin.requires_grad
        )
        if not fits or not _plain(q, k, cos, sin):
            return whole(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        return _Rotary.apply(q, k, cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim))

    shapes = (1, 2, 3, 8), (1, 1, 3, 8), (1, 3, 8), (1, 3, 8)
    if not _agree(
        whole, fused_rotary, *(torch.randn(shape, generator=_draws()) for shape in shapes)
    ):
        return False
    fused_rotary.__wrapped__ = whole  # type: ignore[attr-defined]
    code.apply_rotary_pos_emb = fused_rotary
    return True


@torch.no_grad()
def _agree(whole: Callable[..., Any], fused: Callable[..., Any], *inputs: Tensor) -> bool:
    """Whether both give the same bits; not where the old one does not take what it is given."""
    try:
        both = [
            result if isinstance(result, tuple) else (result,)
            for result in (whole(*inputs), fused(*inputs))
        ]
        return all(torch.equal(a, b) for a, b in zip(*both, strict=True))
    except (TypeError, ValueError, RuntimeError):
        return False


def _draws() -> torch.Generator:
    """Random numbers that leave those of the program alone."""
    return torch.Generator().manual_seed(0)
