"""Losses and measures of preferences: rankings of K answers, pairs, DPO's implicit rewards.

Plackett-Luce, the likelihood of a whole ranking, trains the Starling reward model: Zhu, Jiao and
Jordan, arXiv:2301.11270 (MLE_K there; `pair_split` is their MLE_2, and with the mean over pairs it
is the loss of InstructGPT, arXiv:2203.02155). Bradley-Terry with a margin is that of Llama 2,
arXiv:2307.09288. DPO is arXiv:2305.18290. Departures: K may differ from ranking to ranking, and
terms are formed from score differences, so that scores of +-1e4 lose no precision.

Rankings are ragged: `scores_N` holds the answers of all rankings one after another, best first in
each, and `sizes` says how many each ranking has. Losses return the SUM over rankings (or pairs);
the caller divides by the number of rankings (pairs) in the optimizer step, over all micro-batches
and ranks.

Ties: Plackett-Luce has no likelihood for them. Order tied answers with `break_ties` and a seeded
generator, or give the losses the ranks: they then take the mean likelihood over all orders that
agree with the ranks (for a pair, the mean loss of both directions).

Shapes: N = answers of all rankings, B = rankings or pairs, K = answers of the longest ranking.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rayward.algorithms.sequence import (
    at_least_fp32,
    check_same_length,
    checked_lengths,
    pad_segments,
)


def plackett_luce(scores_N: Tensor, sizes: Sequence[int], ranks_N: Tensor | None = None) -> Tensor:
    """Sum over rankings of -log P(ranking) / (K - 1).

    P = prod_k exp s_k / sum_{j >= k} exp s_j, best first. K - 1 is the number of choices of a
    ranking: long ones do not weigh more; for K = 2 this is Bradley-Terry. Invariant to a shift of
    the scores of a ranking. `ranks_N` (rising in each ranking): equal ones are ties. ValueError:
    sizes that do not sum to N, or a ranking of fewer than 2 answers.
    """
    if ranks_N is not None:
        check_same_length(scores_N=scores_N, ranks_N=ranks_N)
        tied = [len(set(ranks.tolist())) < len(ranks) for ranks in ranks_N.split(list(sizes))]
        if any(tied):
            scores, ranks = scores_N.split(list(sizes)), ranks_N.split(list(sizes))
            losses = []
            for scores_K, ranks_K, is_tied in zip(scores, ranks, tied, strict=True):
                if is_tied:
                    losses.append(_tied(scores_K, ranks_K) / (len(scores_K) - 1))
                else:
                    losses.append(plackett_luce(scores_K, [len(scores_K)]))
            return torch.stack(losses).sum()
    scores_BK, sizes_B = _pad_rankings(scores_N, sizes)
    # Term k is logsumexp over j >= k of s_j - s_k. The diagonal (0) always takes part, so the rows
    # of padding come out as exactly 0 and nothing needs to be masked afterwards.
    differences_BKK = scores_BK[:, None, :] - scores_BK[:, :, None]
    diagonal_KK = torch.eye(scores_BK.shape[1], dtype=torch.bool, device=scores_BK.device)
    takes_part_BKK = _pair_mask(scores_BK, sizes_B) | diagonal_KK
    terms_BK = differences_BKK.masked_fill(~takes_part_BKK, -torch.inf).logsumexp(-1)
    return (terms_BK.sum(1) / (sizes_B - 1)).sum()


def _tied(scores_K: Tensor, ranks_K: Tensor) -> Tensor:
    """-log of the mean likelihood of one ranking over all orders of its ties.

    By recursion over the sets of answers that are placed: a group of m tied ones takes m 2^m
    additions.
    """
    scores_K = at_least_fp32(scores_K)
    loss, start = scores_K.new_zeros(()), 0
    # The groups of tied answers, best first; each is drawn from itself and all worse answers.
    for size in torch.unique_consecutive(ranks_K, return_counts=True)[1].tolist():
        left_K = scores_K[start:]
        # Log-probability of having placed a set of the group in any order: sets, since the factors
        # to come depend on who is left and not on the order, so m! orders become 2^m sets.
        log_likelihood: dict[frozenset[int], Tensor] = {frozenset(): scores_K.new_zeros(())}
        for _ in range(size):
            sums: dict[frozenset[int], list[Tensor]] = {}
            for placed, log_p in log_likelihood.items():
                remaining = [index for index in range(len(left_K)) if index not in placed]
                log_z = left_K[remaining].logsumexp(0)
                for index in range(size):
                    if index not in placed:
                        sums.setdefault(placed | {index}, []).append(log_p + left_K[index] - log_z)
            log_likelihood = {
                placed: torch.stack(terms).logsumexp(0) for placed, terms in sums.items()
            }
        (log_p,) = log_likelihood.values()
        # log m! makes the sum over the m! orders of the group their mean.
        loss, start = loss - log_p + math.lgamma(size + 1), start + size
    return loss


def pair_split(
    scores_N: Tensor, sizes: Sequence[int], ranks_N: Tensor | None = None, margin: float = 0.0
) -> Tensor:
    """Sum over rankings of the mean Bradley-Terry loss -log sigmoid(better - worse) of all pairs.

    A ranking has K (K - 1) / 2 pairs. All pairs of a ranking belong into one micro-batch: spread
    over steps, an answer is seen K - 1 times and the reward model overfits (InstructGPT). `ranks_N`
    (rising in each ranking) tell ties, and by how much one answer is better: `margin` times the
    difference of the ranks is the margin of a pair. ValueError as `plackett_luce`.
    """
    scores_BK, sizes_B = _pad_rankings(scores_N, sizes)
    better_minus_worse_BKK = scores_BK[:, :, None] - scores_BK[:, None, :]
    # softplus(-x) = -log sigmoid(x), and does not overflow where log(1 + exp(-x)) does.
    if ranks_N is None:
        loss_BKK = F.softplus(-better_minus_worse_BKK)
    else:
        check_same_length(scores_N=scores_N, ranks_N=ranks_N)
        ranks_BK = pad_segments(ranks_N.to(scores_BK.dtype), sizes)
        gap_BKK = ranks_BK[:, None, :] - ranks_BK[:, :, None]
        above_BKK = better_minus_worse_BKK - margin * gap_BKK
        # A tie: the mean of the losses of both directions, least where both scores are equal.
        both_BKK = (F.softplus(-better_minus_worse_BKK) + F.softplus(better_minus_worse_BKK)) / 2
        loss_BKK = torch.where(gap_BKK == 0, both_BKK, F.softplus(-above_BKK))
    loss_BKK = loss_BKK.masked_fill(~_pair_mask(scores_BK, sizes_B), 0.0)
    return (loss_BKK.sum((1, 2)) / (sizes_B * (sizes_B - 1) / 2)).sum()


def mean_over_pairs(
    scores_N: Tensor,
    sizes: Sequence[int],
    loss: Callable[[Tensor], Tensor],
    ranks_N: Tensor | None = None,
) -> Tensor:
    """Sum over rankings of the mean of loss(better - worse) over all pairs of a ranking.

    `loss` is of each difference by itself. `ranks_N` as in `pair_split`: a tied pair has the mean
    of the losses of both directions. ValueError as `plackett_luce`.
    """
    scores_BK, sizes_B = _pad_rankings(scores_N, sizes)
    better_minus_worse_BKK = scores_BK[:, :, None] - scores_BK[:, None, :]
    loss_BKK = loss(better_minus_worse_BKK)
    if ranks_N is not None:
        check_same_length(scores_N=scores_N, ranks_N=ranks_N)
        ranks_BK = pad_segments(ranks_N.to(scores_BK.dtype), sizes)
        both_BKK = (loss_BKK + loss(-better_minus_worse_BKK)) / 2
        loss_BKK = torch.where(ranks_BK[:, :, None] == ranks_BK[:, None, :], both_BKK, loss_BKK)
    loss_BKK = loss_BKK.masked_fill(~_pair_mask(scores_BK, sizes_B), 0.0)
    return (loss_BKK.sum((1, 2)) / (sizes_B * (sizes_B - 1) / 2)).sum()


def zero_sum_penalty(scores_N: Tensor, sizes: Sequence[int]) -> Tensor:
    """Sum over rankings of (sum of the ranking's scores)^2. ValueError as `plackett_luce`.

    It fixes the constant of the scores, which rankings leave open.
    """
    scores_BK, _ = _pad_rankings(scores_N, sizes)
    return scores_BK.sum(1).square().sum()


def implicit_rewards(logprobs_N: Tensor, reference_logprobs_N: Tensor, beta: float) -> Tensor:
    """beta * (log pi - log pi_ref) of each answer: the implicit reward of DPO, arXiv:2305.18290.

    Log-probs are sums over the tokens of an answer (`sequence.segment_sum`). DPO is `pair_split` of
    them; under `plackett_luce` it is the K-wise form of the paper's appendix. ValueError if the
    lengths differ.
    """
    check_same_length(logprobs_N=logprobs_N, reference_logprobs_N=reference_logprobs_N)
    return beta * (at_least_fp32(logprobs_N) - at_least_fp32(reference_logprobs_N))


def break_ties(ranks_K: Sequence[float], generator: torch.Generator) -> list[int]:
    """Indices of the answers of one ranking, best (lowest rank) first; ties in a random order.

    The draw depends on the generator's state alone; seed it from (run seed, epoch, row) to get the
    same order after a resume. Uniform over all orders that agree with the ranks.
    """
    shuffled = torch.randperm(len(ranks_K), generator=generator).tolist()
    # Stable: ties keep the shuffled order.
    return sorted(shuffled, key=lambda answer: ranks_K[answer])


@torch.no_grad()
def pair_accuracy(scores_N: Tensor, sizes: Sequence[int], ranks_N: Tensor) -> tuple[float, int]:
    """(pairs ordered as the ranks say, pairs), over all pairs of untied rank.

    Equal scores count one half. Lower ranks are better. Sum both numbers over batches before
    dividing. ValueError as `plackett_luce`.
    """
    score_signs_BKK, rank_signs_BKK = _pair_signs(scores_N, sizes, ranks_N)
    agreement_BKK = score_signs_BKK * rank_signs_BKK
    untied_BKK = rank_signs_BKK != 0
    correct = (agreement_BKK > 0).sum() + 0.5 * ((score_signs_BKK == 0) & untied_BKK).sum()
    return float(correct), int(untied_BKK.sum())


@torch.no_grad()
def kendall_tau(scores_N: Tensor, sizes: Sequence[int], ranks_N: Tensor) -> Tensor:
    """Kendall's tau-b between the scores and the ranks of each ranking: fp32 [B].

    1 = same order, -1 = reversed. Tau-b (Kendall 1945) corrects for ties on either side, as
    `scipy.stats.kendalltau`, here of all rankings at once. A ranking whose scores, or whose ranks,
    are all tied says nothing and gets 0. Ranks as in `pair_accuracy`.
    """
    score_signs_BKK, rank_signs_BKK = _pair_signs(scores_N, sizes, ranks_N)
    agreement_B = (score_signs_BKK * rank_signs_BKK).sum((1, 2))
    # The product under tau-b's root: pairs without ties in the scores, times those in the ranks.
    untied_B = score_signs_BKK.abs().sum((1, 2)) * rank_signs_BKK.abs().sum((1, 2))
    return torch.where(untied_B == 0, 0.0, agreement_B / untied_B.clamp(min=1.0).sqrt()).float()


def _pad_rankings(scores_N: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    check_same_length(scores_N=scores_N)
    checked = checked_lengths(sizes, len(scores_N), what="answers", minimum=2)
    sizes_B = torch.tensor(checked, dtype=torch.int64, device=scores_N.device)
    return pad_segments(at_least_fp32(scores_N), checked), sizes_B


def _pair_mask(scores_BK: Tensor, sizes_B: Tensor) -> Tensor:
    """True at [b, j, k] where j is before k and both are answers of ranking b."""
    position_K = torch.arange(scores_BK.shape[1], device=scores_BK.device)
    return (position_K[:, None] < position_K[None, :]) & (position_K < sizes_B[:, None])[:, None, :]


def _pair_signs(scores_N: Tensor, sizes: Sequence[int], ranks_N: Tensor) -> tuple[Tensor, Tensor]:
    """Of each pair j < k of a ranking: sign of s_j - s_k; 1 if j ranks better, -1 worse, 0 tied."""
    # The sign of NaN is 0: a broken reward model would look like one that is right half of the
    # time.
    if num_nan := int(scores_N.isnan().sum()):
        raise ValueError(
            f"{num_nan} of {len(scores_N)} scores are NaN: the reward model has diverged"
        )
    scores_BK, sizes_B = _pad_rankings(scores_N, sizes)
    mask_BKK = _pair_mask(scores_BK, sizes_B)
    score_signs_BKK = (
        (scores_BK[:, :, None] - scores_BK[:, None, :]).sign().masked_fill(~mask_BKK, 0.0)
    )
    check_same_length(scores_N=scores_N, ranks_N=ranks_N)
    ranks_BK = pad_segments(ranks_N.to(scores_BK.dtype), sizes)
    rank_signs_BKK = (
        (ranks_BK[:, None, :] - ranks_BK[:, :, None]).sign().masked_fill(~mask_BKK, 0.0)
    )
    return score_signs_BKK, rank_signs_BKK
