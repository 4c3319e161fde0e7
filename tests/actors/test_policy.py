"""Policy and critic behind their groups: one rank or two, large micro-batches or small, make the same update."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.forward import merge, response_inputs
from actors.group import TrainingGroup, critic_group, policy_group
from actors.models import load_policy, load_scalar
from actors.policy import mean_over_steps
from data.rollouts import Rollouts

ROWS, SAMPLES_PER_STEP, EPOCHS = 16, 8, 2
CPU = torch.device("cpu")
# (ranks, ZeRO stage, tokens of a micro-batch)
LAYOUTS = {"ppo": [(1, 1, 4096), (1, 1, 60), (2, 3, 60)], "apa": [(1, 1, 60), (2, 2, 4096)],
           "critic": [(1, 1, 4096), (2, 3, 60)]}  # fmt: skip


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
def teams(local_ray, tiny_config, tiny_models, rollouts):
    """{role: a trained group for each of its layouts}; they all start at the same time."""
    made: dict[str, list[TrainingGroup]] = {}
    for role, layouts in LAYOUTS.items():
        made[role] = []
        for workers, zero_stage, tokens in layouts:
            # Adam's eps is far above the rounding noise of gradients, which it would otherwise blow up.
            optimizer = {"zero_stage": zero_stage, "micro_batch_tokens": tokens, "eps": 1e-4, "max_grad_norm": 0.5}
            resources = {name: {"workers": workers, "cpus": 0.01} for name in ("policy", "critic")}
            rl = {"prompts_per_iteration": ROWS, "samples_per_prompt": 1, "samples_per_step": SAMPLES_PER_STEP,
                  "epochs": EPOCHS, "optimizer": optimizer, "apa": {"lam": 5.0}}  # fmt: skip
            config = tiny_config(rl=rl, resources=resources)
            made[role].append(
                critic_group(tiny_models.reward, config)
                if role == "critic"
                else policy_group(tiny_models.policy, config, role)
            )
    groups = [group for groups in made.values() for group in groups]
    for group, calls in [(group, group.begin_start()) for group in groups]:
        group.finish(calls, 240)
    teams: dict[str, list[Trained]] = {}
    for role, of_role in made.items():
        teams[role] = []
        for group in of_role:
            before, entropy_sum = read(role, group, rollouts)
            metrics = mean_over_steps(group.call("update", rollouts.with_columns(policy_logprobs=before), 0))
            teams[role].append(Trained(group, before, metrics, read(role, group, rollouts)[0], entropy_sum))
    yield teams
    for group in groups:
        group.stop()


def test_logprobs_and_entropy_are_those_of_transformers(teams, tiny_models, rollouts, plain):
    lm = AutoModelForCausalLM.from_pretrained(tiny_models.policy, dtype=torch.float32)
    expected = plain(lm, rollouts.prompts, rollouts.responses)
    entropy_sum = 0.0
    with torch.no_grad():
        for row in range(ROWS):
            ids_T = torch.from_numpy(rollouts.sequences()[row].astype(np.int64))
            logits_TV = lm(ids_T[None]).logits[0, int(rollouts.prompts.lengths[row]) - 1 : -1]
            entropy_sum += float(torch.distributions.Categorical(logits=logits_TV).entropy().sum())
    for role in ("ppo", "apa"):
        for trained in teams[role]:
            np.testing.assert_allclose(trained.before, expected, atol=1e-5, rtol=0)
            assert trained.entropy_sum == pytest.approx(entropy_sum, rel=1e-5)


def test_values_are_read_before_each_token(teams, tiny_models, rollouts):
    """The value of a state sees the tokens before the one that is chosen in it, and no more."""
    with torch.no_grad():
        for trained in teams["critic"]:
            scalar, start = load_scalar(tiny_models.reward, "float32"), 0
            for row in range(ROWS):
                for end in range(int(rollouts.responses.lengths[row])):
                    state = np.concatenate([rollouts.prompts[row], rollouts.responses[row][:end]])
                    ids_BT = torch.from_numpy(state.astype(np.int64))[None]
                    last_BT = torch.arange(ids_BT.shape[1])[None] == ids_BT.shape[1] - 1
                    assert float(scalar(ids_BT, last_BT)) == pytest.approx(trained.before[start], abs=1e-5)
                    start += 1


@pytest.mark.parametrize("role", ["ppo", "apa", "critic"])
def test_ranks_stages_and_micro_batches_change_nothing(teams, role):
    first, *others = teams[role]
    assert all(math.isfinite(value) for value in first.metrics.values()), first.metrics
    assert float(np.abs(first.after - first.before).max()) > 1e-2
    assert first.metrics["grad_norm"] > 0.01 and first.metrics["learning_rate"] == pytest.approx(1e-3)
    for other in others:
        assert other.metrics.keys() == first.metrics.keys()
        assert other.metrics == pytest.approx(first.metrics, rel=1e-4, abs=1e-5)
        np.testing.assert_allclose(other.after, first.after, atol=1e-5, rtol=0)


def test_metrics_name_what_the_algorithms_report(teams):
    ppo, apa, critic = (teams[role][0].metrics for role in ("ppo", "apa", "critic"))
    assert {"loss", "clipfrac", "approx_kl", "ratio_max", "log_ratio_max", "grad_norm", "learning_rate"} == ppo.keys()
    assert {"loss", "unreachable", "target_max", "progress", "log_ratio_max", "grad_norm", "learning_rate"} == apa.keys()
    assert {"loss", "value_clipfrac", "grad_norm", "learning_rate"} == critic.keys()
    assert 0 <= ppo["clipfrac"] <= 1 and ppo["ratio_max"] > 1 and ppo["approx_kl"] > 0
    assert 0 <= apa["unreachable"] <= 1 and -1 <= apa["progress"] <= 1


def test_the_loss_is_the_mean_over_the_tokens_of_all_ranks(teams, rollouts, tiny_config):
    """PPO's first step starts from a ratio of 1, where its loss is the weighted mean of minus the advantages."""
    histories = teams["ppo"][2].group.call("update", _current("ppo", teams["ppo"][2], rollouts), 1)
    first = [history[0] for history in histories]
    assert len(first) == 2 and first[0]["tokens"] == first[1]["tokens"]
    from data.packing import epoch_order

    rows = epoch_order(ROWS, tiny_config().seed, EPOCHS)[:SAMPLES_PER_STEP]
    step = _current("ppo", teams["ppo"][2], rollouts, from_rollouts=True).take(rows)
    assert first[0]["tokens"] == step.responses.lengths.sum()
    assert sum(sums["log_ratio_max"] for sums in first) < 1e-5


