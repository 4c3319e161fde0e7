"""Where the algorithms end up, on problems so small that expectations and the optimum are exact.

A problem holds all answers over a few tokens, where token 0 ends an answer, a random score for
each, and a random reference policy as a table of logits, one row a state (what was said so far).
Descent on all answers, weighted by their chance under the rollout policy, is then descent on the
expected loss.

The KL-regularised optimum is pi(y) proportional to ref(y) exp(R(y) / beta). APA anchored at the
reference ends elsewhere where an answer has more than one token: at pi(a|s) proportional to
ref(a|s) exp(Q(s, a) / lam), for its Q knows nothing of the KL of later tokens.

Shapes: N = tokens of all answers, B = answers, S = states, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import pytest
import torch
from torch import Tensor

from rayward.algorithms.advantage import (
    gae,
    group_baseline,
    kl_k1,
    returns_to_go,
    shape_rewards,
    whiten,
)
from rayward.algorithms.policy import apa, awr, kl_loss, ppo_clip, value_loss
from rayward.algorithms.sequence import segment_sum

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(current log-probs, old ones, advantages, weights) -> loss, all [N]."""


class Problem:
    """All answers of at most `longest` tokens."""

    def __init__(self, vocabulary: int, longest: int, seed: int) -> None:
        def grow(prefix: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
            if len(prefix) == longest or prefix[-1:] == (0,):
                yield prefix
            else:
                for token in range(vocabulary):
                    yield from grow((*prefix, token))

        answers = list(grow(()))
        prefixes = [answer[:t] for answer in answers for t in range(len(answer))]
        states = {prefix: row for row, prefix in enumerate(dict.fromkeys(prefixes))}
        generator = torch.Generator().manual_seed(seed)
        self.lengths = [len(answer) for answer in answers]
        self.state_N = torch.tensor([states[prefix] for prefix in prefixes])
        self.token_N = torch.tensor([token for answer in answers for token in answer])
        self.scores_B = torch.randn(len(answers), generator=generator, dtype=torch.float64)
        self.ref_SV = torch.randn(len(states), vocabulary, generator=generator, dtype=torch.float64)
        self.ref_N = self.logprobs(self.ref_SV)

    def logprobs(self, logits_SV: Tensor) -> Tensor:
        return logits_SV.log_softmax(-1)[self.state_N, self.token_N]

    def chances(self, logprobs_N: Tensor) -> Tensor:
        return segment_sum(logprobs_N, self.lengths).exp()

    def weights(self, logprobs_N: Tensor) -> Tensor:
        """The chance of a token's answer, at each token."""
        return self.chances(logprobs_N).repeat_interleave(torch.tensor(self.lengths))

    def values(self, logprobs_N: Tensor, rewards_N: Tensor) -> Tensor:
        """V(s) of the policy, exact, at each token."""
        weights_N, to_go_N = self.weights(logprobs_N), returns_to_go(rewards_N, self.lengths)
        zeros_S = torch.zeros(len(self.ref_SV), dtype=torch.float64)
        total_S, mass_S = (
            zeros_S.index_add(0, self.state_N, x_N) for x_N in (weights_N * to_go_N, weights_N)
        )
        return (total_S / mass_S)[self.state_N]

    def optimum(self, beta: float) -> Tensor:
        """Chances of the answers under the KL-regularised optimum."""
        return (segment_sum(self.ref_N, self.lengths) + self.scores_B / beta).softmax(0)


BANDIT, TREE = Problem(vocabulary=2, longest=1, seed=0), Problem(vocabulary=3, longest=3, seed=1)
both = pytest.mark.parametrize("problem", [BANDIT, TREE], ids=["bandit", "tree"])


def train(
    problem: Problem,
    loss: Loss,
    kl_coef: float = 0.0,
    learnt_values: bool = False,
    iterations: int = 150,
    lr: float = 0.1,
) -> Tensor:
    """Log-probs [N] after `iterations` of four steps of Adam each, from the reference policy."""
    logits_SV = problem.ref_SV.clone().requires_grad_()
    values_S = torch.zeros(len(logits_SV), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits_SV, values_S], lr=lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        old_N = problem.logprobs(logits_SV).detach()
        weights_N = problem.weights(old_N)
        rewards_N = shape_rewards(
            problem.scores_B, kl_k1(old_N, problem.ref_N), problem.lengths, kl_coef
        )
        old_values_N = (
            values_S[problem.state_N].detach()
            if learnt_values
            else problem.values(old_N, rewards_N)
        )
        advantages_N, returns_N = gae(rewards_N, old_values_N, problem.lengths)
        for _ in range(4):
            optimizer.zero_grad()
            loss(problem.logprobs(logits_SV), old_N, advantages_N, weights_N).backward()
            values_N = values_S[problem.state_N]
            # Its expectation, too.
            values_N.register_hook(lambda grad_N, weights_N=weights_N: grad_N * weights_N)
            value_loss(values_N, old_values_N, returns_N, clip=None)[0].backward()
            optimizer.step()
        decay.step()
    return problem.logprobs(logits_SV).detach()


def ppo(logprobs_N: Tensor, old_N: Tensor, advantages_N: Tensor, weights_N: Tensor) -> Tensor:
    return ppo_clip(logprobs_N, old_N, advantages_N, weights_N=weights_N)[0]


def apa_from_old(
    logprobs_N: Tensor, old_N: Tensor, advantages_N: Tensor, weights_N: Tensor
) -> Tensor:
    return apa(logprobs_N, old_N, advantages_N, lam=0.5, weights_N=weights_N)[0]


def close(found: Tensor, expected: Tensor, atol: float = 2e-3) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


@both
@pytest.mark.parametrize("learnt_values", [False, True], ids=["exact_values", "learnt_values"])
@pytest.mark.parametrize("loss", [ppo, apa_from_old])
def test_with_kl_in_the_reward_the_end_is_the_regularised_optimum(
    problem: Problem, learnt_values: bool, loss: Loss
) -> None:
    """There every advantage is 0. For APA this needs the rollout policy as its anchor, as in
    Starling.
    """
    optimum_B = problem.optimum(beta=0.5)
    assert float((problem.chances(problem.ref_N) - optimum_B).abs().max()) > 0.2
    close(
        problem.chances(train(problem, loss, kl_coef=0.5, learnt_values=learnt_values)), optimum_B
    )


@both
@pytest.mark.parametrize("loss", [ppo, apa_from_old])
def test_without_kl_the_end_is_the_best_answer(problem: Problem, loss: Loss) -> None:
    best = int(problem.scores_B.argmax())
    assert float(problem.chances(problem.ref_N)[best]) < 0.5
    assert float(problem.chances(train(problem, loss))[best]) > 0.98


@both
@pytest.mark.parametrize("learnt_values", [False, True], ids=["exact_values", "learnt_values"])
def test_apa_anchored_at_the_reference(problem: Problem, learnt_values: bool) -> None:
    lam = 0.5
    # The last token's Q is its score, so sweeps of the fixed-point equation are right from the last
    # token backwards.
    expected_N = problem.ref_N
    for _ in range(max(problem.lengths)):
        expected_N = normalised(problem, problem.ref_N + q_values(problem, expected_N) / lam)

    def loss(logprobs_N: Tensor, old_N: Tensor, advantages_N: Tensor, weights_N: Tensor) -> Tensor:
        return apa(logprobs_N, problem.ref_N, advantages_N, lam, weights_N)[0]

    reached_N = train(problem, loss, learnt_values=learnt_values)
    close(reached_N.exp(), expected_N.exp())
    distance = float((problem.chances(reached_N) - problem.optimum(beta=lam)).abs().max())
    assert distance < 2e-3 if problem is BANDIT else distance > 0.02


def q_values(problem: Problem, logprobs_N: Tensor) -> Tensor:
    """Q(s, a) of the scores alone: V of the next state, or the score at the last token."""
    rewards_N = shape_rewards(problem.scores_B, torch.zeros_like(logprobs_N), problem.lengths, 0.0)
    values_N = problem.values(logprobs_N, rewards_N)
    return gae(rewards_N, values_N, problem.lengths, lam=0.0)[0] + values_N


def normalised(problem: Problem, scores_N: Tensor) -> Tensor:
    """log softmax over the tokens of each state, of scores that are equal wherever state and token
    are.
    """
    scores_SV = torch.zeros_like(problem.ref_SV)
    scores_SV[problem.state_N, problem.token_N] = scores_N
    return problem.logprobs(scores_SV)


ANY_SAMPLING = [(1 / 3, 1 / 3, 1 / 3), (0.5, 0.3, 0.2), (0.1, 0.1, 0.8)]


def descend(loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, float]:
    """(probabilities of three tokens, loss) after descent on the logits from equal ones."""
    logits_V = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([logits_V], lr=0.3)
    for _ in range(600):
        optimizer.zero_grad()
        value = loss(logits_V.log_softmax(0))
        value.backward()
        optimizer.step()
    return logits_V.detach().softmax(0), value.item()


@pytest.mark.parametrize("sampling", ANY_SAMPLING)
def test_one_regression_of_apa_and_of_awr(sampling: tuple[float, ...]) -> None:
    """Advantages with Z = 1 exactly: APA finds (.6, .3, .1) with a loss of 0 whatever the data were
    sampled from, AWR the sampling policy times exp(A / lam)."""
    target, init, lam = (
        torch.tensor(x, dtype=torch.float64) for x in ((0.6, 0.3, 0.1), (0.5, 0.3, 0.2), 0.5)
    )
    advantages, weights = (target / init).log() * lam, torch.tensor(sampling, dtype=torch.float64)
    assert advantages.tolist() == pytest.approx([0.0911607784, 0.0, -0.3465735903])
    found, loss = descend(
        lambda logprobs: apa(logprobs, init.log(), advantages, float(lam), weights)[0]
    )
    close(found, target, 1e-5)
    assert loss < 1e-9
    tilted = weights * target / init
    found, _ = descend(
        lambda logprobs: awr(logprobs, advantages, 1 / float(lam), weights_N=weights)[0]
    )
    close(found, tilted / tilted.sum(), 1e-5)


def test_the_gradient_of_the_kl_loss_is_that_of_the_kl() -> None:
    """Ten tokens in the proportions of the policy, so that their mean is the expectation."""
    reference_N = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    tokens_N = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    logits_V = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().requires_grad_()
    logprobs_V = logits_V.log_softmax(0)
    exact = torch.autograd.grad(
        (logprobs_V.exp() * (logprobs_V - reference_N)).sum(), logits_V, retain_graph=True
    )[0]
    loss, _ = kl_loss(logprobs_V[tokens_N], reference_N[tokens_N])
    close(torch.autograd.grad(loss / 10, logits_V)[0], exact, 1e-12)
    assert float(exact.abs().max()) > 0.1


@pytest.mark.parametrize("kind", ["rloo", "grpo", "dr_grpo", "reinforce++"])
def test_baselines_without_a_critic_climb_on_noisy_arms(
    kind: Literal["rloo", "grpo", "dr_grpo", "reinforce++"],
) -> None:
    """Arms that pay 1 with a chance of 0.8 and 0.3, the better one rare at first; eight groups of
    eight pulls.
    """
    generator = torch.Generator().manual_seed(17)
    logits_V = torch.tensor([-2.0, 0.0], requires_grad=True)
    optimizer = torch.optim.Adam([logits_V], lr=0.05)
    better = [float(logits_V.detach().softmax(0)[0])]
    for _ in range(120):
        arms_N = torch.multinomial(
            logits_V.detach().softmax(0), 64, replacement=True, generator=generator
        )
        scores_N = torch.bernoulli(torch.tensor([0.8, 0.3])[arms_N], generator=generator)
        if kind == "reinforce++":
            advantages_N = whiten(returns_to_go(scores_N, [1] * 64))
        else:
            advantages_N = group_baseline(scores_N, [8] * 8, kind)
        old_N = logits_V.detach().log_softmax(0)[arms_N]
        for _ in range(2):
            optimizer.zero_grad()
            (ppo_clip(logits_V.log_softmax(0)[arms_N], old_N, advantages_N)[0] / 64).backward()
            optimizer.step()
        better.append(float(logits_V.detach().softmax(0)[0]))
    assert better[0] < 0.15 and better[40] > better[0] and better[-1] > 0.97
