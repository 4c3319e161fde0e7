"""Win rates with their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from rayward.pipelines.stages.comparison import by_reward, diversity, win_rate

SCORES = np.random.default_rng(0).normal(size=400)


def test_a_model_against_itself_wins_half_exactly() -> None:
    for size in (1, 16, 400):
        rate = win_rate(SCORES[:size], SCORES[:size], 500, seed=0)
        assert rate == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": size}


def test_a_known_case() -> None:
    rate = win_rate(np.array([3.0, 1.0, 2.0, 5.0]), np.array([1.0, 3.0, 2.0, 4.0]), 2000, seed=0)
    assert (rate["mean"], rate["n"]) == ((1 + 0 + 0.5 + 1) / 4, 4)
    assert 0 <= rate["low"] < rate["mean"] < rate["high"] <= 1
    assert win_rate(SCORES + 1, SCORES, 500, seed=0) == {
        "mean": 1.0,
        "low": 1.0,
        "high": 1.0,
        "n": 400,
    }


def test_swapping_the_models_mirrors_the_rate() -> None:
    other = np.random.default_rng(1).normal(size=400) + 0.3
    one, two = win_rate(SCORES, other, 4000, seed=0), win_rate(other, SCORES, 4000, seed=0)
    assert one["mean"] + two["mean"] == 1
    assert one["low"] + two["high"] == pytest.approx(1, abs=0.005) == two["low"] + one["high"]


@pytest.mark.parametrize("shift", [-1.0, -0.1, 0.0, 0.2, 2.0])
def test_the_interval_holds_the_mean_and_has_the_width_of_theory(shift: float) -> None:
    other = np.random.default_rng(2).normal(size=400) + shift
    rate = win_rate(SCORES, other, 5000, seed=3)
    assert 0 <= rate["low"] <= rate["mean"] <= rate["high"] <= 1
    width = 2 * 1.96 * np.sqrt(rate["mean"] * (1 - rate["mean"]) / 400)
    assert rate["high"] - rate["low"] == pytest.approx(width, rel=0.12)
    assert rate == win_rate(SCORES, other, 5000, seed=3), "the same seed gives the same interval"


def test_only_the_order_of_two_scores_counts() -> None:
    other = np.random.default_rng(4).normal(size=400)
    assert win_rate(np.exp(SCORES), np.exp(other), 500, seed=0) == win_rate(
        SCORES, other, 500, seed=0
    )


def test_answers_of_different_prompts_are_not_compared() -> None:
    with pytest.raises(ValueError, match="3 scores of a but 4 of b"):
        win_rate(SCORES[:3], SCORES[:4], 100, seed=0)


def test_the_reward_as_judge_agrees_where_it_prefers_the_same() -> None:
    rewards = {"new": [2.0, 1.0, None, 0.5, 1.0, 3.0], "sft": [1.0, 2.0, 5.0, 0.5, 1.0, 1.0]}
    answers = {name: [{"reward": value} for value in of] for name, of in rewards.items()}
    # By prompt: both prefer the new one; the old one; (no reward); the reward sees a tie and the
    # judge none; both see one; they contradict each other.
    judged = {
        "new": np.array([9.0, 1.0, 7.0, 8.0, 4.0, 2.0]),
        "sft": np.array([5.0, 4.0, 1.0, 3.0, 4.0, 6.0]),
    }
    found = by_reward(answers, judged, "new", "sft", 500, seed=0)
    assert found is not None
    assert (found["win_rate"]["mean"], found["win_rate"]["n"]) == ((1 + 0 + 0.5 + 0.5 + 1) / 5, 5)
    agrees = found["agrees"]
    assert (agrees["mean"], agrees["n"]) == ((1 + 1 + 0.5 + 1 + 0) / 5, 5)
    assert 0 <= agrees["low"] <= agrees["mean"] <= agrees["high"] <= 1
    nothing = {name: [{"reward": None}] * 6 for name in answers}
    assert by_reward(nothing, judged, "new", "sft", 500, seed=0) is None


def test_diversity_is_that_of_all_answers() -> None:
    # Pairs of words: a b, b a; a b: two of three are different.
    assert diversity(["a b a", "a b"])["distinct_2"] == pytest.approx(2 / 3)
    assert diversity([""]) == {"distinct_2": 0.0, "mtld": 0.0}
    assert diversity(["one two three four"] * 9)["mtld"] < diversity(["a b c d e f g h"])["mtld"]