def _current(role, trained, rollouts, from_rollouts=False):
    """The rollouts with the log-probs of the group's present weights as old ones."""
    if from_rollouts:
        return rollouts
    now, _ = read(role, trained.group, rollouts)
    return rollouts.with_columns(policy_logprobs=now, rollout_logprobs=now)


@pytest.mark.parametrize("layout", [0, 2])
def test_a_token_with_advantage_becomes_likelier(teams, rollouts, layout):
    trained = teams["ppo"][layout]
    for token, sign in ((3, 1.0), (40, -1.0)):
        batch = _current("ppo", trained, rollouts)
        advantages = np.zeros_like(batch.policy_logprobs)
        advantages[token] = 20.0 * sign
        trained.group.call("update", batch.with_columns(advantages=advantages), 2)
        gained = read("ppo", trained.group, rollouts)[0][token] - batch.policy_logprobs[token]
        assert gained * sign > 1e-3


@pytest.mark.parametrize("layout", [0, 1])
def test_apa_moves_towards_anchor_plus_advantage_over_lambda(teams, rollouts, layout):
    trained = teams["apa"][layout]
    batch = _current("apa", trained, rollouts)
    target = batch.reference_logprobs + batch.advantages / 5.0
    gaps = [float(np.square(batch.policy_logprobs - target).mean())]
    for iteration in range(3):
        trained.group.call("update", _current("apa", trained, rollouts), iteration)
        gaps.append(float(np.square(read("apa", trained.group, rollouts)[0] - target).mean()))
    assert gaps[-1] < 0.5 * gaps[0] and gaps == sorted(gaps, reverse=True), gaps


@pytest.mark.parametrize("layout", [0, 1])
def test_the_critic_learns_the_returns(teams, rollouts, layout):
    trained = teams["critic"][layout]
    errors = []
    for iteration in range(3):
        values, _ = read("critic", trained.group, rollouts)
        errors.append(float(np.square(values - rollouts.returns).mean()))
        trained.group.call("update", rollouts.with_columns(values=values), iteration)
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.9 * errors[0], errors


@pytest.mark.parametrize(("role", "layout"), [("ppo", 0), ("ppo", 2), ("apa", 1)])
@pytest.mark.parametrize("rows", [slice(None), slice(0, 1)], ids=["all", "one"])
def test_old_logprobs_that_are_not_the_policys_stop_the_update(teams, rollouts, role, layout, rows):
    """Also where one token of one rank is off: the error comes at once although the other rank waits in a collective."""
    trained = teams[role][layout]
    batch = _current(role, trained, rollouts)
    batch.policy_logprobs[rows] += 0.01
    pytest.skip("placeholder") if False else None
    with pytest.raises(RuntimeError, match=r"the policy ratio must be 1 before the first update, but a log-ratio is 0\.01"):
        trained.group.call("update", batch, 0, timeout_s=60)


def test_update_fits_the_model_that_was_loaded(tiny_models, made_rollouts):
    """The columns that made_rollouts fills in are those of the policy: what the tests above start from."""
    rollouts = made_rollouts(4)
    with torch.no_grad():
        logprobs_N, _ = load_policy(tiny_models.policy, "float32")(*response_inputs(rollouts, CPU))
    np.testing.assert_allclose(logprobs_N.numpy(), rollouts.policy_logprobs, atol=1e-5, rtol=0)
