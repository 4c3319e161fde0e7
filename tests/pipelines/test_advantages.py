"""What each algorithm makes of the same scores: rewards, baselines and figures, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest

from rayward.configs.schema import Config
from rayward.configs.sections.algorithms import RECIPES, EstimatorName
from rayward.data.ragged import Ragged
from rayward.data.rollouts import Rollouts
from rayward.pipelines.rl.advantages import (
    ESTIMATORS,
    RewardShaper,
    check_mismatch,
    estimate_advantages,
    gap,
    trains_policy,
)

SCORES = np.array([1.0, 3.0, 2.0, 2.0], np.float32)
LENGTHS = (2, 1, 1, 3)


@pytest.fixture
def rollouts() -> Rollouts:
    """Two prompts with two answers each; the policy is 0.1 nats a token above the reference."""
    responses = Ragged.of([[5] * length for length in LENGTHS])
    zeros = np.zeros(sum(LENGTHS), np.float32)
    return Rollouts(
        prompts=Ragged.of([[1]] * 4),
        responses=responses,
        prompt_index=np.array([0, 0, 1, 1]),
        finished=np.ones(4, bool),
        rollout_logprobs=zeros,
        weight_version=0,
        scores=SCORES,
        policy_logprobs=zeros,
        reference_logprobs=zeros - np.float32(0.1),
    )


def advantages(
    rollouts: Rollouts, tiny_config: Callable[..., Config], algorithm: str, **own: float
) -> np.ndarray:
    config = tiny_config(rl={"algorithms": [algorithm], algorithm: own})
    made, figures = estimate_advantages(
        rollouts, config, algorithm, RewardShaper.of(config, algorithm)
    )
    assert figures["score"] == 2 and figures["kl"] == pytest.approx(0.1 * np.mean(LENGTHS))
    assert made.returns is None and made.advantages is not None
    return made.advantages


def test_rloo_compares_with_the_other_answer_less_its_kl(rollouts, tiny_config) -> None:
    totals = SCORES - 0.5 * 0.1 * np.array(LENGTHS)
    expected = np.repeat(
        [
            totals[0] - totals[1],
            totals[1] - totals[0],
            totals[2] - totals[3],
            totals[3] - totals[2],
        ],
        LENGTHS,
    )
    np.testing.assert_allclose(
        advantages(rollouts, tiny_config, "rloo", kl_coef=0.5), expected, atol=1e-6
    )


@pytest.mark.parametrize("divide, scale", [(True, 1 / (2**0.5 + 1e-6)), (False, 1.0)])
def test_grpo_compares_with_the_mean(rollouts, tiny_config, divide, scale) -> None:
    found = advantages(rollouts, tiny_config, "grpo", divide_by_std=divide)
    np.testing.assert_allclose(found, np.array([-1, -1, 1, 0, 0, 0, 0]) * scale, atol=1e-6)


@pytest.mark.parametrize("algorithm", ["gspo", "cispo"])
def test_gspo_and_cispo_compare_as_grpo_does(rollouts, tiny_config, algorithm) -> None:
    for divide in (True, False):
        np.testing.assert_array_equal(
            advantages(rollouts, tiny_config, algorithm, divide_by_std=divide),
            advantages(rollouts, tiny_config, "grpo", divide_by_std=divide),
        )


def test_dr_grpo_compares_with_the_mean_and_does_not_divide(rollouts, tiny_config) -> None:
    found = advantages(rollouts, tiny_config, "dr_grpo")
    np.testing.assert_allclose(found, [-1, -1, 1, 0, 0, 0, 0], atol=1e-6)


@pytest.mark.parametrize("algorithm", ["rloo", "grpo", "gspo", "cispo", "dr_grpo"])
@pytest.mark.parametrize(
    ("scores", "share"),
    [([1, 3, 2, 2], 0.5), ([1, 3, 2, 1], 0.0), ([0, 0, -1, -1], 1.0), ([12, 11, 2, 3], 0.5)],
)
def test_the_share_of_prompts_with_one_reward(
    rollouts, tiny_config, algorithm, scores, share
) -> None:
    """Rewards are what counts: scores of 12 and 11 are both cut to rl.reward_clip 10."""
    config = tiny_config(rl={"algorithms": [algorithm]})
    scored = rollouts.with_columns(scores=np.array(scores, np.float32))
    _, figures = estimate_advantages(scored, config, algorithm, RewardShaper.of(config, algorithm))
    assert figures["equal_groups"] == share


@pytest.mark.parametrize("algorithm", ["reinforce", "ppo"])
def test_who_compares_with_no_group_counts_none(rollouts, tiny_config, algorithm) -> None:
    config = tiny_config(rl={"algorithms": [algorithm]})
    values = np.zeros(sum(LENGTHS), np.float32)
    _, figures = estimate_advantages(
        rollouts.with_columns(values=values), config, algorithm, RewardShaper.of(config, algorithm)
    )
    assert "equal_groups" not in figures


def test_every_recipe_names_an_estimator() -> None:
    named = {recipe.estimator for recipe in RECIPES.values()}
    assert named == set(ESTIMATORS) == set(get_args(EstimatorName))


def test_reinforce_is_the_reward_to_come(rollouts, tiny_config) -> None:
    found = advantages(rollouts, tiny_config, "reinforce", kl_coef=1.0, whiten=False)
    np.testing.assert_allclose(found, [0.8, 0.9, 2.9, 1.9, 1.7, 1.8, 1.9], atol=1e-6)
    whitened = advantages(rollouts, tiny_config, "reinforce", kl_coef=1.0)
    assert whitened.mean() == pytest.approx(0, abs=1e-6) and whitened.std(ddof=1) == pytest.approx(
        1, abs=1e-5
    )


@pytest.mark.parametrize("algorithm", ["ppo", "apa", "awr"])
def test_with_a_critic_returns_come_too(rollouts, tiny_config, algorithm) -> None:
    config = tiny_config(rl={"gae_lambda": 1.0, algorithm: {"whiten": False, "kl_coef": 0.0}})
    values = np.full(sum(LENGTHS), 0.5, np.float32)
    shaping = RewardShaper.of(config, algorithm)
    made, figures = estimate_advantages(
        rollouts.with_columns(values=values), config, algorithm, shaping
    )
    np.testing.assert_allclose(made.returns, np.repeat(SCORES, LENGTHS), atol=1e-6)
    np.testing.assert_allclose(made.advantages, np.repeat(SCORES, LENGTHS) - 0.5, atol=1e-6)
    assert figures["explained_variance"] == pytest.approx(0, abs=1e-6), (
        "a constant explains nothing"
    )


def test_the_coefficient_follows_its_target(rollouts, tiny_config) -> None:
    own = {"kl_coef": 0.1, "kl_target": 0.05, "kl_horizon": 4}
    config = tiny_config(rl={"ppo": own})
    shaping, values = RewardShaper.of(config, "ppo"), np.zeros(sum(LENGTHS), np.float32)
    _, figures = estimate_advantages(rollouts.with_columns(values=values), config, "ppo", shaping)
    assert shaping.kl_coef == 0.1, "only iterations that train the policy move it"
    shaping.update_kl_coef(figures["kl"], 4)
    assert figures["kl_coef"] == 0.1 and shaping.kl_coef == pytest.approx(0.12), (
        "KL above the target: it rises"
    )
    assert shaping.state_dict()["kl_coef"] == shaping.kl_coef


def test_without_a_reference_there_is_no_kl(rollouts, tiny_config) -> None:
    config = tiny_config(rl={"algorithms": ["rloo"], "rloo": {"kl_coef": 0.0}})
    alone = rollouts.with_columns(reference_logprobs=None)
    _, figures = estimate_advantages(alone, config, "rloo", RewardShaper.of(config, "rloo"))
    assert "kl" not in figures and figures["reward"] == 2


@pytest.mark.parametrize("broken", [1.0, float("nan")])
def test_an_engine_with_the_same_weights_must_agree(rollouts, tiny_config, broken) -> None:
    config = tiny_config()
    check_mismatch(gap(rollouts), config)
    found = gap(
        rollouts.with_columns(rollout_logprobs=rollouts.rollout_logprobs + np.float32(broken))
    )
    with pytest.raises(RuntimeError, match="trainer and rollout log-probs of a token differ by"):
        check_mismatch(found, config)


def test_rewards_of_tokens_can_be_whitened_and_keep_their_mean(rollouts, tiny_config) -> None:
    """AlpacaFarm's way; lambda 1 and no values: the first token's return is the sum of an answer's
    rewards.
    """
    config = tiny_config(
        rl={"whiten_rewards": True, "gae_lambda": 1.0, "ppo": {"whiten": False, "kl_coef": 1.0}}
    )
    values = np.zeros(sum(LENGTHS), np.float32)
    made, figures = estimate_advantages(
        rollouts.with_columns(values=values), config, "ppo", RewardShaper.of(config, "ppo")
    )
    plain = np.full(sum(LENGTHS), -0.1)
    plain[np.cumsum(LENGTHS) - 1] += SCORES
    scaled = (plain - plain.mean()) / np.sqrt(plain.var(ddof=1) + 1e-8) + plain.mean()
    firsts = np.cumsum(LENGTHS) - LENGTHS
    np.testing.assert_allclose(made.returns[firsts], np.add.reduceat(scaled, firsts), atol=1e-5)
    assert figures["value_loss"] == pytest.approx(float((made.returns**2).mean()) / 2, rel=1e-5)


def test_scores_can_be_whitened(rollouts, tiny_config) -> None:
    config = tiny_config(
        rl={"reward_scaling": "whiten", "algorithms": ["rloo"], "rloo": {"kl_coef": 0.0}}
    )
    made, _ = estimate_advantages(rollouts, config, "rloo", RewardShaper.of(config, "rloo"))
    std = SCORES.std(ddof=1)
    np.testing.assert_allclose(
        made.advantages, np.repeat([-2 / std, 2 / std, 0, 0], LENGTHS), atol=1e-5
    )


@pytest.mark.parametrize(
    "settings, value_loss, expected",
    [
        ({}, 9.0, [True, True]),
        ({"critic_warmup_iterations": 1}, 9.0, [False, True]),
        ({"critic_warm_gate": 1.0}, 1.1, [False, False]),
        ({"critic_warm_gate": 1.0}, 1.0, [True, True]),
    ],
)
def test_the_critic_learns_alone_at_first_or_while_it_is_far_off(
    tiny_config, settings, value_loss, expected
) -> None:
    rl = tiny_config(rl={"algorithms": ["ppo"], **settings}).rl
    assert [
        trains_policy(rl, True, iteration, {"value_loss": value_loss}) for iteration in (0, 1)
    ] == expected
    assert trains_policy(rl, False, 0, {}), "without a critic there is nothing to wait for"


@pytest.mark.parametrize("score", [1e30, -1e16, 3e38])
def test_rewards_that_fp32_cannot_square_are_told(rollouts, tiny_config, score) -> None:
    config = tiny_config(rl={"algorithms": ["rloo"], "reward_clip": None})
    large = rollouts.with_columns(scores=np.array([score, 1, 2, 3], np.float32))
    with pytest.raises(FloatingPointError, match="are too large to compare in fp32, which would"):
        estimate_advantages(large, config, "rloo", RewardShaper.of(config, "rloo"))
    clipped = tiny_config(rl={"algorithms": ["rloo"], "reward_clip": 5.0})
    made, _ = estimate_advantages(large, clipped, "rloo", RewardShaper.of(clipped, "rloo"))
    assert made.advantages is not None and np.ptp(made.advantages) > 0


def test_what_a_shaper_remembers_is_carried_on(rollouts, tiny_config) -> None:
    config = tiny_config(
        rl={
            "algorithms": ["rloo"],
            "reward_scaling": "std_then_clip",
            "rloo": {"kl_coef": 0.1, "kl_target": 1.0},
        }
    )
    first, second = RewardShaper.of(config, "rloo"), RewardShaper.of(config, "rloo")
    estimate_advantages(rollouts, config, "rloo", first)
    first.update_kl_coef(3.0, 4)
    second.load_state_dict(first.state_dict())
    for shaper in (first, second):
        shaper.update_kl_coef(2.0, 4)
    made = [estimate_advantages(rollouts, config, "rloo", shaper)[0] for shaper in (first, second)]
    assert first.state_dict() == second.state_dict() and first.kl_coef != 0.1
    assert np.array_equal(made[0].advantages, made[1].advantages)
