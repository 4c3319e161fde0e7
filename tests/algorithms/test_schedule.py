"""Learning-rate schedules: warm-up, shape, ends, and what they integrate to."""

from __future__ import annotations

import math

import pytest

from rayward.algorithms.schedule import learning_rate_factor

SHAPES = ("constant", "linear", "cosine")
CASES = [(total, warmup) for total in (1, 2, 7, 100, 1000) for warmup in (0.0, 0.03, 0.25, 1.0)]


def curve(total: int, warmup: float, shape: str) -> list[float]:
    return [learning_rate_factor(step, total, warmup, shape) for step in range(total)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("total, warmup", CASES)
def test_every_step_learns_and_the_peak_is_reached_once_warm(
    total: int, warmup: float, shape: str
) -> None:
    factors = curve(total, warmup, shape)
    steps = math.ceil(total * warmup)
    assert all(0 < factor <= 1 for factor in factors), "a step with factor 0 would be wasted"
    assert max(factors) == 1 and factors[:steps] == pytest.approx(
        [(i + 1) / steps for i in range(steps)]
    )
    after = factors[max(steps - 1, 0) :]
    assert after == sorted(after, reverse=True), "it never rises after the warm-up"


def test_numbers_by_hand() -> None:
    assert curve(8, 0.5, "linear") == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25])
    assert curve(8, 0.5, "constant") == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    half = math.sqrt(0.5)
    assert curve(4, 0.0, "cosine") == pytest.approx([1, (1 + half) / 2, 0.5, (1 - half) / 2])


@pytest.mark.parametrize("shape, end", [("constant", 1.0), ("linear", 0.0), ("cosine", 0.0)])
def test_the_shape_ends_one_step_after_the_last_and_stays_there(shape: str, end: float) -> None:
    for total, warmup in CASES:
        if math.ceil(total * warmup) < total:
            for step in (total, total + 1, 10 * total):
                assert learning_rate_factor(step, total, warmup, shape) == pytest.approx(
                    end, abs=1e-12
                )


def test_linear_and_cosine_spend_half_of_what_constant_does() -> None:
    constant = sum(curve(10_000, 0.0, "constant"))
    for shape in ("linear", "cosine"):
        assert sum(curve(10_000, 0.0, shape)) / constant == pytest.approx(0.5, abs=1e-3)


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="'square' is not one of constant, linear, cosine"):
        learning_rate_factor(0, 10, 0.0, "square")
