"""Digest of a weight transfer: the sender's and each engine's must be equal.

Both sides sum the bits of every tensor, the sender as it sends, the engine as its loader consumes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

PART = 2**24  # elements that are summed at once: each int64 copy of a part takes 128 MiB
PRIME = 65521  # the largest below 2**16, as in Adler-32


def checksum(tensor: Tensor) -> int:
    """Sum of a tensor's bit patterns, each weighted by its position modulo a prime.

    Exact, cheap, and it depends on the order. Tensors of any shape, dtype and memory layout.
    """
    # As integers of the same width: a sum of floats would depend on the order of the additions, and
    # would not tell 0.0 from -0.0.
    widths = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.detach().contiguous().view(-1).view(widths[tensor.element_size()])
    total = 0
    for start in range(0, len(bits), PART):
        part = bits[start : start + PART].to(torch.int64)
        # + 1: a weight of 0 would hide the element.
        position = torch.arange(start, start + len(part), device=part.device).remainder(PRIME) + 1
        # May wrap at 64 bits, which it does alike on every device and in every order.
        total += int((part * position).sum())
    return total


class WeightDigest:
    """Checksums of named tensors as one short text, whatever order they came in."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[str, tuple[int, ...], int]] = {}
        self.bytes = 0

    def watch(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Pass (name, tensor) pairs on and remember them."""
        for name, tensor in weights:
            self.sums[name] = (str(tensor.dtype), tuple(tensor.shape), checksum(tensor))
            self.bytes += tensor.nbytes
            yield name, tensor

    def text(self) -> str:
        """16 hexadecimal digits."""
        return hashlib.sha256(repr(sorted(self.sums.items())).encode()).hexdigest()[:16]


class DigestWorker:
    """Mixed into vLLM's worker (`worker_extension_cls`); its methods are called by name with
    `collective_rpc`.
    """

    model_runner: GPUModelRunner

    def begin_weight_digest(self) -> None:
        """Take the digest of what the model's loader consumes from now on."""
        model = self.model_runner.get_model()
        # The loader of the class: that of the instance is the wrapper of the transfer before, and
        # wrappers of wrappers would pile up.
        load = type(model).load_weights.__get__(model)
        self._digest = WeightDigest()

        def load_watched(
            weights: Iterable[tuple[str, Tensor]], *args: Any, **kwargs: Any
        ) -> set[str] | None:
            return load(self._digest.watch(weights), *args, **kwargs)

        # vLLM's transfer engines look the loader up on the instance, each time they have weights.
        model.load_weights = load_watched

    def weight_digest(self) -> str:
        """Of all that was loaded since `begin_weight_digest`."""
        return self._digest.text()

    def draw_once(self) -> None:
        """Take vLLM's sampler of other devices on the CPU.

        The CPU's own draws noise for all rows at first, and then once more for those with a seed,
        which all of ours have. The tokens are the same; with 49k tokens to choose from it saves
        15 % of a step.
        """
        sampler = self.model_runner.sampler.topk_topp_sampler
        sampler.forward = sampler.forward_native
