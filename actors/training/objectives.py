"""What `dpo.objective` makes of the log-probs of answers: their scores, and the loss of rankings.

KTO's loss, which is of single answers, is in actors/training/labels.py.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rayward.actors.training.engine import MetricSums
from rayward.actors.training.rankings import RankedRows, ranking_loss
from rayward.algorithms.objectives import ipo, length_average, log_odds, orpo, simpo
from rayward.algorithms.preference import implicit_rewards, pair_accuracy
from rayward.configs.sections.training import Dpo


def tokens_of(rankings: RankedRows) -> list[int]:
    """Tokens of each answer."""
    answers = rankings.answers
    return [int(answers[row].sum()) for row in range(len(answers))]


def reference_of(rankings: RankedRows, device: torch.device) -> Tensor:
    """[N] log-probs by the reference, which the loop has put into the rows."""
    assert rankings.reference is not None
    return torch.from_numpy(rankings.reference).to(device)


def answer_scores(settings: Dpo, logprobs_N: Tensor, rankings: RankedRows) -> Tensor:
    """[N] how good the policy takes each answer to be, in units in which its loss compares them.

    `logprobs_N`: of whole answers. Implicit rewards; of SimPO beta times the mean log-prob of a
    token, of ORPO the log odds.
    """
    device = logprobs_N.device
    tokens_N = torch.tensor(tokens_of(rankings), device=device)
    match settings.objective:
        case "simpo":
            return settings.simpo.beta * length_average(logprobs_N, tokens_N)
        case "orpo":
            return log_odds(length_average(logprobs_N, tokens_N))
    rewards_N = implicit_rewards(logprobs_N, reference_of(rankings, device), settings.beta)
    if settings.objective == "ipo" and settings.ipo.length_average:
        return length_average(rewards_N, tokens_N)
    return rewards_N


def objective_loss(
    settings: Dpo, logprobs_N: Tensor, rankings: RankedRows
) -> tuple[Tensor, MetricSums]:
    """Sum over rankings of the objective's loss, and sums to report. On no rankings it is 0."""
    scores_N = answer_scores(settings, logprobs_N, rankings)
    parts: MetricSums = {}
    if settings.objective == "dpo":
        loss, pairs = ranking_loss(settings, scores_N, rankings)
    else:
        sizes = rankings.sizes.tolist()
        ranks_N = torch.from_numpy(rankings.ranks).to(scores_N.device)
        correct, count = pair_accuracy(scores_N.detach(), sizes, ranks_N)
        pairs = {"correct_sum": correct, "pairs_sum": float(count)}
        ties_N = ranks_N if settings.ties == "average" else None
        match settings.objective:
            case "ipo":
                # The loss is of log-ratios, of which the rewards are beta times as much.
                loss = ipo(scores_N / settings.beta, sizes, settings.beta, ties_N)
            case "simpo":
                loss = simpo(scores_N, sizes, settings.simpo.gamma, ties_N)
            case "orpo":
                tokens_N = torch.tensor(tokens_of(rankings), device=scores_N.device)
                sft, odds = orpo(length_average(logprobs_N, tokens_N), sizes, ties_N)
                loss = sft + settings.orpo.lam * odds
                parts = {"sft_loss_sum": float(sft.detach()), "odds_loss_sum": float(odds.detach())}
            case name:
                raise ValueError(f"{name} is no objective of rankings")
    return loss, pairs | _ends(settings, logprobs_N, rankings) | parts


def _ends(settings: Dpo, logprobs_N: Tensor, rankings: RankedRows) -> MetricSums:
    """Of the best and the worst answer of each ranking: how far they moved from the reference, in
    nats; without a reference, their mean log-prob of a token.
    """
    if settings.needs_reference:
        values_N = logprobs_N.detach() - reference_of(rankings, logprobs_N.device)
        name = "moved"
    else:
        tokens_N = torch.tensor(tokens_of(rankings), device=logprobs_N.device)
        values_N, name = length_average(logprobs_N.detach(), tokens_N), "logprob"
    values = values_N.cpu().numpy()
    ends = np.cumsum(rankings.sizes)
    return {
        f"best_{name}_sum": float(values[ends - rankings.sizes].sum()),
        f"worst_{name}_sum": float(values[ends - 1].sum()),
    }
