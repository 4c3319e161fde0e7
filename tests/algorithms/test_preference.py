"""Golden numbers, identities between the losses, invariances, and stability of the preference
losses.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rayward.algorithms.preference import (
    break_ties,
    implicit_rewards,
    kendall_tau,
    pair_accuracy,
    pair_split,
    plackett_luce,
    zero_sum_penalty,
)


def flat(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def reference_plackett_luce(scores: Sequence[float]) -> float:
    """The product of choice probabilities, one factor after the other."""
    likelihood = 1.0
    for k in range(len(scores)):
        likelihood *= math.exp(scores[k]) / sum(math.exp(score) for score in scores[k:])
    return -math.log(likelihood)


@pytest.mark.parametrize(
    ("scores", "loss", "pairs"),
    [
        ((2, 1, 0), 0.7208676520, 0.7534513861),
        ((0, 1, 2), 3.7208676520, 3 * 1.5844837954),
        ((0, 0, 0), 1.7917594692, 3 * math.log(2)),
        ((0,) * 7, 8.5251613611, 21 * math.log(2)),
        ((3, 2.5, 1, 0.5, 0, -1, -2), 3.1732898512, 21 * 0.1748600934),
    ],
)
def test_goldens_of_rankings(scores: tuple[float, ...], loss: float, pairs: float) -> None:
    K = len(scores)
    assert float(plackett_luce(flat(*scores), [K])) == pytest.approx(loss / (K - 1), abs=2e-10)
    assert float(pair_split(flat(*scores), [K])) == pytest.approx(
        pairs / (K * (K - 1) / 2), abs=2e-10
    )


def test_normalized_goldens() -> None:
    assert float(plackett_luce(flat(2, 1, 0), [3])) == pytest.approx(0.3604338260, abs=1e-10)
    assert float(pair_split(flat(2, 1, 0), [3])) == pytest.approx(0.2511504620, abs=1e-10)
    assert float(plackett_luce(flat(*[0.0] * 7), [7])) == pytest.approx(1.4208602268, abs=1e-10)
    seven = flat(3, 2.5, 1, 0.5, 0, -1, -2)
    assert float(plackett_luce(seven, [7])) == pytest.approx(0.5288816419, abs=1e-10)
    assert float(pair_split(seven, [7])) == pytest.approx(0.1748600934, abs=1e-10)
    assert float(pair_split(flat(0, 1, 2), [3])) == pytest.approx(1.5844837954, abs=1e-10)


def test_golden_of_the_penalty() -> None:
    assert float(zero_sum_penalty(flat(1, 2, -4, 3, 3), [3, 2])) == pytest.approx(1 + 36)


def test_ragged_rankings_equal_one_at_a_time() -> None:
    rng = random.Random(3)
    for _ in range(30):
        sizes = [rng.randrange(2, 8) for _ in range(rng.randrange(1, 6))]
        rankings = [[rng.uniform(-3, 3) for _ in range(size)] for size in sizes]
        scores = flat(*chain(*rankings))
        expected = [reference_plackett_luce(ranking) for ranking in rankings]
        normalized = sum(loss / (len(r) - 1) for loss, r in zip(expected, rankings, strict=True))
        assert float(plackett_luce(scores, sizes)) == pytest.approx(normalized, rel=1e-9)
        alone = sum(float(pair_split(flat(*ranking), [len(ranking)])) for ranking in rankings)
        assert float(pair_split(scores, sizes)) == pytest.approx(alone, rel=1e-9)


def test_two_answers_are_bradley_terry() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = 4 * torch.randn(2, 100, generator=generator)
    interleaved = torch.stack([chosen, rejected], 1).flatten()
    pairs = -F.logsigmoid(chosen - rejected).sum()
    torch.testing.assert_close(plackett_luce(interleaved, [2] * 100), pairs, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(pair_split(interleaved, [2] * 100), pairs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("loss", [plackett_luce, pair_split])
def test_shift_invariance(loss: Callable[[Tensor, list[int]], Tensor]) -> None:
    scores, sizes = flat(3, 1, 2, -1, 0.5), [3, 2]
    shifted = scores + flat(700, 700, 700, -20, -20)  # Each ranking by a constant of its own.
    assert float(loss(shifted, sizes)) == pytest.approx(float(loss(scores, sizes)), abs=1e-9)


def test_gradients_are_exact() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(9, generator=generator, dtype=torch.float64, requires_grad=True)
    for loss in (plackett_luce, pair_split, zero_sum_penalty):
        assert torch.autograd.gradcheck(lambda s, loss=loss: loss(s, [4, 2, 3]), scores)
    # Of the first choice alone: d/ds = softmax - one-hot.
    pair = torch.tensor([2.0, 1.0], requires_grad=True)
    plackett_luce(pair, [2]).backward()
    torch.testing.assert_close(
        pair.grad, torch.tensor([2.0, 1.0]).softmax(0) - torch.tensor([1.0, 0.0])
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_scores_stay_finite_and_exact(dtype: torch.dtype) -> None:
    best_first = torch.tensor([1e4, 0.0, -1e4, 5.0, -5.0], dtype=dtype, requires_grad=True)
    worst_first = torch.tensor([-1e4, 0.0, 1e4, 5.0, -5.0], dtype=dtype, requires_grad=True)
    for scores, choices, pairs in ((best_first, 0.0, 0.0), (worst_first, 1.5e4, 4e4 / 3)):
        for loss, expected in ((plackett_luce, choices), (pair_split, pairs)):
            value = loss(scores, [3, 2])
            (grad,) = torch.autograd.grad(value, scores)
            assert value.item() == pytest.approx(expected + 4.5e-5, rel=5e-3, abs=1e-6)
            assert bool(grad.isfinite().all())
    # A small difference on a large offset survives: the loss is formed from differences.
    offset = torch.tensor([10000.5, 10000.0])
    assert float(plackett_luce(offset, [2])) == pytest.approx(math.log1p(math.exp(-0.5)), abs=1e-6)


def test_ranking_loss_orders_the_answers() -> None:
    """Gradient descent from the reversed order ends with the right one."""
    scores = torch.tensor([0.0, 1.0, 2.0, 3.0], requires_grad=True)
    ranks = torch.arange(4)
    assert pair_accuracy(scores, [4], ranks) == (0.0, 6)
    for _ in range(100):
        (grad,) = torch.autograd.grad(plackett_luce(scores, [4]), scores)
        scores = (scores - 0.5 * grad).detach().requires_grad_()
    assert pair_accuracy(scores, [4], ranks) == (6.0, 6)


def dpo(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    rewards = [
        implicit_rewards(chosen, ref_chosen, beta),
        implicit_rewards(rejected, ref_rejected, beta),
    ]
    return pair_split(torch.stack(rewards, 1).flatten(), [2] * len(chosen))


def test_dpo() -> None:
    # Log-ratios 0.5 and -0.3, beta 0.1: softplus(-0.08).
    loss = dpo(flat(-1.0), flat(-2.3), flat(-1.5), flat(-2.0), beta=0.1)
    assert float(loss) == pytest.approx(math.log1p(math.exp(-0.08)), abs=1e-12)
    same = flat(-1.0, -7.0)
    assert float(dpo(same, same, same, same, beta=0.5)) == pytest.approx(2 * math.log(2))
    chosen = torch.tensor([-1.0], requires_grad=True)
    dpo(
        chosen, torch.tensor([-1.0]), torch.tensor([-1.0]), torch.tensor([-1.0]), beta=0.4
    ).backward()
    assert chosen.grad is not None and float(chosen.grad) == pytest.approx(-0.4 * 0.5)


def test_empty_batches_give_a_connected_zero() -> None:
    empty = torch.zeros(0, requires_grad=True)
    total = (
        plackett_luce(empty, [])
        + pair_split(empty, [])
        + zero_sum_penalty(empty, [])
        + dpo(empty, empty, empty, empty, 0.1)
    )
    total.backward()
    assert total.item() == 0.0 and empty.grad is not None
    assert pair_accuracy(empty, [], empty) == (0.0, 0)
    assert kendall_tau(empty, [], empty).shape == (0,)


def test_break_ties() -> None:
    ranks = [3, 1, 1, 2, 1]
    orders = [
        tuple(break_ties(ranks, generator))
        for generator in [torch.Generator().manual_seed(0)]
        for _ in range(1200)
    ]
    assert {order[3:] for order in orders} == {(3, 0)}
    counts = Counter(order[:3] for order in orders)
    # 200 expected; 150 is four deviations away.
    assert len(counts) == 6 and min(counts.values()) > 150
    again = torch.Generator().manual_seed(0)
    assert [tuple(break_ties(ranks, again)) for _ in range(1200)] == orders


def reference_pairs(scores: Sequence[float], ranks: Sequence[float]) -> tuple[float, int, float]:
    """(correct, untied pairs, tau-b) by loops."""
    correct, untied, concordance, score_untied = 0.0, 0, 0, 0
    for j in range(len(scores)):
        for k in range(j):
            by_rank = (ranks[k] > ranks[j]) - (ranks[k] < ranks[j])
            by_score = (scores[j] > scores[k]) - (scores[j] < scores[k])
            concordance += by_rank * by_score
            score_untied += by_score != 0
            if by_rank:
                untied += 1
                correct += {1: 1.0, 0: 0.5, -1: 0.0}[by_rank * by_score]
    scale = math.sqrt(untied * score_untied)
    return correct, untied, concordance / scale if scale else 0.0


def test_pair_accuracy_and_kendall_tau_equal_loops() -> None:
    rng = random.Random(5)
    for _ in range(40):
        sizes = [rng.randrange(2, 7) for _ in range(rng.randrange(1, 5))]
        scores = [[float(rng.randrange(4)) for _ in range(size)] for size in sizes]
        ranks = [[float(rng.randrange(4)) for _ in range(size)] for size in sizes]
        expected = [reference_pairs(s, r) for s, r in zip(scores, ranks, strict=True)]
        flat_scores, flat_ranks = torch.tensor([*chain(*scores)]), torch.tensor([*chain(*ranks)])
        correct, total = pair_accuracy(flat_scores, sizes, flat_ranks)
        assert (correct, total) == (sum(e[0] for e in expected), sum(e[1] for e in expected))
        torch.testing.assert_close(
            kendall_tau(flat_scores, sizes, flat_ranks), torch.tensor([e[2] for e in expected])
        )


def test_kendall_tau_is_that_of_scipy_with_ties_too() -> None:
    from scipy.stats import kendalltau

    rng = random.Random(7)
    sizes = [rng.randrange(2, 9) for _ in range(60)]
    scores = [[float(rng.randrange(4)) for _ in range(size)] for size in sizes]
    ranks = [[float(rng.randrange(4)) for _ in range(size)] for size in sizes]
    # Lower ranks are better. NaN is what scipy says where one side is all tied, and 0 what we do.
    expected = [
        kendalltau(s, [-rank for rank in r]).statistic for s, r in zip(scores, ranks, strict=True)
    ]
    found = kendall_tau(torch.tensor([*chain(*scores)]), sizes, torch.tensor([*chain(*ranks)]))
    torch.testing.assert_close(found, torch.tensor(expected).float().nan_to_num(0.0))


def test_nan_scores_are_not_ties() -> None:
    for measure in (pair_accuracy, kendall_tau):
        with pytest.raises(ValueError, match="2 of 3 scores are NaN"):
            measure(torch.tensor([math.nan, math.nan, 1.0]), [3], torch.arange(3))


def test_user_mistakes_name_both_numbers() -> None:
    scores = torch.zeros(5)
    measures = (lambda s, sizes, of=of: of(s, sizes, scores) for of in (pair_accuracy, kendall_tau))
    for loss in (plackett_luce, pair_split, zero_sum_penalty, *measures):
        with pytest.raises(
            ValueError, match="lengths sum to 4, but the flat tensor holds 5 answers"
        ):
            loss(scores, [2, 2])
        with pytest.raises(ValueError, match="sequence 1 has 1 answers, but needs at least 2"):
            loss(scores, [4, 1])


# ---- ties and margins
# --------------------------------------------------------------------------------------


def orders_of(ranks: list[float]) -> list[list[int]]:
    """Every order of the answers that agrees with the ranks."""
    return [
        list(order)
        for order in itertools.permutations(range(len(ranks)))
        if [ranks[i] for i in order] == sorted(ranks)
    ]


@pytest.mark.parametrize("ranks", [[1, 1], [1, 1, 1], [1, 1, 2, 2], [1, 2, 2, 2, 3], [1, 2, 3]])
def test_ties_have_the_mean_likelihood_of_all_orders(ranks: list[float]) -> None:
    scores = torch.randn(
        len(ranks), dtype=torch.float64, generator=torch.Generator().manual_seed(len(ranks))
    )
    orders = orders_of(ranks)
    mean = sum(
        math.exp(-reference_plackett_luce(scores[order].tolist())) for order in orders
    ) / len(orders)
    found = plackett_luce(scores, [len(ranks)], torch.tensor(ranks, dtype=torch.float64))
    assert float(found) == pytest.approx(-math.log(mean) / (len(ranks) - 1), rel=1e-9)
    halves = torch.tensor(ranks + [1.0, 2.0], dtype=torch.float64)
    both = plackett_luce(torch.cat([scores, scores[:2]]), [len(ranks), 2], halves)
    alone = found + plackett_luce(scores[:2], [2])
    assert float(both) == pytest.approx(float(alone), rel=1e-9)


def test_tied_answers_are_pulled_together() -> None:
    for loss in (plackett_luce, pair_split):
        scores = torch.tensor([1.0, -1.0, 0.0], requires_grad=True)
        loss(scores, [3], ranks_N=torch.tensor([1.0, 1.0, 2.0])).backward()
        assert scores.grad[0] > scores.grad[1], (
            "the higher of two tied scores falls, the lower one rises"
        )
        ranks = torch.tensor([1.0, 1.0, 2.0])
        shifted = loss(scores.detach() + 7, [3], ranks_N=ranks)
        assert float(shifted) == pytest.approx(float(loss(scores, [3], ranks_N=ranks)), rel=1e-5)


def test_margins_are_those_of_the_pairs() -> None:
    """Of facts: chosen 1.2, rejected 0.4."""
    for margin, expected in (
        (0.0, 0.3711006659),
        (1 / 3, 0.4867925811),
        (1.0, 0.7981388694),
        (3.0, 2.3050833198),
    ):
        for ranks, scale in (([0.0, 1.0], margin), ([2.0, 4.0], margin / 2)):
            found = pair_split(flat(1.2, 0.4), [2], ranks_N=torch.tensor(ranks), margin=scale)
            assert float(found) == pytest.approx(expected, abs=1e-8)
    ranks = torch.tensor([1.0, 2.0, 4.0])
    three = pair_split(flat(2, 1, 0), [3], ranks, 0.5)
    pairs = ((2, 1, 0.5), (2, 0, 1.5), (1, 0, 1.0))
    by_hand = sum(
        math.log1p(math.exp(-(better - worse - margin))) for better, worse, margin in pairs
    )
    assert float(three) == pytest.approx(by_hand / 3, rel=1e-9)
