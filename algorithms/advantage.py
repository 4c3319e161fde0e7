"""From scores to advantages: KL estimators, token rewards, running moments, GAE, group baselines.

The estimators k1, k2 and k3 are those of John Schulman (joschu.net/blog/kl-approx.html); the
KL-shaped reward and the adaptive coefficient those of Ziegler et al., arXiv:1909.08593; GAE is
arXiv:1506.02438; RLOO is arXiv:2402.14740 and GRPO arXiv:2402.03300 (without the division by the
deviation: Dr. GRPO, arXiv:2503.20783); REINFORCE++ (arXiv:2501.03262) whitens plain returns.
Running moments are the parallel update of Chan et al. (1979). Departures: statistics never see
padding, for there is none, and they are meant for the whole batch: call `whiten` and
`RunningMoments.update` once with the tokens or scores of all ranks. Whitened per micro-batch, the
algorithm would change with the batch size.

Nothing here is differentiated: rewards, advantages and returns are constants of the optimizer
steps.

Shapes: N = tokens, B = sequences, T = longest sequence, G = prompts, K = most samples of a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from rayward.algorithms.sequence import (
    at_least_fp32,
    check_same_length,
    checked_lengths,
    pad_segments,
    unpad_segments,
)

# exp(20) = 5e8 is finite in every dtype; a log-ratio beyond it comes from a fault, not from
# learning.
MAX_LOG_RATIO = 20.0


# ------------------------------------------------------------------------------------
# KL(policy || reference) per token, from samples of the policy


def kl_k1(logprobs_N: Tensor, ref_logprobs_N: Tensor) -> Tensor:
    """log policy - log reference: unbiased, noisy, of either sign. The estimator for the reward."""
    check_same_length(logprobs_N=logprobs_N, ref_logprobs_N=ref_logprobs_N)
    return at_least_fp32(logprobs_N) - at_least_fp32(ref_logprobs_N)


def kl_k2(logprobs_N: Tensor, ref_logprobs_N: Tensor) -> Tensor:
    """Half of the squared log-ratio: biased, low variance; on-policy its gradient is the KL's."""
    return kl_k1(logprobs_N, ref_logprobs_N).square() / 2


def kl_k3(logprobs_N: Tensor, ref_logprobs_N: Tensor) -> Tensor:
    """r - 1 - log r with r = reference / policy: unbiased, never negative. The estimator for logs.

    The log-ratio is clamped to +-20 before exp; the value itself is not clamped, which would bias
    it.
    """
    log_r_N = (-kl_k1(logprobs_N, ref_logprobs_N)).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    # expm1 keeps the digits that exp(x) - 1 loses near 0, where trainer and engine differ by 1e-6.
    return log_r_N.expm1() - log_r_N


# ------------------------------------------------------------------------------------
# Rewards


def scale_scores(
    scores_B: Tensor, std: float = 1.0, clip: float | None = None, clip_first: bool = True
) -> Tensor:
    """Scores divided by the running `std` and clamped to +-`clip`.

    trlx and Starling clip first, APA divides first. DeepSpeed-Chat is clip=5 with std=1. A std
    below 1e-8 (all scores equal so far) does not divide: a constant has no scale. ValueError if
    `clip` is not positive.
    """
    if clip is not None and clip <= 0:
        raise ValueError(f"clip is {clip}, but must be > 0: use None for no clipping")
    scores_B = at_least_fp32(scores_B)
    divisor = std if std > 1e-8 else 1.0
    if clip is None:
        return scores_B / divisor
    if clip_first:
        return scores_B.clamp(-clip, clip) / divisor
    return (scores_B / divisor).clamp(-clip, clip)


def missing_eos_scores(scores_B: Tensor, finished_B: Tensor, score: float = -1.0) -> Tensor:
    """`score` in place of the reward model's where a response was cut before its stop token.

    A reward model has never seen cut text, and the policy would learn to exploit that (AlpacaFarm,
    arXiv:2305.14387). `finished_B` is bool. Apply it after any scaling, so that the penalty keeps
    its size.
    """
    check_same_length(scores_B=scores_B, finished_B=finished_B)
    return torch.where(finished_B, scores_B, torch.full_like(scores_B, score))


