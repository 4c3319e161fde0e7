"""Golden numbers, gradients, and independence of the cut into micro-batches."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rayward.algorithms.policy import (
    apa,
    awr,
    kl_loss,
    mismatch,
    ppo_clip,
    truncated_importance_weights,
    value_loss,
)


def flat(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


LOGP, OLD, ADV = flat(-1, -2, -0.5), flat(-1.2, -1.5, -0.5), flat(1, -1, 0.5)
VALUES, OLD_VALUES, RETURNS = flat(0.5, 0.1, 0.9), flat(0.1, 0.2, 0.3), flat(0.4, 0.3, 1.0)
ANCHOR = flat(-1.1, -1.6, -0.7)


def per_token(
    loss: Callable[..., tuple[Tensor, dict[str, Tensor]]], *tensors: Tensor, **options: float
) -> list[float]:
    """The loss of each token by itself."""
    parts = zip(*(tensor.split(1) for tensor in tensors), strict=True)
    return [float(loss(*part, **options)[0]) for part in parts]


def test_goldens_of_ppo() -> None:
    assert per_token(ppo_clip, LOGP, OLD, ADV, clip=0.2) == pytest.approx([-1.2, 0.8, -0.5])
    loss, diagnostics = ppo_clip(LOGP, OLD, ADV, clip=0.2)
    assert float(loss) / 3 == pytest.approx(-0.3)
    assert float(diagnostics["clipfrac_sum"]) == 2  # exp(.2) > 1.2 and exp(-.5) < .8
    assert float(diagnostics["ratio_max"]) == pytest.approx(math.exp(0.2))
    assert float(diagnostics["inverse_ratio_max"]) == pytest.approx(math.exp(0.5))
    k3 = sum(math.exp(x) - 1 - x for x in (0.2, -0.5, 0.0))
    assert float(diagnostics["approx_kl_sum"]) == pytest.approx(k3)


def test_goldens_of_the_value_loss() -> None:
    assert per_token(value_loss, VALUES, OLD_VALUES, RETURNS, clip=0.2) == pytest.approx(
        [0.005, 0.02, 0.125]
    )
    loss, diagnostics = value_loss(VALUES, OLD_VALUES, RETURNS, clip=0.2)
    assert float(loss) / 3 == pytest.approx(0.05)
    assert float(diagnostics["value_clipfrac_sum"]) == 1
    plain, diagnostics = value_loss(VALUES, OLD_VALUES, RETURNS, clip=None)
    assert float(plain) == pytest.approx((0.01 + 0.04 + 0.01) / 2)
    assert float(diagnostics["value_clipfrac_sum"]) == 0


def test_goldens_of_apa() -> None:
    assert per_token(apa, LOGP, ANCHOR, ADV, lam=0.1) == pytest.approx([98.01, 92.16, 23.04])
    assert float(apa(LOGP, ANCHOR, ADV, lam=0.1)[0]) / 3 == pytest.approx(71.07)
    assert per_token(apa, LOGP, ANCHOR, ADV, lam=1.0) == pytest.approx([0.81, 0.36, 0.09])
    assert float(apa(LOGP, ANCHOR, ADV, lam=1.0)[0]) / 3 == pytest.approx(0.42)


@pytest.mark.parametrize(("coef", "mean"), [(1.0, 1.4261337821), (0.5, 1.1679317662)])
def test_goldens_of_awr(coef: float, mean: float) -> None:
    assert float(awr(LOGP, ADV, coef)[0]) / 3 == pytest.approx(mean, abs=1e-10)


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> list[float]:
    at = at.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(at), at)
    values: list[float] = grad.tolist()
    return values


def test_gradient_of_apa_is_twice_the_error() -> None:
    error = LOGP - ADV / 0.1 - ANCHOR
    assert gradient(lambda x: apa(x, ANCHOR, ADV, 0.1)[0], LOGP) == pytest.approx(
        (2 * error).tolist()
    )


def test_gradients_of_the_other_losses() -> None:
    # On the policy's own samples (ratio 1) PPO is the plain policy gradient, for every kind of
    # clipping.
    for clip_high, dual_clip in ((None, None), (None, 3.0), (0.3, 3.0)):
        clipping = functools.partial(ppo_clip, clip=0.1, clip_high=clip_high, dual_clip=dual_clip)
        on_policy = gradient(lambda x, clipping=clipping: clipping(x, OLD, ADV)[0], OLD)
        assert on_policy == pytest.approx((-ADV).tolist())
    # Tokens 0 and 1 are outside of the clip on the side that stops them.
    assert gradient(lambda x: ppo_clip(x, OLD, ADV)[0], LOGP) == pytest.approx([0, 0, -0.5])
    assert gradient(lambda x: awr(x, ADV, 1.0)[0], LOGP) == pytest.approx((-ADV.exp()).tolist())
    assert gradient(lambda x: value_loss(x, OLD_VALUES, RETURNS, None)[0], VALUES) == pytest.approx(
        (VALUES - RETURNS).tolist()
    )
    # Token 2: the clipped term is larger, and constant in the value.
    assert gradient(lambda x: value_loss(x, OLD_VALUES, RETURNS)[0], VALUES)[2] == 0.0


def test_only_the_current_policy_gets_a_gradient() -> None:
    constants = [
        tensor.clone().requires_grad_() for tensor in (OLD, ADV, ANCHOR, OLD_VALUES, RETURNS)
    ]
    old, adv, anchor, old_values, returns = constants
    current, values = LOGP.clone().requires_grad_(), VALUES.clone().requires_grad_()
    total = (
        ppo_clip(current, old, adv, weights_N=anchor.exp())[0] + apa(current, anchor, adv, 0.1)[0]
    )
    total = total + awr(current, adv, 1.0)[0] + value_loss(values, old_values, returns)[0]
    total.backward()
    assert current.grad is not None and values.grad is not None
    assert [tensor.grad for tensor in constants] == [None] * 5


def test_asymmetric_clip() -> None:
    new, old, up, down = flat(math.log(1.5)), flat(0), flat(1), flat(-1)
    assert float(ppo_clip(new, old, up, clip=0.2, clip_high=0.28)[0]) == pytest.approx(-1.28)
    assert float(ppo_clip(-new, old, down, clip=0.2, clip_high=0.28)[0]) == pytest.approx(0.8)


def test_dual_clip_bounds_negative_advantages_only() -> None:
    new, old = flat(math.log(50), math.log(50)), flat(0, 0)
    loss = per_token(ppo_clip, new, old, flat(-2, 2), clip=0.2, dual_clip=3.0)
    assert loss == pytest.approx([6.0, -2.4])
    assert per_token(ppo_clip, new, old, flat(-2, 2), clip=0.2) == pytest.approx([100.0, -2.4])


@pytest.mark.parametrize("log_ratio", [1e4, -1e4, math.inf, -math.inf])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_ppo_stays_finite_at_extreme_ratios(log_ratio: float, advantage: float) -> None:
    logprobs = torch.tensor([0.0], requires_grad=True)
    loss, diagnostics = ppo_clip(logprobs, torch.tensor([-log_ratio]), torch.tensor([advantage]))
    (grad,) = torch.autograd.grad(loss, logprobs)
    assert all(bool(x.isfinite().all()) for x in (loss, grad, *diagnostics.values()))


def test_awr_bounds_its_weights() -> None:
    loss, diagnostics = awr(torch.tensor([-1.0, -1.0]), torch.tensor([1e4, -1e4]), coef=1.0)
    assert float(loss) == pytest.approx(20.0, rel=1e-6)
    assert float(diagnostics["capped_sum"]) == 1
    assert float(diagnostics["weight_sum"]) == pytest.approx(20.0, rel=1e-6)
    assert float(
        awr(torch.tensor([-1.0]), torch.tensor([9.0]), 1.0, max_weight=5.0)[0]
    ) == pytest.approx(5.0)


def test_truncated_importance_weights() -> None:
    trainer = torch.tensor([-1.0, -1.0, -1.0, 0.0, -1.0, -math.inf])
    rollout = torch.tensor([-1.5, -0.5, -9.0, -1e4, -math.inf, -math.inf])
    weights = truncated_importance_weights(trainer, rollout, cap=2.0)
    assert weights.tolist() == pytest.approx([math.exp(0.5), math.exp(-0.5), 2, 2, 0, 0])
    assert not truncated_importance_weights(trainer.requires_grad_(), rollout).requires_grad


def test_weights_multiply_the_term_of_each_token() -> None:
    for loss in (
        functools.partial(ppo_clip, LOGP, OLD, ADV),
        functools.partial(apa, LOGP, ANCHOR, ADV, lam=0.5),
        functools.partial(awr, LOGP, ADV, coef=0.5),
    ):
        tokens = [loss(weights_N=weights)[0] for weights in torch.eye(3, dtype=torch.float64)]
        torch.testing.assert_close(torch.stack(tokens).sum(), loss()[0])
        torch.testing.assert_close(
            loss(weights_N=flat(0.0, 0.5, 2.0))[0], 0.5 * tokens[1] + 2 * tokens[2]
        )
        weights = flat(0.0, 0.5, 2.0).requires_grad_()
        # A constant, although it asks for a gradient.
        assert not loss(weights_N=weights)[0].requires_grad
        with pytest.raises(ValueError, match="logprobs_N has 3 entries and weights_N has 2"):
            loss(weights_N=flat(1, 1))


def test_goldens_of_the_kl_loss() -> None:
    policy, reference = flat(-1.0, -1.5, -2.0), flat(-1.5, -1.0, -2.0).requires_grad_()
    loss, diagnostics = kl_loss(policy.requires_grad_(), reference)
    loss.backward()
    assert loss.item() == float(diagnostics["kl_loss_sum"]) == pytest.approx(0.25)
    assert policy.grad is not None and policy.grad.tolist() == pytest.approx([0.5, -0.5, 0.0])
    assert reference.grad is None


def test_goldens_of_mismatch() -> None:
    # k3 of KL(rollout || trainer) for rollout - trainer of 0.5 and -0.5: .106530660 and .148721271.
    report = mismatch(flat(-1.5, -1.0, -3.0, -4.0), flat(-1.0, -1.5, -3.0, -4.0))
    assert report["mismatch_mean"] == pytest.approx(0.25) and report[
        "mismatch_max"
    ] == pytest.approx(0.5)
    assert report["mismatch_k3"] == pytest.approx((0.106530660 + 0.148721271) / 4, abs=1e-9)
    assert report["mismatch_factor"] == pytest.approx((2 * math.exp(0.5) + 2) / 4)
    one_sided = mismatch(flat(-1.5), flat(-1.0))["mismatch_k3"]
    # The other order would give .148721271.
    assert one_sided == pytest.approx(0.106530660, abs=1e-9)
    assert mismatch(flat(-1.0), flat(-1.0)) == dict.fromkeys(report, 0.0) | {"mismatch_factor": 1.0}
    small = mismatch(torch.tensor([-1.0]), torch.tensor([-1.0 + 2**-20]))["mismatch_k3"]
    assert small == pytest.approx(2**-41, rel=1e-3)
    assert mismatch(flat(-1.0), flat(-math.inf))["mismatch_max"] == math.inf
    with pytest.raises(ValueError, match="0 tokens"):
        mismatch(flat(), flat())


def test_mismatch_k3_is_the_kl_when_the_rollout_policy_samples() -> None:
    """10 tokens in the proportions of the rollout policy: the mean of k3 is KL(rollout || trainer)
    exactly.
    """
    rollout, trainer, tokens = (
        flat(0.4, 0.4, 0.2),
        flat(0.5, 0.3, 0.2),
        torch.tensor([0] * 4 + [1] * 4 + [2] * 2),
    )
    report = mismatch(trainer.log()[tokens], rollout.log()[tokens])
    assert report["mismatch_k3"] == pytest.approx(0.0258154085, abs=1e-10)


def test_diagnostics_of_apa() -> None:
    # Targets: -1.1 + 10 > 0; -1.6 - 10 < 0; -0.7 + 5 > 0. Moves: +0.1 of 10, -0.4 of -10, +0.2 of
    # 5.
    _, diagnostics = apa(LOGP, ANCHOR, ADV, lam=0.1)
    assert float(diagnostics["unreachable_sum"]) == 2
    assert float(diagnostics["target_max"]) == pytest.approx(8.9)
    assert float(diagnostics["progress_sum"]) == pytest.approx(0.01 + 0.04 + 0.04)
    still = apa(ANCHOR, ANCHOR, flat(0, 0, 0), lam=0.1)
    assert float(still[0]) == 0 and float(still[1]["progress_sum"]) == 0


def test_sums_do_not_depend_on_micro_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    losses: list[Callable[[Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]] = [
        lambda x, y, z: ppo_clip(x, y, z, dual_clip=3.0, weights_N=y.exp()),
        lambda x, y, z: value_loss(x, y, z),
        lambda x, y, z: apa(x, y, z, lam=0.3, weights_N=y.exp()),
        lambda x, y, z: awr(x, z, coef=0.7, weights_N=y.exp()),
        lambda x, y, z: kl_loss(x, y),
    ]
    for loss in losses:
        whole, whole_diagnostics = loss(a, b, c)
        parts = [
            loss(*part) for part in zip(*(x.split([1, 0, 13, 26]) for x in (a, b, c)), strict=True)
        ]
        torch.testing.assert_close(torch.stack([part[0] for part in parts]).sum(), whole)
        for name, value in whole_diagnostics.items():
            values = torch.stack([part[1][name].double() for part in parts])
            assert name.endswith(("_sum", "_max"))
            joined = values.sum() if name.endswith("_sum") else values.max()
            torch.testing.assert_close(joined, value.double())


def test_zero_tokens_give_a_connected_zero() -> None:
    empty = torch.zeros(0, requires_grad=True)
    total = ppo_clip(empty, empty, empty, dual_clip=3.0)[0] + value_loss(empty, empty, empty)[0]
    total = total + apa(empty, empty, empty, lam=1.0)[0] + awr(empty, empty, coef=1.0)[0]
    total = total + kl_loss(empty, empty)[0]
    total.backward()
    assert total.item() == 0.0 and empty.grad is not None


def test_user_mistakes_name_both_numbers() -> None:
    x, short = torch.zeros(3), torch.zeros(2)
    with pytest.raises(ValueError, match="logprobs_N has 3 entries and old_logprobs_N has 2"):
        ppo_clip(x, short, x)
    with pytest.raises(ValueError, match="logprobs_N has 3 entries and ref_logprobs_N has 2"):
        kl_loss(x, short)
    with pytest.raises(
        ValueError, match="trainer_logprobs_N has 3 entries and rollout_logprobs_N has 2"
    ):
        mismatch(x, short)
    with pytest.raises(ValueError, match=r"advantages_N has shape \[3, 1\]"):
        apa(x, x, x[:, None], lam=1.0)
    for clip, clip_high, dual_clip in (
        (1.0, None, None),
        (0.0, None, None),
        (0.2, 0.0, None),
        (0.2, None, 1.0),
    ):
        with pytest.raises(ValueError, match="clip"):
            ppo_clip(x, x, x, clip, clip_high, dual_clip)
    with pytest.raises(ValueError, match="clip is 0.0"):
        value_loss(x, x, x, clip=0.0)
    with pytest.raises(ValueError, match="lam is 0.0"):
        apa(x, x, x, lam=0.0)
    with pytest.raises(ValueError, match="max_weight is 0.0"):
        awr(x, x, coef=1.0, max_weight=0.0)
    with pytest.raises(ValueError, match="cap is -1.0"):
        truncated_importance_weights(x, x, cap=-1.0)
