"""IPO, KTO, SimPO and ORPO: numbers worked out by hand, gradients, where they end, stability."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rayward.algorithms.objectives import (
    ipo,
    kto,
    kto_reference_point,
    length_average,
    log_odds,
    orpo,
    separation,
    simpo,
)
from rayward.algorithms.preference import implicit_rewards, mean_over_pairs, pair_split


def flat(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def labels(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


# ---- numbers
# ---------------------------------------------------------------------------------------------


def test_ipo() -> None:
    # h = 0.5 + 0.3 = 0.8, 1 / (2 x 0.1) = 5: (0.8 - 5)^2.
    assert float(ipo(flat(0.5, -0.3), [2], tau=0.1)) == pytest.approx(17.64)
    # Three answers, target 1: h of the pairs is 0.5, 2 and 1.5.
    three = (0.5**2 + 1**2 + 0.5**2) / 3
    assert float(ipo(flat(1, 0.5, -1), [3], tau=0.5)) == pytest.approx(three) == 0.5
    # TRL's: per token, 3 and 5 of them: h = 0.6 / 3 - (-0.5) / 5 = 0.3, target 0.5.
    ratios = length_average(flat(-2.4, -7.5), flat(3, 5)) - length_average(flat(-3, -7), flat(3, 5))
    assert float(ipo(ratios, [2], tau=1.0)) == pytest.approx(0.04)


def test_kto() -> None:
    # Good: 1 - sigmoid(0.1 (0.5 - 0.2)); bad: 1 - sigmoid(0.1 (0.2 + 0.3)).
    good, bad = 1 / (1 + math.exp(0.03)), 1 / (1 + math.exp(0.05))
    assert (good, bad) == pytest.approx((0.492500562, 0.487502604), abs=1e-9)
    ratios = flat(0.5, -0.3)
    found = kto(ratios, labels(1, 0), reference_point=0.2, beta=0.1)
    assert float(found) == pytest.approx(good + bad, abs=1e-12)
    weighed = kto(ratios, labels(1, 0), 0.2, 0.1, desirable_weight=1.5, undesirable_weight=0.5)
    assert float(weighed) == pytest.approx(1.5 * good + 0.5 * bad, abs=1e-12)
    # Where the policy is the reference, every answer stands at its reference point.
    assert float(kto(flat(0, 0), labels(1, 0), 0.0, 0.1, 3.0, 1.0)) == pytest.approx(2.0)


def test_ktos_reference_point_is_a_mean_of_the_whole_step_and_never_below_0() -> None:
    assert kto_reference_point(0.4 - 0.1 + 0.3, 3) == pytest.approx(0.2)
    assert kto_reference_point(-0.4 + 0.1, 2) == 0.0
    assert kto_reference_point(0.0, 0) == 0.0
    # Clamped by micro-batch, as TRL does, it would be (0.4 + 0) / 2.
    assert kto_reference_point(0.4 - 0.2, 2) == pytest.approx(0.1)


def test_simpo() -> None:
    # 3 tokens and 4: -2 and -2.5 each; rewards -4 and -5, lead 1: log(1 + exp(0.5 - 1)).
    rewards = 2 * length_average(flat(-6, -10), flat(3, 4))
    assert float(simpo(rewards, [2], gamma=0.5)) == pytest.approx(0.474076984, abs=1e-9)
    assert float(simpo(rewards, [2], gamma=0.0)) == pytest.approx(float(pair_split(rewards, [2])))


def test_orpo() -> None:
    # Odds 0.5 / 0.5 = 1 and 0.2 / 0.8 = 1/4: -log sigmoid(log 4) = -log(4/5).
    logprobs = length_average(3 * flat(math.log(0.5)), flat(3)), flat(math.log(0.2))
    sft, odds = orpo(torch.cat(logprobs), [2])
    assert float(sft) == pytest.approx(math.log(2), abs=1e-12)
    assert float(odds) == pytest.approx(math.log(1.25), abs=1e-12)
    # Two rankings: the SFT part is of the best answer of each.
    sft, odds = orpo(flat(-1, -2, -3, -0.5, -0.7), [3, 2])
    assert float(sft) == pytest.approx(1.5)
    lo = [math.log(math.exp(x) / (1 - math.exp(x))) for x in (-1, -2, -3, -0.5, -0.7)]
    pairs = [math.log1p(math.exp(lo[j] - lo[i])) for i, j in ((0, 1), (0, 2), (1, 2), (3, 4))]
    assert float(odds) == pytest.approx(sum(pairs[:3]) / 3 + pairs[3], abs=1e-12)


def test_separation() -> None:
    # Couples: 3 > 1, 3 > 2, 2 > 1, and 2 = 2, which counts one half.
    assert separation(flat(3, 1, 2, 2), labels(1, 0, 1, 0)) == 3.5 / 4
    assert math.isnan(separation(flat(3, 1), labels(1, 1)))
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 9, (40,), generator=generator).double()
    good = torch.rand(40, generator=generator) < 0.4
    couples = [(g, b) for g in scores[good].tolist() for b in scores[~good].tolist()]
    by_loops = sum((g > b) + 0.5 * (g == b) for g, b in couples) / len(couples)
    assert separation(scores, good) == pytest.approx(by_loops)
    with pytest.raises(ValueError, match="1 of 2 scores are NaN: the policy has diverged"):
        separation(flat(math.nan, 1), labels(1, 0))


# ---- gradients, and where they lead
# -----------------------------------------------------------------


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "ipo": lambda x: ipo(x, [4, 2, 3], tau=0.3),
    "ipo with ties": lambda x: ipo(x, [4, 2, 3], 0.3, flat(1, 2, 2, 3, 1, 1, 1, 2, 3)),
    "kto": lambda x: kto(x, labels(1, 0, 1, 1, 0, 0, 1, 0, 1), 0.3, 0.7, 1.3, 0.8),
    "simpo": lambda x: simpo(x, [4, 2, 3], gamma=0.6),
    "orpo, SFT": lambda x: orpo(x, [4, 2, 3])[0],
    "orpo, odds": lambda x: orpo(x, [4, 2, 3])[1],
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    # Log-probs: below 0, on both sides of where `log_odds` changes its form.
    x = -2 * torch.rand(9, generator=generator, dtype=torch.float64) - 0.01
    assert torch.autograd.gradcheck(LOSSES[name], x.requires_grad_())
    empty = torch.zeros(0, requires_grad=True)
    total = (
        ipo(empty, [], 0.1)
        + kto(empty, labels(), 0.0, 0.1)
        + simpo(empty, [], 0.5)
        + sum(orpo(empty, []))
    )
    total.backward()
    assert total.item() == 0 and empty.grad is not None, "ranks without rows take part"


def test_gradient_of_kto_by_hand() -> None:
    ratios = flat(0.5, -0.3).requires_grad_()
    kto(ratios, labels(1, 0), 0.2, 0.1, 1.5, 0.5).backward()
    slope = [s * (1 - s) for s in (1 / (1 + math.exp(-0.03)), 1 / (1 + math.exp(-0.05)))]
    assert ratios.grad is not None
    assert ratios.grad.tolist() == pytest.approx([-1.5 * 0.1 * slope[0], 0.5 * 0.1 * slope[1]])


def descend(loss: Callable[[Tensor], Tensor], start: Tensor, rate: float, steps: int) -> Tensor:
    x = start.clone().requires_grad_()
    for _ in range(steps):
        (grad,) = torch.autograd.grad(loss(x), x)
        x = (x - rate * grad).detach().requires_grad_()
    return x.detach()


@pytest.mark.parametrize("share", [1.0, 0.8, 0.5])
def test_ipo_ends_where_the_paper_says(share: float) -> None:
    """At a lead of (p - 1/2) / tau, where p is how often the first answer is preferred."""

    def of_both_orders(loss: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: share * loss(x) + (1 - share) * loss(x.flip(0))

    found = descend(of_both_orders(lambda x: ipo(x, [2], 0.25)), flat(0, 0), 0.1, 200)
    assert float(found[0] - found[1]) == pytest.approx((share - 0.5) / 0.25, abs=1e-6)


def test_kto_moves_no_answer_that_is_far_beyond_its_reference_point() -> None:
    ratios = flat(0, 60, -60).requires_grad_()
    kto(ratios, labels(1, 1, 1), 0.0, 0.5).backward()
    assert ratios.grad is not None
    middle, best, worst = ratios.grad.abs().tolist()
    assert best < 1e-9 and worst < 1e-9 < middle == pytest.approx(0.125)


# ---- what changes nothing
# ---------------------------------------------------------------------------


def test_rankings_in_one_call_are_rankings_one_by_one() -> None:
    generator = torch.Generator().manual_seed(2)
    x = -3 * torch.rand(9, generator=generator, dtype=torch.float64) - 0.1
    sizes = [4, 2, 3]
    for loss in (
        lambda x, sizes: ipo(x, sizes, 0.2),
        lambda x, sizes: simpo(x, sizes, 0.4),
        lambda x, sizes: orpo(x, sizes)[0],
        lambda x, sizes: orpo(x, sizes)[1],
    ):
        alone = sum(loss(part, [len(part)]) for part in x.split(sizes))
        assert float(loss(x, sizes)) == pytest.approx(float(alone))
    good = labels(1, 0, 1, 1, 0, 0, 1, 0, 1)
    halves = kto(x[:4], good[:4], 0.3, 0.7) + kto(x[4:], good[4:], 0.3, 0.7)
    assert float(kto(x, good, 0.3, 0.7)) == pytest.approx(float(halves))


def test_the_mean_over_pairs_is_that_of_pair_split() -> None:
    scores, ranks = flat(2, 1, 0, 0.5, -0.5), flat(1, 2, 2, 1, 2)

    def bradley_terry(lead: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-lead)

    for ties in (None, ranks):
        found = mean_over_pairs(scores, [3, 2], bradley_terry, ties)
        assert float(found) == pytest.approx(float(pair_split(scores, [3, 2], ties)))
    with pytest.raises(ValueError, match="sequence 1 has 1 answers, but needs at least 2"):
        ipo(scores, [4, 1], 0.1)


def test_dpo_and_simpo_agree_where_they_are_the_same() -> None:
    """A reference that gives every token the same probability, answers of one length, no margin."""
    logprobs = flat(-3, -5, -4)
    rewards = implicit_rewards(logprobs, flat(-2, -2, -2), 0.5)
    average = 0.5 * 4 * length_average(logprobs, flat(4, 4, 4))
    assert float(pair_split(rewards, [3])) == pytest.approx(float(simpo(average, [3], 0.0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_odds_of_certain_and_of_hopeless_answers(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, -1e-9, -1e-3, -0.6999, -0.7001, -50.0, -1e4], dtype=dtype)
    x.requires_grad_()
    found = log_odds(x)
    found.sum().backward()
    assert bool(found.isfinite().all()) and x.grad is not None and bool(x.grad.isfinite().all())
    assert all(a >= b for a, b in itertools.pairwise(found.tolist()))
    by_hand = [math.log(math.exp(v) / -math.expm1(v)) for v in (-1e-3, -0.6999, -0.7001)]
    assert found[2:5].tolist() == pytest.approx(by_hand, rel=1e-4)
    assert found[5:].tolist() == [-50.0, -1e4], "far below, the odds are the probability"