def shape_rewards(scores_B: Tensor, kl_N: Tensor, lengths: Sequence[int], kl_coef: float) -> Tensor:
    """Reward per token: -kl_coef * kl, plus the score of the sequence at its last token. fp32 [N].

    `kl_N` is k1 for the usual reward. ValueError: lengths that do not sum to N, an empty sequence
    (it has no token that could carry the score), or a number of scores other than that of lengths.
    """
    check_same_length(kl_N=kl_N)
    checked = checked_lengths(lengths, len(kl_N), minimum=1)
    if scores_B.shape != (len(checked),):
        shape = list(scores_B.shape)
        raise ValueError(
            f"scores of shape {shape} for {len(checked)} sequences: pass one score each"
        )
    rewards_N = -kl_coef * at_least_fp32(kl_N)
    # From lengths, never from a search for the pad token: where pad equals EOS that search loses
    # the EOS.
    last_B = torch.tensor(checked, device=kl_N.device).cumsum(0) - 1
    return rewards_N.index_add(0, last_B, scores_B.to(rewards_N.dtype)).detach()


class RunningMoments:
    """Mean and standard deviation of all scores seen so far; `state_dict` is what it remembers.

    `mean`, `std` (of a sample, unbiased) and `count`. Until two scores were seen std stays 1.
    """

    def __init__(self) -> None:
        self.mean = 0.0
        self.var = 1.0
        # Not 0: the first update then needs no special case, and forgets mean and var.
        self.count = 1e-24

    @property
    def std(self) -> float:
        # `var` is a mean of squares, as the merge below needs it; this makes it that of a sample.
        return math.sqrt(self.var * self.count / (self.count - 1.0)) if self.count > 1.0 else 1.0

    def update(self, scores_B: Tensor) -> tuple[float, float]:
        """Takes in one batch (of all ranks), returns the new (mean, std). An empty batch changes
        nothing.

        ValueError for scores that are not finite: they would spoil the statistics for the rest of
        the run.
        """
        num_bad = int((~scores_B.isfinite()).sum())
        if num_bad:
            raise ValueError(
                f"{num_bad} of {len(scores_B)} scores are not finite: drop them, find the cause"
            )
        if len(scores_B) == 0:
            return self.mean, self.std
        # fp64: the sums run over a whole run, and are kept as Python floats.
        scores_B = scores_B.double()
        batch_count = len(scores_B)
        batch_var, batch_mean = (float(moment) for moment in torch.var_mean(scores_B, correction=0))
        delta, total = batch_mean - self.mean, self.count + batch_count
        # Chan et al.: the spread within both sets, and that between their means.
        between = delta**2 * self.count * batch_count / total
        self.var = (self.var * self.count + between + batch_var * batch_count) / total
        self.mean += delta * batch_count / total
        self.count = total
        return self.mean, self.std

    def state_dict(self) -> dict[str, float]:
        return {"mean": self.mean, "var": self.var, "count": self.count}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from a `state_dict`."""
        self.mean, self.var, self.count = state["mean"], state["var"], state["count"]


class AdaptiveKL:
    """KL coefficient that follows a target: coef *= 1 + clip(kl / target - 1, +-0.2) * n / horizon.

    n is the number of new sequences, and +-0.2 is the bound of Ziegler et al.
    `target` and the KL given to `update` are in nats per sequence (summed over its tokens, averaged
    over sequences), not per token; `horizon` counts sequences. ValueError unless both are > 0.
    """

    def __init__(self, coef: float, target: float, horizon: int) -> None:
        if target <= 0 or horizon <= 0:
            raise ValueError(
                f"target is {target}, horizon {horizon}: both must be > 0 (usually 6 and 10000)"
            )
        self.coef = coef
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, num_sequences: int) -> float:
        """Takes in the mean KL of `num_sequences` new sequences, returns the new coefficient."""
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.coef *= 1.0 + error * num_sequences / self.horizon
        return self.coef


# ------------------------------------------------------------------------------------
# Advantages


@torch.no_grad()
def gae(
    rewards_N: Tensor,
    values_N: Tensor,
    lengths: Sequence[int],
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: (advantages_N, returns_N), fp32.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}, with V = A = 0 after
    the last token, whether the response ended by itself or was cut. `values_N[t]` is read at the
    state BEFORE token t. Returns are A + V, of advantages that are not whitened yet. ValueError if
    lengths do not sum to N.
    """
    check_same_length(rewards_N=rewards_N, values_N=values_N)
    # Zeros after the end are already the boundary condition, so the recursion needs no mask.
    # Time first and contiguous: a step of the recursion then reads one row of all sequences.
    rewards_TB = pad_segments(at_least_fp32(rewards_N), lengths).T.contiguous()
    values_TB = pad_segments(at_least_fp32(values_N), lengths).T.contiguous()
    next_values_TB = torch.cat([values_TB[1:], torch.zeros_like(values_TB[:1])])
    # The deltas at first. The last row is its own advantage already, so the loop starts above it.
    advantages_TB = rewards_TB + gamma * next_values_TB - values_TB
    for t in range(len(advantages_TB) - 2, -1, -1):
        advantages_TB[t] += gamma * lam * advantages_TB[t + 1]
    advantages_N = unpad_segments(advantages_TB.T, lengths)
    return advantages_N, advantages_N + at_least_fp32(values_N)


