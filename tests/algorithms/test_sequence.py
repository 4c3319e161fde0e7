"""Ragged helpers are inverses, and the weighted loss is what it says."""

from __future__ import annotations

import random

import pytest
import torch

from rayward.algorithms.sequence import (
    check_same_length,
    pad_segments,
    segment_sum,
    unpad_segments,
    weighted_nll,
)


def test_weighted_nll_reaches_the_class_weighted_optimum() -> None:
    """C-RLFT without conditioning: weights 1 and 0.1 on contradictory answers give p = 1 / 1.1 =
    .909.
    """
    logits = torch.zeros(1, 2, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(300):
        optimizer.zero_grad()
        weighted_nll(logits.log_softmax(-1)[0], torch.tensor([1.0, 0.1])).backward()
        optimizer.step()
    assert logits.softmax(-1)[0, 0].item() == pytest.approx(1 / 1.1, abs=1e-4)


def test_ragged_helpers_invert_each_other() -> None:
    rng = random.Random(0)
    for _ in range(50):
        lengths = [rng.randrange(6) for _ in range(rng.randrange(1, 7))]
        x = torch.arange(1.0, sum(lengths) + 1.0)
        parts = x.split(lengths)
        padded = pad_segments(x, lengths)
        assert padded.shape == (len(lengths), max(lengths))
        for row, part in zip(padded, parts, strict=True):
            assert row.tolist() == part.tolist() + [0.0] * (max(lengths) - len(part))
        assert torch.equal(unpad_segments(padded, lengths), x)
        assert segment_sum(x, lengths).tolist() == [float(part.sum()) for part in parts]


def test_no_sequences_are_padded_to_a_connected_nothing() -> None:
    empty = torch.zeros(0, requires_grad=True)
    for lengths in ([], [0, 0]):
        padded = pad_segments(empty, lengths)
        assert padded.shape == (len(lengths), 0) and unpad_segments(padded, lengths).shape == (0,)
        unpad_segments(padded, lengths).sum().backward()
    assert empty.grad is not None


def test_padding_is_differentiable() -> None:
    x = torch.arange(5.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: pad_segments(x, [2, 0, 3]).square(), x)
    padded = torch.arange(6.0, dtype=torch.float64).view(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: unpad_segments(x, [3, 1]).square(), padded)


def test_user_mistakes_name_both_numbers() -> None:
    x = torch.zeros(5)
    for helper in (pad_segments, segment_sum):
        with pytest.raises(ValueError, match="lengths sum to 4, but the flat tensor holds 5"):
            helper(x, [1, 3])
    with pytest.raises(ValueError, match="sequence 0 has -1 tokens"):
        pad_segments(x, [-1, 6])
    with pytest.raises(ValueError, match=r"at most 3 .* shape \[1, 5\]"):
        unpad_segments(x[None], [3])
    with pytest.raises(ValueError, match="a has 5 entries and b has 4"):
        check_same_length(a=x, b=x[:4])
    with pytest.raises(ValueError, match=r"b has shape \[5, 1\]"):
        check_same_length(a=x, b=x[:, None])
