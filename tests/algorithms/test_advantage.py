"""Golden numbers, and loops that the vectorised code must equal."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Literal

import pytest
import torch
from torch import Tensor

from rayward.algorithms.advantage import (
    AdaptiveKL,
    RunningMoments,
    gae,
    group_baseline,
    kl_k1,
    kl_k2,
    kl_k3,
    missing_eos_scores,
    returns_to_go,
    scale_scores,
    shape_rewards,
    whiten,
)


def flat(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def joined(lists: Iterable[list[float]]) -> list[float]:
    return list(chain.from_iterable(lists))


def test_goldens_of_kl_estimators() -> None:
    policy, reference = flat(-1.0, -1.5), flat(-1.5, -1.0)
    torch.testing.assert_close(kl_k1(policy, reference), flat(0.5, -0.5))
    torch.testing.assert_close(kl_k2(policy, reference), flat(0.125, 0.125))
    torch.testing.assert_close(
        kl_k3(policy, reference), flat(0.106530660, 0.148721271), atol=1e-9, rtol=0
    )


def test_expectations_of_kl_estimators() -> None:
    q, p = flat(0.4, 0.4, 0.2), flat(0.5, 0.3, 0.2)
    means = [float((q * estimator(q.log(), p.log())).sum()) for estimator in (kl_k1, kl_k2, kl_k3)]
    assert means == pytest.approx([0.0258154085, 0.0265108039, 0.0258154085], abs=1e-10)


def test_k3_is_finite_and_not_negative_at_extremes() -> None:
    log_ratio = torch.tensor([-1e4, -30.0, -1e-7, 0.0, 1e-7, 30.0, 1e4])
    k3 = kl_k3(log_ratio, torch.zeros(7))
    assert bool(k3.isfinite().all()) and bool((k3 >= 0).all())
    assert kl_k3(torch.tensor([-math.inf]), torch.zeros(1)).isfinite()


def test_scale_scores_in_both_orders() -> None:
    scores = flat(-20, 3, 20)
    assert scale_scores(scores, std=2.0, clip=10.0).tolist() == [-5, 1.5, 5]  # trlx, Starling
    assert scale_scores(scores, std=2.0, clip=9.0, clip_first=False).tolist() == [-9, 1.5, 9]  # APA
    assert scale_scores(scores, clip=5.0).tolist() == [-5, 3, 5]  # DeepSpeed-Chat
    assert scale_scores(scores, std=0.0).tolist() == scores.tolist()
    with pytest.raises(ValueError, match="clip is 0.0"):
        scale_scores(scores, clip=0.0)


def test_missing_eos_replaces_the_score() -> None:
    finished = torch.tensor([True, False, True])
    assert missing_eos_scores(flat(0.5, 7.0, -3.0), finished).tolist() == [0.5, -1.0, -3.0]
    assert missing_eos_scores(flat(0.5, 7.0, -3.0), finished, score=-10).tolist() == [
        0.5,
        -10.0,
        -3.0,
    ]


def test_shape_rewards_puts_each_score_on_the_last_token() -> None:
    rewards = shape_rewards(flat(1.0, -2.0), flat(0.1, 0.2, 0.3, 0.4, 0.5), [2, 3], kl_coef=0.1)
    torch.testing.assert_close(rewards, flat(-0.01, 0.98, -0.03, -0.04, -2.05))
    assert not shape_rewards(
        torch.ones(1), torch.zeros(2, requires_grad=True), [2], 0.1
    ).requires_grad
    with pytest.raises(ValueError, match="sequence 1 has 0 tokens"):
        shape_rewards(flat(1, 1), flat(1, 1), [2, 0], 0.1)
    with pytest.raises(ValueError, match="lengths sum to 3, but the flat tensor holds 2"):
        shape_rewards(flat(1, 1), flat(1, 1), [2, 1], 0.1)
    with pytest.raises(ValueError, match=r"shape \[1\] for 2 sequences"):
        shape_rewards(flat(1), flat(1, 1), [1, 1], 0.1)


def test_goldens_of_running_moments() -> None:
    moments = RunningMoments()
    assert moments.update(torch.tensor([1.0, 2.0, 3.0])) == pytest.approx((2.0, 1.0), abs=1e-12)
    assert moments.update(torch.tensor([4.0, 6.0])) == pytest.approx((3.2, 1.9235384), abs=1e-7)


def test_running_moments_equal_those_of_all_scores() -> None:
    rng = random.Random(2)
    moments, seen = RunningMoments(), list[float]()
    assert (moments.mean, moments.std) == (0.0, 1.0)
    for size in (1, 5, 0, 2, 40):
        batch = [rng.gauss(100, 3) for _ in range(size)]
        seen += batch
        mean, std = moments.update(torch.tensor(batch, dtype=torch.float64))
        assert mean == pytest.approx(statistics.fmean(seen))
        assert std == pytest.approx(statistics.stdev(seen) if len(seen) > 1 else 1.0)
    state = moments.state_dict()
    with pytest.raises(ValueError, match="2 of 3 scores are not finite"):
        moments.update(flat(1, math.nan, math.inf))
    assert moments.state_dict() == state == {"mean": moments.mean, "var": moments.var, "count": 48}


@pytest.mark.parametrize(
    ("kl", "coef"), [(9.0, 0.050256), (3.0, 0.049744), (6.3, 0.050064), (6.0, 0.05)]
)
def test_goldens_of_adaptive_kl(kl: float, coef: float) -> None:
    assert AdaptiveKL(0.05, target=6, horizon=10_000).update(kl, 256) == pytest.approx(
        coef, abs=1e-12
    )


def test_adaptive_kl_accumulates() -> None:
    controller = AdaptiveKL(0.05, target=6, horizon=10_000)
    assert controller.update(12, 256) == pytest.approx(0.05 * 1.00512)
    assert controller.update(12, 256) == pytest.approx(0.05 * 1.00512**2)
    with pytest.raises(ValueError, match="target is 0, horizon 10"):
        AdaptiveKL(0.05, target=0, horizon=10)


def reference_gae(
    rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float
) -> list[float]:
    """A_t as the sum over the future of (gamma lam)^l delta_{t+l}, not as a recursion."""
    next_values = [*values, 0.0][1:]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, next_values, values, strict=True)]
    return [
        sum((gamma * lam) ** i * delta for i, delta in enumerate(deltas[t:]))
        for t in range(len(deltas))
    ]


def test_goldens_of_gae() -> None:
    advantages, returns = gae(flat(-0.01, 0.02, 1), flat(0.1, 0.2, 0.3), [3], gamma=1.0, lam=0.95)
    torch.testing.assert_close(advantages, flat(0.83575, 0.785, 0.7), atol=1e-12, rtol=0)
    torch.testing.assert_close(returns, flat(0.93575, 0.985, 1.0), atol=1e-12, rtol=0)


def test_ragged_gae_equals_one_sequence_at_a_time() -> None:
    rng = random.Random(4)
    for _ in range(25):
        gamma, lam = rng.choice([1.0, 0.9]), rng.choice([0.0, 0.95, 1.0])
        lengths = [rng.randrange(9) for _ in range(rng.randrange(1, 6))]
        rewards = [[rng.gauss(0, 1) for _ in range(length)] for length in lengths]
        values = [[rng.gauss(0, 1) for _ in range(length)] for length in lengths]
        expected = [reference_gae(r, v, gamma, lam) for r, v in zip(rewards, values, strict=True)]
        advantages, returns = gae(
            flat(*joined(rewards)), flat(*joined(values)), lengths, gamma, lam
        )
        assert advantages.tolist() == pytest.approx(joined(expected), abs=1e-12)
        assert returns.tolist() == pytest.approx((advantages + flat(*joined(values))).tolist())


def test_gae_with_lambda_one_is_the_return_to_go() -> None:
    rewards = flat(1, 2, 3, 10, 20)
    _, returns = gae(rewards, torch.randn(5, dtype=torch.float64), [3, 2], gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns, flat(6, 5, 3, 30, 20))


def test_returns_to_go() -> None:
    """REINFORCE++: a score of 1 on the last token and KL on the way; values by hand."""
    rewards = flat(-0.1, -0.2, 1.0, 5.0, 1.0, 2.0)
    torch.testing.assert_close(returns_to_go(rewards, [3, 1, 2]), flat(0.7, 0.8, 1, 5, 3, 2))
    torch.testing.assert_close(
        returns_to_go(rewards, [3, 1, 2], gamma=0.5), flat(0.05, 0.3, 1, 5, 2, 2)
    )
    assert returns_to_go(rewards.bfloat16().requires_grad_(), [6]).dtype == torch.float32
    assert not returns_to_go(rewards.requires_grad_(), [6]).requires_grad
    assert returns_to_go(flat(), []).shape == (0,)
    with pytest.raises(ValueError, match="lengths sum to 5, but the flat tensor holds 6"):
        returns_to_go(rewards, [5])


def test_gae_of_no_tokens_and_of_wrong_lengths() -> None:
    assert [x.shape for x in gae(flat(), flat(), [])] == [(0,), (0,)]
    assert gae(flat(1.0), flat(0.5), [1])[0].tolist() == [0.5]
    with pytest.raises(ValueError, match="lengths sum to 3, but the flat tensor holds 2"):
        gae(flat(1, 2), flat(1, 2), [3])
    with pytest.raises(ValueError, match="rewards_N has 2 entries and values_N has 1"):
        gae(flat(1, 2), flat(1), [2])


def test_goldens_of_whitening() -> None:
    golden = flat(-0.87287156, -0.21821789, 1.09108945)
    torch.testing.assert_close(whiten(flat(1, 2, 4)), golden, atol=1e-8, rtol=0)
    torch.testing.assert_close(
        whiten(flat(1, 2, 4), shift_mean=False), golden + 7 / 3, atol=1e-8, rtol=0
    )


def test_whitening_is_over_all_tokens() -> None:
    x = 5 + 3 * torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whitened = whiten(x)
    assert float(whitened.mean()) == pytest.approx(0, abs=1e-9)
    assert float(whitened.std()) == pytest.approx(1, abs=1e-6)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(whiten(x[order]), whitened[order])
    # Per part it is another algorithm: this is why the whole batch must come at once.
    per_part = torch.cat([whiten(part) for part in x.split(50)])
    assert float((per_part - whitened).abs().max()) > 0.05


def test_whitening_of_degenerate_batches() -> None:
    assert whiten(torch.full((100,), 0.1)).abs().max() < 1e-3
    assert whiten(torch.tensor([3.0])).tolist() == [0.0]
    assert whiten(torch.tensor([3.0]), shift_mean=False).tolist() == [3.0]
    assert whiten(torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize("kind", ["rloo", "grpo", "dr_grpo"])
def test_group_baseline_equals_a_loop(kind: Literal["rloo", "grpo", "dr_grpo"]) -> None:
    rng = random.Random(6)
    sizes = [4, 2, 1, 7]
    groups = [[rng.gauss(3, 2) for _ in range(size)] for size in sizes]
    expected = []
    for group in groups:
        for i, score in enumerate(group):
            others = group[:i] + group[i + 1 :]
            if not others:
                expected.append(0.0)
            elif kind == "rloo":
                expected.append(score - statistics.fmean(others))
            else:
                scale = statistics.stdev(group) + 1e-6 if kind == "grpo" else 1.0
                expected.append((score - statistics.fmean(group)) / scale)
    advantages = group_baseline(flat(*joined(groups)), sizes, kind)
    assert advantages.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["rloo", "grpo", "dr_grpo"])
def test_groups_without_a_contrast_get_exactly_zero(
    kind: Literal["rloo", "grpo", "dr_grpo"],
) -> None:
    # The fp32 mean of seven times 0.1 is not 0.1.
    assert torch.full((7,), 0.1).sum() / 7 != torch.tensor(0.1)
    sizes = [7, 9, 3, 1]
    advantages = group_baseline(
        torch.tensor([0.1] * 7 + [0.3] * 9 + [1e4] * 3 + [2.0]), sizes, kind
    )
    assert advantages.tolist() == [0.0] * 20
    assert group_baseline(torch.zeros(0), [], kind).shape == (0,)
    with pytest.raises(ValueError, match="lengths sum to 3, but the flat tensor holds 2 samples"):
        group_baseline(torch.zeros(2), [3], kind)


def test_group_baseline_refuses_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match="kind is 'rlo'"):
        group_baseline(torch.zeros(2), [2], "rlo")  # type: ignore[arg-type]
