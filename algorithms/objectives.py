"""What else a policy may learn of preferences, beside DPO: IPO, KTO, SimPO and ORPO.

* IPO, Azar et al., arXiv:2310.12036, eq. 17: the squared distance of a log-ratio's lead to
  1 / (2 tau), so that certain preferences do not drive the policy on and on.
* KTO, Ethayarajh et al., arXiv:2402.01306, eq. 8: the value that a person sees in an answer, above
  or below a reference point; it needs no pairs, only answers that are good or bad.
* SimPO, Meng et al., arXiv:2405.14734, eq. 6, and ORPO, Hong et al., arXiv:2403.07691, eq. 6 and 7:
  no reference model; both normalise log-probs by the length of the answer.

Rankings are ragged as in preference.py, best first. Of more than two answers the loss is the mean
over the pairs, and ORPO's SFT is of the best one; the papers know pairs only. All return the SUM
over rankings (KTO: over answers), which the caller divides by their number in the optimizer step.

Shapes: N = answers of all rankings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rayward.algorithms.preference import mean_over_pairs
from rayward.algorithms.sequence import at_least_fp32, check_same_length, checked_lengths

CERTAIN = -1e-6
"""Mean log-prob above which an answer's odds are those of this one: at 0 they are infinite."""


def length_average(logprobs_N: Tensor, tokens_N: Tensor) -> Tensor:
    """Log-probs of answers of so many tokens (each at least 1), per token."""
    check_same_length(logprobs_N=logprobs_N, tokens_N=tokens_N)
    return at_least_fp32(logprobs_N) / tokens_N


def ipo(
    logratios_N: Tensor, sizes: Sequence[int], tau: float, ranks_N: Tensor | None = None
) -> Tensor:
    """Sum over rankings of (h - 1 / (2 tau))^2, h = better - worse; mean over a ranking's pairs.

    `logratios_N` is log pi - log pi_ref of whole answers, as in the paper. Of their averages over
    the tokens (`length_average` of both) it is the variant that TRL takes, there with `beta` for
    tau; a tau of one is not that of the other. `ranks_N` and ValueError as `mean_over_pairs`.
    """
    target = 1 / (2 * tau)
    return mean_over_pairs(logratios_N, sizes, lambda h: (h - target).square(), ranks_N)


def kto(
    logratios_N: Tensor,
    good_N: Tensor,
    reference_point: float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Sum over answers of lambda_y - v, with r = log pi - log pi_ref of the whole answer.

    v = lambda_D sigmoid(beta (r - z0)) of a good answer (`good_N` True), and
    lambda_U sigmoid(beta (z0 - r)) of a bad one. `reference_point` is z0, without a gradient: see
    `kto_reference_point`. ValueError if the lengths differ.
    """
    check_same_length(logratios_N=logratios_N, good_N=good_N)
    above_N = at_least_fp32(logratios_N) - reference_point
    sign_N = torch.where(good_N, above_N.new_tensor(1.0), above_N.new_tensor(-1.0))
    weight_N = torch.where(
        good_N, above_N.new_tensor(desirable_weight), above_N.new_tensor(undesirable_weight)
    )
    # 1 - sigmoid(x) = sigmoid(-x), which loses no digits where the value is near its bound.
    return (weight_N * torch.sigmoid(-beta * sign_N * above_N)).sum()


def kto_reference_point(sum_of_logratios: float, count: int) -> float:
    """KTO's z0, in nats: the mean of log pi - log pi_ref over mismatched pairs, but at least 0.

    A mismatched pair is a prompt of the batch with the answer to another prompt of it (paper,
    section 4.1): what the policy has come to prefer whatever is asked. It stands, with a bias, for
    KL(pi || pi_ref), which is never below 0. The batch is all that one optimizer step learns from:
    the caller sums over the micro-batches and ranks of the step before it calls this, and before
    the first gradient. So it does not depend on how a step is divided.

    TRL (KTOTrainer) clamps the mean over ranks of each micro-batch instead, so that its z0, and the
    loss, depend on the size of a micro-batch, and gives ranks of fewer pairs the same say; it pairs
    answers when the data set is read, where "the batch" is so many neighbouring rows. Of no pairs
    z0 is 0.
    """
    return max(0.0, sum_of_logratios / count) if count else 0.0


def simpo(
    rewards_N: Tensor, sizes: Sequence[int], gamma: float, ranks_N: Tensor | None = None
) -> Tensor:
    """Sum over rankings of -log sigmoid(better - worse - gamma); mean over a ranking's pairs.

    `rewards_N` is beta times the mean log-prob of an answer's tokens (`length_average`). `ranks_N`
    and ValueError as `mean_over_pairs`.
    """
    # softplus(-x) = -log sigmoid(x).
    return mean_over_pairs(rewards_N, sizes, lambda lead: F.softplus(gamma - lead), ranks_N)


def log_odds(mean_logprobs_N: Tensor) -> Tensor:
    """log(p / (1 - p)) with log p the mean log-prob of an answer's tokens: ORPO's odds.

    A mean log-prob above CERTAIN counts as that, without a gradient.
    """
    logp_N = at_least_fp32(mean_logprobs_N).clamp(max=CERTAIN)
    # log(1 - exp(x)) by whichever form keeps its digits: near 0, expm1; far below, log1p.
    near_N = logp_N > -0.7
    # Each branch gets numbers that are its own: `where` would give NaN gradients of the other's.
    by_expm1_N = torch.log(-torch.expm1(torch.where(near_N, logp_N, -0.7)))
    by_log1p_N = torch.log1p(-torch.exp(torch.where(near_N, -0.7, logp_N)))
    return logp_N - torch.where(near_N, by_expm1_N, by_log1p_N)


def orpo(
    mean_logprobs_N: Tensor, sizes: Sequence[int], ranks_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(SFT part, odds-ratio part), each a sum over rankings; ORPO is the first + lambda the second.

    The first is -log p of the best answer per token, each answer with the same weight; the second
    -log sigmoid(log odds better - log odds worse), the mean over a ranking's pairs. In the SFT part
    TRL counts the prompt's tokens too, and averages over all tokens of a micro-batch, which depends
    on how a step is divided. `ranks_N` and ValueError as `mean_over_pairs`.
    """
    odds_part = mean_over_pairs(
        log_odds(mean_logprobs_N), sizes, lambda lead: F.softplus(-lead), ranks_N
    )
    lengths = checked_lengths(sizes, len(mean_logprobs_N), what="answers", minimum=2)
    sizes_B = torch.tensor(lengths, dtype=torch.int64, device=mean_logprobs_N.device)
    best_B = sizes_B.cumsum(0) - sizes_B
    return -at_least_fp32(mean_logprobs_N)[best_B].sum(), odds_part


@torch.no_grad()
def separation(scores_N: Tensor, good_N: Tensor) -> float:
    """Share of the couples of a good and a bad answer whose good one scores higher.

    Equal scores count one half. It is the area under the ROC curve: 0.5 is chance. NaN where either
    kind is missing. ValueError: other lengths, NaN scores.
    """
    check_same_length(scores_N=scores_N, good_N=good_N)
    if num_nan := int(scores_N.isnan().sum()):
        raise ValueError(f"{num_nan} of {len(scores_N)} scores are NaN: the policy has diverged")
    good, bad = scores_N[good_N].contiguous(), scores_N[~good_N].sort().values
    if not len(good) or not len(bad):
        return float("nan")
    below = torch.searchsorted(bad, good) + torch.searchsorted(bad, good, right=True)
    return float(below.double().mean() / 2 / len(bad))
