"""Policy and critic behind their groups: one rank or two, large micro-batches or small, make the
same update.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rayward.actors.group import TrainingGroup
from rayward.actors.models.load import load_scalar
from rayward.actors.training.updates import mean_over_steps
from rayward.data.packing import epoch_order
from rayward.data.ragged import merge
from rayward.data.rollouts import Rollouts

ROWS, SAMPLES_PER_STEP, EPOCHS, LAM = 16, 8, 2, 5.0  # as in conftest
CPU = torch.device("cpu")
# (ranks, ZeRO stage, tokens of a micro-batch); one of each is compared with the other.
LAYOUTS = {
    "ppo": [(1, 1, 4096), (2, 3, 60)],
    "apa": [(1, 1, 60), (2, 2, 4096)],
    "critic": [(1, 1, 4096), (2, 3, 60)],
    "gspo": [(1, 1, 4096), (2, 2, 60)],
}


@dataclass
class Trained:
    """A group, what it computed before and after its first update, and that update's metrics."""

    group: TrainingGroup
    before: np.ndarray
    metrics: dict[str, float]
    after: np.ndarray
    entropy_sum: float = 0.0


def read(role: str, group: TrainingGroup, rollouts: Rollouts) -> tuple[np.ndarray, float]:
    """Log-probs and the sum of their entropies, or values."""
    if role == "critic":
        return merge(group.call("values", rollouts), len(rollouts)), 0.0
    parts = group.call("logprobs", rollouts)
    return merge([part for part, _ in parts], len(rollouts)), sum(entropy for _, entropy in parts)


@pytest.fixture(scope="module")
def rollouts(made_rollouts):
    return made_rollouts(ROWS, seed=5)


@pytest.fixture(scope="module")
def trained(teams, rollouts) -> dict[str, list[Trained]]:
    """{role: a group after its first update, for each of its layouts}."""
    teams.get([(role, *layout) for role, layouts in LAYOUTS.items() for layout in layouts])
    made: dict[str, list[Trained]] = {}
    for role, layouts in LAYOUTS.items():
        made[role] = []
        for group in teams.get([(role, *layout) for layout in layouts]):
            before, entropy_sum = read(role, group, rollouts)
            metrics = mean_over_steps(
                group.call("update", rollouts.with_columns(policy_logprobs=before), 0)
            )
            # Of the layout, unlike the rest.
            assert 0 <= metrics.pop("padding") < 1 < metrics.pop("computed_tokens")
            made[role].append(
                Trained(group, before, metrics, read(role, group, rollouts)[0], entropy_sum)
            )
    return made


def test_logprobs_and_entropy_are_those_of_transformers(trained, tiny_models, rollouts, plain):
    lm = AutoModelForCausalLM.from_pretrained(tiny_models.policy, dtype=torch.float32)
    expected = plain(lm, rollouts.prompts, rollouts.responses)
    entropy_sum = 0.0
    with torch.no_grad():
        for row in range(ROWS):
            ids_T = torch.from_numpy(rollouts.sequences()[row].astype(np.int64))
            logits_TV = lm(ids_T[None]).logits[0, int(rollouts.prompts.lengths[row]) - 1 : -1]
            entropy_sum += float(torch.distributions.Categorical(logits=logits_TV).entropy().sum())
    for role in ("ppo", "apa"):
        for actors in trained[role]:
            np.testing.assert_allclose(actors.before, expected, atol=1e-5, rtol=0)
            assert actors.entropy_sum == pytest.approx(entropy_sum, rel=1e-5)


def test_values_are_read_before_each_token(trained, tiny_models, rollouts):
    """The value of a state sees the tokens before the one that is chosen in it, and no more."""
    with torch.no_grad():
        for actors in trained["critic"]:
            scalar, start = load_scalar(tiny_models.reward, "float32"), 0
            for row in range(ROWS):
                for end in range(int(rollouts.responses.lengths[row])):
                    state = np.concatenate([rollouts.prompts[row], rollouts.responses[row][:end]])
                    ids_BT = torch.from_numpy(state.astype(np.int64))[None]
                    last_BT = torch.arange(ids_BT.shape[1])[None] == ids_BT.shape[1] - 1
                    assert float(scalar(ids_BT, last_BT)) == pytest.approx(
                        actors.before[start], abs=1e-5
                    )
                    start += 1


@pytest.mark.parametrize("role", LAYOUTS)
def test_ranks_stages_and_micro_batches_change_nothing(trained, role):
    first, *others = trained[role]
    assert all(math.isfinite(value) for value in first.metrics.values()), first.metrics
    assert float(np.abs(first.after - first.before).max()) > 1e-2
    assert first.metrics["grad_norm"] > 0.01 and first.metrics["learning_rate"] == pytest.approx(
        1e-3
    )
    for other in others:
        assert other.metrics.keys() == first.metrics.keys()
        assert other.metrics == pytest.approx(first.metrics, rel=1e-4, abs=1e-5)
        np.testing.assert_allclose(other.after, first.after, atol=1e-5, rtol=0)


def test_metrics_name_what_the_algorithms_report(trained):
    ppo, apa, critic = (trained[role][0].metrics for role in ("ppo", "apa", "critic"))
    always = {"loss", "grad_norm", "learning_rate"}
    assert ppo.keys() == {
        *always,
        "clipfrac",
        "approx_kl",
        "ratio_max",
        "inverse_ratio_max",
        "log_ratio",
        "log_ratio_max",
    }
    assert apa.keys() == {
        *always,
        "unreachable",
        "target_max",
        "progress",
        "log_ratio",
        "log_ratio_max",
    }
    assert critic.keys() == {*always, "value_clipfrac"}
    assert 0 <= ppo["clipfrac"] <= 1 and ppo["ratio_max"] > 1 and ppo["approx_kl"] > 0
    assert 0 <= apa["unreachable"] <= 1 and -1 <= apa["progress"] <= 1


