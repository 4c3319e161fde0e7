"""GSPO and CISPO: numbers worked out from the papers' formulas in plain floats, gradients, and
independence of the cut into micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rayward.algorithms.policy import cispo, gspo, ppo_clip


def flat(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Three answers of 2, 3 and 1 tokens. Means of their log-ratios: 0.0005, -0.0002, -0.001.
LENGTHS = [2, 3, 1]
LOG_RATIOS = [0.0012, -0.0002, -0.0006, 0.0003, -0.0003, -0.001]
OLD = flat(-1.0, -0.5, -2.0, -1.5, -0.25, -3.0)
NEW = OLD + flat(*LOG_RATIOS)
ADV = flat(2, 2, -0.5, -0.5, -0.5, -1)


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> list[float]:
    at = at.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(at), at)
    values: list[float] = grad.tolist()
    return values


def test_goldens_of_gspo() -> None:
    """min(s A, clip(s, 0.9997, 1.0004) A) of each answer, s = (pi / pi_old) ^ (1 / length)."""
    terms = [
        -2 * 1.0004,  # exp(0.0005) = 1.000500125 would gain by going on: clipped
        0.5 * math.exp(-0.0002),  # 0.99980002 is inside of the bounds
        1 * 0.9997,  # exp(-0.001) = 0.9990005 would gain by going down: clipped
    ]
    loss, diagnostics = gspo(NEW, OLD, ADV, LENGTHS)
    assert float(loss) == pytest.approx(sum(terms), abs=1e-9)
    assert float(diagnostics["clipfrac_sum"]) == 3, "the tokens of the first and the last answer"
    assert float(diagnostics["ratio_max"]) == pytest.approx(math.exp(0.0005), abs=1e-12)
    assert float(diagnostics["inverse_ratio_max"]) == pytest.approx(math.exp(0.001), abs=1e-12)
    k3 = sum(math.exp(x) - 1 - x for x in LOG_RATIOS)
    assert float(diagnostics["approx_kl_sum"]) == pytest.approx(k3, abs=1e-12)
    # With wide bounds none is clipped; with the others' sign none of the clipped ones is.
    wide = gspo(NEW, OLD, ADV, LENGTHS, clip=0.2, clip_high=0.2)[0]
    plain = [-2 * math.exp(0.0005), 0.5 * math.exp(-0.0002), math.exp(-0.001)]
    assert float(wide) == pytest.approx(sum(plain), abs=1e-12)
    turned = gspo(NEW, OLD, -ADV, LENGTHS)[0]
    assert float(turned) == pytest.approx(-sum(plain), abs=1e-12)


def test_an_answer_of_one_token_is_ppos() -> None:
    one = [1] * len(OLD)
    loss, diagnostics = gspo(NEW, OLD, ADV, one, clip=1e-4, clip_high=2e-4)
    ppo, expected = ppo_clip(NEW, OLD, ADV, clip=1e-4, clip_high=2e-4)
    torch.testing.assert_close(loss, ppo)
    assert diagnostics.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(diagnostics[name], value)


def test_gradient_of_gspo_is_spread_evenly_over_an_answer() -> None:
    """-A s / length at each token, 0 in answers that are clipped."""
    found = gradient(lambda x: gspo(x, OLD, ADV, LENGTHS)[0], NEW)
    inside = 0.5 * math.exp(-0.0002) / 3
    assert found == pytest.approx([0, 0, inside, inside, inside, 0], abs=1e-12)
    on_policy = gradient(lambda x: gspo(x, OLD, ADV, LENGTHS)[0], OLD)
    assert on_policy == pytest.approx([-1, -1, 0.5 / 3, 0.5 / 3, 0.5 / 3, 1], abs=1e-12)


def test_goldens_of_cispo() -> None:
    """-min(r, 1 + clip_high) A log pi at each token; r = e, 1/e, e^2, 1 with a bound of 3."""
    old = flat(-2, -1, -4, -1)
    new = flat(-1, -2, -2, -1)
    adv = flat(1, -1, 0.5, 2)
    loss, diagnostics = cispo(new, old, adv, clip_high=2.0)
    terms = [math.e * 1, -math.exp(-1) * 2, 3 * 0.5 * 2, 2 * 1]
    assert float(loss) == pytest.approx(sum(terms), abs=1e-9)
    assert float(diagnostics["clipfrac_sum"]) == 1
    assert float(diagnostics["ratio_max"]) == pytest.approx(math.exp(2))
    assert float(diagnostics["inverse_ratio_max"]) == pytest.approx(math.e)
    # The token beyond the bound keeps a gradient, that of its log-prob; PPO's would be 0.
    found = gradient(lambda x: cispo(x, old, adv, clip_high=2.0)[0], new)
    assert found == pytest.approx([-math.e, math.exp(-1), -1.5, -2])
    assert gradient(lambda x: ppo_clip(x, old, adv)[0], new)[2] == 0


def test_on_policy_cispo_is_the_plain_policy_gradient() -> None:
    assert gradient(lambda x: cispo(x, OLD, ADV, 4.0)[0], OLD) == pytest.approx((-ADV).tolist())


@pytest.mark.parametrize(
    "loss",
    [
        lambda new, old, adv, lengths, weights: gspo(
            new, old, adv, lengths, 0.1, 0.2, weights_N=weights
        ),
        lambda new, old, adv, lengths, weights: cispo(new, old, adv, 0.3, weights_N=weights),
    ],
    ids=["gspo", "cispo"],
)
class TestBoth:
    """What holds for every loss."""

    def test_sums_do_not_depend_on_micro_batches(self, loss: Callable) -> None:
        generator = torch.Generator().manual_seed(0)
        new, old, adv = torch.randn(3, 40, generator=generator, dtype=torch.float64)
        lengths, weights = [5, 1, 9, 3, 12, 10], old.exp()
        whole, whole_diagnostics = loss(new, old, adv, lengths, weights)
        # Whole answers in each micro-batch, and one of none.
        cuts = [lengths[:2], [], lengths[2:5], lengths[5:]]
        tensors = (new, old, adv, weights)
        pieces = zip(*(x.split([sum(cut) for cut in cuts]) for x in tensors), strict=True)
        parts = [loss(n, o, a, cut, w) for (n, o, a, w), cut in zip(pieces, cuts, strict=True)]
        torch.testing.assert_close(torch.stack([part[0] for part in parts]).sum(), whole)
        for name, value in whole_diagnostics.items():
            values = torch.stack([part[1][name].double() for part in parts])
            joined = values.sum() if name.endswith("_sum") else values.max()
            torch.testing.assert_close(joined, value.double())

    def test_zero_tokens_give_a_connected_zero(self, loss: Callable) -> None:
        empty = torch.zeros(0, requires_grad=True)
        total, diagnostics = loss(empty, empty, empty, [], None)
        total.backward()
        assert total.item() == 0 and empty.grad is not None
        assert all(bool(value.isfinite()) for value in diagnostics.values())

    def test_only_the_current_policy_gets_a_gradient(self, loss: Callable) -> None:
        constants = [x.clone().requires_grad_() for x in (OLD, ADV, OLD.exp())]
        current, (old, adv, weights) = NEW.clone().requires_grad_(), constants
        total, diagnostics = loss(current, old, adv, LENGTHS, weights)
        total.backward()
        assert current.grad is not None and [x.grad for x in constants] == [None] * 3
        assert not any(value.requires_grad for value in diagnostics.values())

    def test_weights_multiply_the_term_of_each_token(self, loss: Callable) -> None:
        """Of an answer with one ratio: its term by the mean of its tokens' weights."""
        tokens = [
            loss(NEW, OLD, ADV, LENGTHS, weights)[0]
            for weights in torch.eye(len(OLD), dtype=torch.float64)
        ]
        whole = loss(NEW, OLD, ADV, LENGTHS, None)[0]
        torch.testing.assert_close(torch.stack(tokens).sum(), whole)
        found = loss(NEW, OLD, ADV, LENGTHS, flat(0, 0.5, 2, 1, 0, 0))[0]
        torch.testing.assert_close(found, 0.5 * tokens[1] + 2 * tokens[2] + tokens[3])
        with pytest.raises(ValueError, match="logprobs_N has 6 entries and weights_N has 2"):
            loss(NEW, OLD, ADV, LENGTHS, flat(1, 1))

    @pytest.mark.parametrize("log_ratio", [1e4, -1e4])
    @pytest.mark.parametrize("advantage", [1.0, -1.0])
    def test_extreme_ratios_stay_finite(
        self, loss: Callable, log_ratio: float, advantage: float
    ) -> None:
        current = torch.tensor([0.0, 0.0], requires_grad=True)
        old = torch.tensor([-log_ratio, 0.0])
        total, diagnostics = loss(current, old, torch.full((2,), advantage), [2], None)
        total.backward()
        assert current.grad is not None
        assert all(bool(x.isfinite().all()) for x in (total, current.grad, *diagnostics.values()))


def test_mistakes_name_both_numbers() -> None:
    x, short = torch.zeros(3), torch.zeros(2)
    for loss in (lambda *flat: gspo(*flat, [2, 1]), lambda *flat: cispo(*flat, 4.0)):
        with pytest.raises(ValueError, match="logprobs_N has 3 entries and old_logprobs_N has 2"):
            loss(x, short, x)
    with pytest.raises(ValueError, match="lengths sum to 2, but the flat tensor holds 3 tokens"):
        gspo(x, x, x, [1, 1])
    with pytest.raises(ValueError, match="sequence 1 has 0 tokens, but needs at least 1"):
        gspo(x, x, x, [3, 0])
    with pytest.raises(ValueError, match="clip is 0.0"):
        gspo(x, x, x, [3], clip=0.0)
    with pytest.raises(ValueError, match="clip_high is 0.0"):
        cispo(x, x, x, clip_high=0.0)
