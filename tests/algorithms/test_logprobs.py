"""Chunked log-probs equal plain ones and have their gradients, in little memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rayward.algorithms import logprobs as module
from rayward.algorithms.logprobs import LogitMap, token_logprobs_from_hidden
from rayward.algorithms.policy import ppo_clip

N, V, H = 37, 53, 8


class LargestTensor(TorchDispatchMode):
    """Remembers the elements of the largest tensor (of a dtype) that any operation made, and counts
    softmaxes.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.largest, self.softmaxes, self.dtype = 0, 0, dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves(made) if isinstance(x, torch.Tensor)]
        sizes = [x.numel() for x in tensors if self.dtype in (None, x.dtype)]
        self.largest = max([self.largest, *sizes])
        self.softmaxes += func is torch.ops.aten._log_softmax.default
        return made


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.fixture(params=["kept", "recomputed"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the logits of these small examples are kept for the backward pass or made again in
    it.
    """
    if request.param == "recomputed":
        monkeypatch.setattr(module, "KEPT_BYTES", 0)
    return bool(request.param == "kept")


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_tokens", [1, 10, 37, 1000])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("logit_map", [LogitMap(), LogitMap(scale=0.3), LogitMap(2.0, softcap=1.5)])
def test_logprobs_and_entropy_from_hidden_equal_plain_ones(
    generator: torch.Generator,
    temperature: float,
    chunk_tokens: int,
    with_bias: bool,
    logit_map: LogitMap,
) -> None:
    hidden = torch.randn(N, H, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, H, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = (
        torch.randn(V, generator=generator, dtype=torch.float64, requires_grad=True)
        if with_bias
        else None
    )
    inputs = [hidden, weight] + ([bias] if bias is not None else [])
    targets = torch.randint(V, (N,), generator=generator)
    up_logprob, up_entropy = torch.randn(2, N, generator=generator, dtype=torch.float64)

    logits = hidden @ weight.T + (0 if bias is None else bias)
    if logit_map.softcap is not None:
        logits = logit_map.softcap * torch.tanh(logits / logit_map.softcap)
    all_plain = torch.log_softmax(logits * logit_map.scale / temperature, -1)
    plain, plain_entropy = (
        all_plain[torch.arange(N), targets],
        -(all_plain.exp() * all_plain).sum(-1),
    )
    plain_grads = torch.autograd.grad(
        (plain * up_logprob + plain_entropy * up_entropy).sum(), inputs
    )

    chunked, entropy = token_logprobs_from_hidden(
        hidden,
        weight,
        targets,
        temperature,
        chunk_tokens,
        bias,
        with_entropy=True,
        logit_map=logit_map,
    )
    assert entropy is not None
    grads = torch.autograd.grad((chunked * up_logprob + entropy * up_entropy).sum(), inputs)

    torch.testing.assert_close(chunked, plain, atol=1e-10, rtol=0)
    torch.testing.assert_close(entropy, plain_entropy, atol=1e-10, rtol=0)
    for grad, plain_grad in zip(grads, plain_grads, strict=True):
        torch.testing.assert_close(grad, plain_grad, atol=1e-10, rtol=0)
    assert token_logprobs_from_hidden(hidden, weight, targets)[1] is None


def test_no_tensor_of_all_logits_is_made(generator: torch.Generator, kept: bool) -> None:
    num_tokens, vocabulary, chunk_tokens = 64, 300, 4
    hidden = torch.randn(num_tokens, H, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, H, generator=generator, requires_grad=True)
    targets = torch.randint(vocabulary, (num_tokens,), generator=generator)
    with LargestTensor() as chunked:
        token_logprobs_from_hidden(hidden, weight, targets, 1.0, chunk_tokens, None, True)[
            0
        ].sum().backward()
    with LargestTensor() as whole:
        token_logprobs_from_hidden(hidden, weight, targets, 1.0, num_tokens, None, True)[
            0
        ].sum().backward()
    # The gradient of the head; a chunk's logits have half as many.
    assert chunked.largest == vocabulary * H
    assert whole.largest == num_tokens * vocabulary
    assert chunked.softmaxes == num_tokens // chunk_tokens * (1 if kept else 2)


@pytest.mark.parametrize("num_tokens", [32, 96])
def test_fp32_is_for_one_chunk_and_nothing_of_the_vocabulary_is_kept(
    generator: torch.Generator, num_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probs, loss and backward of a bf16 head beyond KEPT_BYTES: fp32 memory does not grow with
    the tokens.
    """
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    vocabulary, chunk_tokens, kept = 300, 8, []
    hidden = torch.randn(num_tokens, H, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(vocabulary, H, generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(vocabulary, (num_tokens,), generator=generator)

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept.append(x.numel())
        return x

    with LargestTensor(torch.float32) as made:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            logprobs = token_logprobs_from_hidden(hidden, weight, targets, 1.0, chunk_tokens)[0]
            loss, _ = ppo_clip(logprobs, logprobs.detach(), torch.linspace(-1, 1, num_tokens))
        loss.backward()
    # A chunk's logits; the head's gradient.
    assert made.largest == chunk_tokens * vocabulary == vocabulary * H
    # The head itself, and nothing of its width for the tokens.
    assert sorted(kept)[-1] == vocabulary * H
    assert sorted(kept)[-2] <= num_tokens * H
    assert hidden.grad is not None and hidden.grad.abs().sum() > 0


def test_bf16_logits_are_reduced_in_fp32(generator: torch.Generator) -> None:
    """An identity as hidden states makes the head's rows the logits, exactly."""
    logits = (8 * torch.randn(N, V, generator=generator)).bfloat16()
    head = logits.T.contiguous().requires_grad_()
    targets = torch.randint(V, (N,), generator=generator)
    logprobs, _ = token_logprobs_from_hidden(torch.eye(N).bfloat16(), head, targets, chunk_tokens=5)
    exact = torch.log_softmax(logits.double(), -1)[torch.arange(N), targets]
    assert logprobs.dtype == torch.float32
    assert (logprobs - exact).abs().max() < 1e-5
    logprobs.sum().backward()
    assert head.grad is not None and head.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("num_tokens", [64, 2000])
def test_the_gradient_of_a_bf16_head_adds_up_in_fp32(
    generator: torch.Generator, num_tokens: int
) -> None:
    """Against fp64 on the same bf16 numbers: as near as one rounding to bf16, however many chunks
    there are.
    """
    hidden = torch.randn(num_tokens, 16, generator=generator).bfloat16()
    weight = (torch.randn(V, 16, generator=generator)).bfloat16()
    targets = torch.randint(V, (num_tokens,), generator=generator)

    def gradient(dtype: torch.dtype, chunk_tokens: int) -> torch.Tensor:
        head = weight.to(dtype, copy=True).requires_grad_()
        logprobs, _ = token_logprobs_from_hidden(
            hidden.to(dtype), head, targets, chunk_tokens=chunk_tokens
        )
        logprobs.sum().backward()
        assert head.grad is not None
        return head.grad.double()

    exact = gradient(torch.float64, num_tokens)
    errors = [
        float((gradient(torch.bfloat16, size) - exact).norm() / exact.norm())
        for size in (num_tokens, 8)
    ]
    assert errors[1] < 1.2 * errors[0] < 6e-3


def test_extreme_and_padded_logits_stay_finite() -> None:
    head = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]]).T
    found, _ = token_logprobs_from_hidden(torch.eye(2), head, torch.tensor([0, 1]))
    torch.testing.assert_close(found, torch.tensor([0.0, -1.0986123]))
    # The last entry of the vocabulary is padding, masked to -inf.
    weight = torch.zeros(3, 1)
    hidden = torch.ones(2, 1, requires_grad=True)
    bias = torch.tensor([0.0, 0.0, -torch.inf])
    logprobs, entropy = token_logprobs_from_hidden(
        hidden, weight, torch.tensor([0, 1]), bias=bias, with_entropy=True
    )
    assert entropy is not None
    torch.testing.assert_close(entropy, torch.full((2,), 2.0).log())
    (logprobs.sum() + entropy.sum()).backward()
    assert hidden.grad is not None and bool(hidden.grad.isfinite().all())


def test_zero_tokens_give_a_connected_zero() -> None:
    hidden, weight = torch.zeros(0, H, requires_grad=True), torch.zeros(V, H, requires_grad=True)
    logprobs, entropy = token_logprobs_from_hidden(
        hidden, weight, torch.zeros(0, dtype=torch.int64), with_entropy=True
    )
    assert entropy is not None and logprobs.shape == entropy.shape == (0,)
    (logprobs.sum() + entropy.sum()).backward()
    assert weight.grad is not None and bool((weight.grad == 0).all())


def test_frozen_parts_get_no_gradient(generator: torch.Generator, kept: bool) -> None:
    hidden, weight = torch.randn(N, H, generator=generator), torch.randn(V, H, generator=generator)
    targets = torch.randint(V, (N,), generator=generator)
    both = []
    for trained in ("hidden", "weight"):
        inputs = {"hidden": hidden.clone(), "weight": weight.clone()}
        inputs[trained].requires_grad_()
        token_logprobs_from_hidden(inputs["hidden"], inputs["weight"], targets, 0.7, 5)[
            0
        ].sum().backward()
        assert [name for name, x in inputs.items() if x.grad is not None] == [trained]
        both.append(inputs[trained].grad)
    hidden.requires_grad_(), weight.requires_grad_()
    token_logprobs_from_hidden(hidden, weight, targets, 0.7, 5)[0].sum().backward()
    torch.testing.assert_close(both, [hidden.grad, weight.grad])


def test_logprob_arguments_are_checked() -> None:
    hidden, weight, targets = (
        torch.zeros(3, H),
        torch.zeros(V, H),
        torch.zeros(3, dtype=torch.int64),
    )
    with pytest.raises(ValueError, match=r"\[3, 8\] and targets of shape \[2\]"):
        token_logprobs_from_hidden(hidden, weight, targets[:2])
    with pytest.raises(ValueError, match="temperature is 0.0"):
        token_logprobs_from_hidden(hidden, weight, targets, temperature=0.0)
    with pytest.raises(ValueError, match="chunk_tokens is 0"):
        token_logprobs_from_hidden(hidden, weight, targets, chunk_tokens=0)
    with pytest.raises(ValueError, match=r"size 8.*\[53, 9\]"):
        token_logprobs_from_hidden(hidden, torch.zeros(V, H + 1), targets)
