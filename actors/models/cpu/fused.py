"""Norms and rotary embeddings in few passes over memory, for the CPU in fp32 and nothing else.

Written op by op, as models come, the two pass over memory often; as one function each with its own
gradient they save a tenth of a training step at width 128 and a twentieth at 512
(benchmarks/cpu_modules.py). On GPUs, in bf16 and in fp64 a model runs what it came with.

Outputs are bit for bit the model's own, since the same fp32 operations are done in the same order.
What is saved are passes over memory: results are written over intermediates that nobody else reads,
and the halves of a head are not copied to swap them. Whether that holds is not assumed: a norm or a
rotation is replaced only where `_agree` finds the same bits on random numbers. Gradients are
written out by hand, so their sums are in another order, and equal up to rounding.

Nothing of the process is patched, neither torch nor transformers: modules of this one model become
of classes that are made here. It can be copied, and saved as Hugging Face models are, but no longer
pickled whole, since pickle finds those classes under no name.

Shapes: B = rows, T = tokens, X = width, N = tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from inspect import isfunction, signature
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ROTATION = "apply_rotary_pos_emb"
"""What attention layers of Hugging Face call it."""
ROTARY_PARAMETERS = ["q", "k", "cos", "sin", "unsqueeze_dim"]
"""The parameters of a rotation that can be replaced."""


def fuse(model: nn.Module) -> int:
    """Replace the RMS norms of a Hugging Face model, and what its attention layers rotate with; of
    how many modules. Other models of the process keep theirs.
    """
    kinds = {"RMSNorm": _fuse_norm, "Attention": _fuse_rotary}
    return sum(
        replace(module)
        for module in model.modules()
        for ending, replace in kinds.items()
        if type(module).__name__.endswith(ending)
    )


class _RMSNorm(torch.autograd.Function):
    """weight * x / sqrt(mean(x^2) + eps)."""

    @staticmethod
    def forward(ctx: Any, x_BTX: Tensor, weight_X: Tensor, eps: float) -> Tensor:
        # In place on temporaries only: x_BTX is the caller's, and the backward pass reads it.
        scale_BT1 = x_BTX.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x_BTX, weight_X, scale_BT1)
        return (x_BTX * scale_BT1).mul_(weight_X)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor | None, None]:
        x_BTX, weight_X, scale_BT1 = ctx.saved_tensors
        (gradient_BTX,) = gradients
        # With s = scale: d weight = sum over tokens of x s g, and
        # d x = s (g w - x s^2 mean(x g w)).
        per_token_NX = (x_BTX * scale_BT1).mul_(gradient_BTX).flatten(0, -2)
        for_x = for_weight = None
        if ctx.needs_input_grad[1]:
            for_weight = per_token_NX.sum(0)
        if ctx.needs_input_grad[0]:
            # -s^2 mean(x g w): the product with the weight sums over X.
            along_BT1 = (per_token_NX @ weight_X).view_as(scale_BT1)
            along_BT1 = along_BT1.mul_(scale_BT1).div_(-x_BTX.shape[-1])
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
        # Models negate b where this negates the sine: a sign changes no bit of a product besides.
        return _turned(query, cos, -a_sin, b_sin), _turned(key, cos, -a_sin, b_sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        a_sin, b_sin = sin.chunk(2, dim=-1)
        # Turned back: the transpose, in which each half takes the other's sine.
        query, key = (_turned(gradient, cos, b_sin, -a_sin) for gradient in gradients)
        return query, key, None, None  # cos and sin come from positions and learn nothing


def _turned(x: Tensor, cos: Tensor, into_a: Tensor, into_b: Tensor) -> Tensor:
    """(a cos + b into_a, b cos + a into_b) for the halves a and b of the last dimension."""
    a, b = x.chunk(2, dim=-1)
    out = x * cos
    # Views: what is added to the halves is added to `out`.
    out_a, out_b = out.chunk(2, dim=-1)
    out_a.add_(b * into_a)  # addcmul_ would round once where models do it twice
    out_b.add_(a * into_b)
    return out


def _plain(*tensors: Tensor) -> bool:
    """Whether all are fp32 on the CPU."""
    return all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)


def _fuse_norm(norm: nn.Module) -> bool:
    """Whether the norm was one weight and an epsilon, computes the same bits, and is replaced."""
    weights = dict(norm.named_parameters())
    weight_X = weights.get("weight")
    if weight_X is None or len(weights) > 1 or weight_X.ndim != 1:
        return False
    if not len(weight_X) or not _plain(weight_X):
        return False
    # One with `unfused` is replaced already.
    if not isinstance(_eps(norm), float) or hasattr(norm, "unfused"):
        return False
    unfused: Any = type(norm)  # mypy takes a class of modules for unhashable
    fused = _fused_norm(unfused)
    probe = torch.randn(1, 3, len(weight_X), generator=_probe_generator())
    if not _agree(norm, partial(fused.forward, norm), probe):
        return False
    # Only the class changes: parameters and hooks stay on the object, where ZeRO-3 and copies of
    # the model look for them.
    norm.__class__ = fused
    return True


def _eps(norm: Any) -> Any:
    """By either name that architectures give it; None where it has none."""
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


@cache
def _fused_norm(unfused: type[Any]) -> Any:
    """The class of a norm with another `forward`, one for each class of norms."""

    def forward(self: Any, x_BTX: Tensor) -> Tensor:
        # Asked at every call: a model is moved and cast after it is loaded.
        if _plain(x_BTX, self.weight):
            return _RMSNorm.apply(x_BTX, self.weight, _eps(self))
        return unfused.forward(self, x_BTX)

    return type(unfused.__name__, (unfused,), {"forward": forward, "unfused": unfused})


def _fuse_rotary(attention: nn.Module) -> bool:
    """Whether the rotation that the layer calls gives the same bits, and is replaced."""
    unfused: Any = type(attention)
    fused = None if hasattr(attention, "unfused") else _fused_attention(unfused)
    if fused is not None:
        attention.__class__ = fused
    return fused is not None


@cache
def _fused_attention(unfused: type[Any]) -> Any:
    """The class of an attention layer whose `forward` is the same code with another rotation; None
    where it does not call one that can be replaced.
    """
    forward = unfused.forward
    # A decorated one would not show what it calls, and keeps its own.
    if not isfunction(forward) or ROTATION not in forward.__code__.co_names:
        return None
    rotation = _fused_rotation(forward.__globals__.get(ROTATION))
    if rotation is None:
        return None
    # The name is looked up in the function's globals: those of the architecture's module, which
    # other models of the process share, stay as they are, and this layer has a copy.
    names = forward.__globals__ | {ROTATION: rotation}
    own = FunctionType(
        forward.__code__, names, "forward", forward.__defaults__, forward.__closure__
    )
    own.__kwdefaults__ = forward.__kwdefaults__
    members = {"forward": own, "unfused": unfused, "__module__": unfused.__module__}
    return type(unfused.__name__, (unfused,), members)


def _fused_rotation(unfused: Any) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """A rotation that gives the same bits; None where there is none."""
    # Not an object (as with the package `kernels`).
    if not isfunction(unfused) or list(signature(unfused).parameters) != ROTARY_PARAMETERS:
        return None

    def fused_rotary(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        # A table narrower than the head turns a part of it, and one that learns needs a gradient.
        whole_heads = q.shape[-1] == k.shape[-1] == cos.shape[-1]
        fixed = not (cos.requires_grad or sin.requires_grad)
        if not whole_heads or not fixed or not _plain(q, k, cos, sin):
            return unfused(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        return _Rotary.apply(q, k, cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim))

    # Query and key [1, heads, 3 tokens, 8], cosine and sine [1, 3, 8]: random and no angles', so
    # that a rotation of neighbours instead of halves shows.
    shapes = (1, 2, 3, 8), (1, 1, 3, 8), (1, 3, 8), (1, 3, 8)
    probes = [torch.randn(shape, generator=_probe_generator()) for shape in shapes]
    return fused_rotary if _agree(unfused, fused_rotary, *probes) else None


@torch.no_grad()
def _agree(unfused: Callable[..., Any], fused: Callable[..., Any], *inputs: Tensor) -> bool:
    """Whether both give the same bits; not where the old one does not take these inputs."""
    try:
        both = [
            result if isinstance(result, tuple) else (result,)
            for result in (unfused(*inputs), fused(*inputs))
        ]
        return all(torch.equal(a, b) for a, b in zip(*both, strict=True))
    # Another number of results, or code that wants other shapes: then the model keeps its own.
    except (TypeError, ValueError, RuntimeError):
        return False


def _probe_generator() -> torch.Generator:
    """A generator of its own: draws from the global one would change what a seed gives."""
    return torch.Generator().manual_seed(0)