def returns_to_go(rewards_N: Tensor, lengths: Sequence[int], gamma: float = 1.0) -> Tensor:
    """G_t = r_t + gamma G_{t+1}, the discounted sum of the rewards from each token on: fp32 [N].

    REINFORCE++ (arXiv:2501.03262) takes it as the advantage, whitened over the whole batch, with
    the KL in the rewards and without a value function. ValueError if lengths do not sum to N.
    """
    # With V = 0 and lambda = 1 the deltas are the rewards, and their discounted sum the return.
    return gae(rewards_N, torch.zeros_like(rewards_N), lengths, gamma, lam=1.0)[1]


@torch.no_grad()
def whiten(x_N: Tensor, shift_mean: bool = True) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8) with the unbiased variance; `shift_mean=False` keeps the mean.

    Rewards keep theirs, advantages do not. Over all of `x_N`: pass the tokens of the whole batch.
    Fewer than two numbers have no variance and count as equal to their mean.
    """
    x_N = at_least_fp32(x_N)
    if x_N.numel() < 2:
        return torch.zeros_like(x_N) if shift_mean else x_N.clone()
    var, mean = torch.var_mean(x_N, correction=1)
    whitened_N = (x_N - mean) * torch.rsqrt(var + 1e-8)
    return whitened_N if shift_mean else whitened_N + mean


@torch.no_grad()
def group_baseline(
    scores_B: Tensor, group_sizes: Sequence[int], kind: Literal["rloo", "grpo", "dr_grpo"]
) -> Tensor:
    """Advantage of each sample over the others of its prompt: fp32 [B], one number per sequence.

    "rloo": score - mean of the OTHER samples; "dr_grpo": score - mean of the group; "grpo": that
    divided by the group's unbiased standard deviation + 1e-6. The samples of a prompt are
    consecutive. A group of one, or one whose scores are all equal, teaches nothing: exactly 0.
    ValueError: sizes that do not sum to B or below 1, unknown kind.
    """
    if kind not in ("rloo", "grpo", "dr_grpo"):
        raise ValueError(f"kind is {kind!r}, but must be 'rloo', 'grpo' or 'dr_grpo'")
    sizes = checked_lengths(group_sizes, len(scores_B), what="samples", minimum=1)
    scores_GK = pad_segments(at_least_fp32(scores_B), sizes)
    size_G = torch.tensor(sizes, dtype=scores_GK.dtype, device=scores_B.device)
    inside_GK = torch.arange(scores_GK.shape[1], device=scores_B.device) < size_G[:, None]
    # Padding is 0 in the sum, but would be -mean after the subtraction: hence the mask.
    centred_GK = (scores_GK - (scores_GK.sum(1) / size_G)[:, None]) * inside_GK
    # A group of one has centred scores of 0: divided by 1 instead of by 0 they stay so.
    others_G = (size_G - 1).clamp(min=1)
    if kind == "rloo":
        # score - mean of the others = (score - mean of all) * K / (K - 1).
        centred_GK = centred_GK * (size_G / others_G)[:, None]
    elif kind == "grpo":
        centred_GK = centred_GK / ((centred_GK.square().sum(1) / others_G).sqrt() + 1e-6)[:, None]
    # The mean of equal scores is off by a rounding error, which the division by 1e-6 would blow up.
    all_equal_G = ((scores_GK == scores_GK[:, :1]) | ~inside_GK).all(1)
    return unpad_segments(centred_GK.masked_fill(all_equal_G[:, None], 0.0), sizes)