def now(role: str, actors: Trained, rollouts: Rollouts) -> Rollouts:
    """The rollouts as if the group's present weights had sampled them."""
    logprobs, _ = read(role, actors.group, rollouts)
    return rollouts.with_columns(policy_logprobs=logprobs, rollout_logprobs=logprobs.copy())


@pytest.mark.parametrize(
    ("rollout_shift", "weight"), [(0.0, 1.0), (-3.0, 2.0), (1.0, math.exp(-1.0))]
)
def test_the_first_loss_is_the_weighted_sum_of_advantages(trained, rollouts, rollout_shift, weight):
    """PPO starts from a ratio of 1; the importance weight of rollout against trainer is capped at
    2.
    """
    for actors in trained["ppo"]:
        batch = now("ppo", actors, rollouts)
        shifted = batch.with_columns(
            rollout_logprobs=batch.rollout_logprobs + np.float32(rollout_shift)
        )
        first = [history[0] for history in actors.group.call("update", shifted, 1)]
        step = batch.take(epoch_order(ROWS, 0, EPOCHS)[:SAMPLES_PER_STEP])
        assert {sums["tokens"] for sums in first} == {len(step.responses.values)}
        expected = -weight * float(step.advantages.sum())
        assert sum(sums["loss_sum"] for sums in first) == pytest.approx(
            expected, rel=1e-4, abs=1e-3
        )
        assert max(sums["log_ratio_max"] for sums in first) < 1e-5


@pytest.mark.parametrize("layout", [0, 1])
def test_a_token_with_advantage_becomes_likelier(trained, rollouts, layout):
    actors = trained["ppo"][layout]
    for token, sign in ((3, 1.0), (40, -1.0)):
        batch = now("ppo", actors, rollouts)
        advantages = np.zeros_like(batch.policy_logprobs)
        advantages[token] = 20.0 * sign
        actors.group.call("update", batch.with_columns(advantages=advantages), 2)
        gained = read("ppo", actors.group, rollouts)[0][token] - batch.policy_logprobs[token]
        assert gained * sign > 1e-3


@pytest.mark.parametrize("layout", [0, 1])
def test_apa_moves_towards_anchor_plus_advantage_over_lambda(trained, rollouts, layout):
    actors = trained["apa"][layout]
    batch = now("apa", actors, rollouts)
    target = batch.reference_logprobs + batch.advantages / LAM
    gaps = [float(np.square(batch.policy_logprobs - target).mean())]
    for iteration in range(3):
        actors.group.call("update", now("apa", actors, rollouts), iteration)
        gaps.append(float(np.square(read("apa", actors.group, rollouts)[0] - target).mean()))
    assert max(gaps[1:]) < 0.3 * gaps[0], gaps


@pytest.mark.parametrize("layout", [0, 1])
def test_the_critic_learns_the_returns(trained, rollouts, layout):
    actors = trained["critic"][layout]
    errors = []
    for iteration in range(3):
        values, _ = read("critic", actors.group, rollouts)
        errors.append(float(np.square(values - rollouts.returns).mean()))
        actors.group.call("update", rollouts.with_columns(values=values), iteration)
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.9 * errors[0], errors


@pytest.mark.parametrize("layout", [0, 1])
def test_where_old_logprobs_are_the_engines_the_first_step_tells_how_far_it_is(
    trained, rollouts, layout
):
    """The default in fp32: nobody computes the trainer's before the update, which stops the run by
    this figure.
    """
    actors = trained["ppo"][layout]
    batch = now("ppo", actors, rollouts)
    wrong = batch.policy_logprobs + np.float32(0.01)
    steps = actors.group.call(
        "update", batch.with_columns(policy_logprobs=wrong, rollout_logprobs=wrong), 1
    )
    first = [history[0] for history in steps]
    tokens = sum(sums["own_tokens"] for sums in first)
    assert sum(sums["first_mean_sum"] for sums in first) / tokens == pytest.approx(0.01, rel=1e-2)
    assert max(sums["first_max"] for sums in first) == pytest.approx(0.01, rel=1e-2)
    assert not any("first_mean_sum" in sums for history in steps for sums in history[1:]), (
        "of the first step alone"
    )


@pytest.mark.parametrize(
    ("role", "layout", "tokens"),
    # The last one leaves a rank behind in a collective: nobody uses that group afterwards.
    [("ppo", 0, "all"), ("ppo", 1, "all"), ("apa", 0, "one"), ("apa", 1, "one")],
)
def test_old_logprobs_that_are_not_the_policys_stop_the_update(
    trained, rollouts, role, layout, tokens
):
    """Also where one token of one rank is off: the error comes although the other rank waits in a
    collective.
    """
    batch = now(role, trained[role][layout], rollouts)
    first = int(rollouts.responses.offsets[epoch_order(ROWS, 0, 0)[0]])
    batch.policy_logprobs[slice(first, first + 1) if tokens == "one" else slice(None)] += 0.01
    begun, group = time.monotonic(), trained[role][layout].group
    with pytest.raises(
        RuntimeError,
        match=r"the policy ratio must be 1 before the first update, but a log-ratio is 0\.01",
    ):
        group.finish(group.begin("update", batch, 0), 60)
    assert time.monotonic() - begun < 30
