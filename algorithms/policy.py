"""Losses of policy and critic: PPO with clipping, GSPO, CISPO, APA, AWR, a KL loss, the value loss.

PPO is arXiv:1707.06347, with the value clipping usual for language models; dual clip is
arXiv:1912.09729; truncated importance weights correct for a rollout engine whose log-probs differ
from the trainer's (IMPALA's rho-bar, arXiv:1802.01561). GSPO is arXiv:2507.18071, CISPO
arXiv:2506.13585 (MiniMax-M1). APA is arXiv:2306.02231 (Zhu et al., 2023),
and AWR, arXiv:1910.00177, is what that paper compares with. Departures: log-ratios and exponents
are clamped before exp. From the code published with APA: no padding takes part, and the anchor is
an argument (the paper and its code use the initial policy, Starling the rollout policy). GSPO and
CISPO average over the answers or tokens of a prompt first; the caller here over those of all
prompts of the optimizer step at once.

All losses take the flat response tokens of a micro-batch and return (SUM over tokens, diagnostics);
the caller divides by the number of response tokens in the optimizer step, over all micro-batches
and ranks. Diagnostics are 0-d tensors without gradient, left on their device: names that end in
`_sum` are to be added up over micro-batches and divided like the loss, those that end in `_max` are
to be maximised. Only the current `logprobs_N` and `values_N` carry a gradient; everything else is
detached here.

Shapes: N = response tokens, B = answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rayward.algorithms.advantage import MAX_LOG_RATIO, kl_k2, kl_k3
from rayward.algorithms.sequence import (
    at_least_fp32,
    check_same_length,
    checked_lengths,
    segment_sum,
)

Diagnostics = dict[str, Tensor]


def ppo_clip(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    clip: float = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    weights_N: Tensor | None = None,
) -> tuple[Tensor, Diagnostics]:
    """Sum of max(-A rho, -A clamp(rho, 1 - clip, 1 + clip_high)), rho = exp(logprobs - old).

    The log-ratio is clamped to +-20 before exp. `clip_high` defaults to `clip`. `dual_clip`
    (usually 3) bounds the term of a negative advantage by -A * dual_clip. `weights_N` multiplies
    each token's term (`truncated_importance_weights`). Diagnostics: `clipfrac_sum` (tokens whose
    clipped term is the larger), `approx_kl_sum` (k3 of KL(old || current)), `ratio_max`,
    `inverse_ratio_max` (of 1 / rho). ValueError: lengths that differ, clip outside of (0, 1),
    clip_high <= 0, dual_clip <= 1.
    """
    check_same_length(
        logprobs_N=logprobs_N, old_logprobs_N=old_logprobs_N, advantages_N=advantages_N
    )
    if not 0.0 < clip < 1.0 or (clip_high is not None and clip_high <= 0.0):
        raise ValueError(
            f"clip is {clip} and clip_high {clip_high}, but need 0 < clip < 1 and clip_high > 0"
        )
    if dual_clip is not None and dual_clip <= 1.0:
        raise ValueError(f"dual_clip is {dual_clip}, but must be > 1, usually 3")
    logprobs_N, old_logprobs_N = at_least_fp32(logprobs_N), at_least_fp32(old_logprobs_N.detach())
    advantages_N = at_least_fp32(advantages_N.detach())

    log_ratio_N = _log_ratio(logprobs_N, old_logprobs_N)
    ratio_N = log_ratio_N.exp()
    clipped_ratio_N = ratio_N.clamp(1.0 - clip, 1.0 + (clip if clip_high is None else clip_high))
    plain_N, clipped_N = -advantages_N * ratio_N, -advantages_N * clipped_ratio_N
    # The larger loss is the pessimistic one: a ratio outside of the bounds has no gradient where it
    # would gain from going on, and keeps it where it has to come back.
    terms_N = torch.maximum(plain_N, clipped_N)
    if dual_clip is not None:
        # With A < 0 the plain term grows with the ratio without a bound.
        terms_N = torch.where(
            advantages_N < 0, torch.minimum(terms_N, -advantages_N * dual_clip), terms_N
        )
    diagnostics = {
        "clipfrac_sum": (clipped_N > plain_N).sum().float(),
        **_ratio_diagnostics(logprobs_N, old_logprobs_N),
    }
    return _weighted_sum(terms_N, weights_N), diagnostics


def gspo(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    lengths: Sequence[int],
    clip: float = 3e-4,
    clip_high: float = 4e-4,
    weights_N: Tensor | None = None,
) -> tuple[Tensor, Diagnostics]:
    """Sum over ANSWERS of max(-A s, -A clamp(s, 1 - clip, 1 + clip_high)), where s is the exp of
    the mean of an answer's log-ratios (arXiv:2507.18071, equation 5).

    `lengths` are the tokens of each answer, whole and in order. The paper's loss is the mean over
    answers, so this sum has to be divided by their number, not by that of tokens. An answer's
    tokens share its advantage; where they do not, its term is the mean over them (GSPO-token
    without a ratio of its own for each token). `weights_N` as in `ppo_clip`, an answer's being the
    mean of its tokens'. Diagnostics as in `ppo_clip`, of the answers' ratios: `clipfrac_sum` counts
    the tokens of clipped answers; `approx_kl_sum` stays that of tokens. ValueError: lengths that do
    not sum to N, an empty answer, and as in `ppo_clip`.
    """
    tokens = check_same_length(
        logprobs_N=logprobs_N, old_logprobs_N=old_logprobs_N, advantages_N=advantages_N
    )
    checked = checked_lengths(lengths, tokens, minimum=1)
    logprobs_N, old_logprobs_N = at_least_fp32(logprobs_N), at_least_fp32(old_logprobs_N.detach())
    lengths_B = torch.tensor(checked, dtype=torch.int64, device=logprobs_N.device)
    # The mean of differences, for the bounds are finer than what is left of a difference of means.
    mean_B = segment_sum(logprobs_N - old_logprobs_N, checked) / lengths_B
    # Each token has its answer's ratio, and the share of one token in its answer's term.
    mean_N = mean_B.repeat_interleave(lengths_B, output_size=tokens)
    share_N = lengths_B.to(mean_B.dtype).reciprocal()
    share_N = share_N.repeat_interleave(lengths_B, output_size=tokens)
    if weights_N is not None:
        check_same_length(logprobs_N=logprobs_N, weights_N=weights_N)
        share_N = share_N * weights_N.detach()
    loss, diagnostics = ppo_clip(
        mean_N, torch.zeros_like(mean_N), advantages_N, clip, clip_high, weights_N=share_N
    )
    approx_kl = _ratio_diagnostics(logprobs_N, old_logprobs_N)["approx_kl_sum"]
    return loss, diagnostics | {"approx_kl_sum": approx_kl}


def cispo(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    clip_high: float,
    weights_N: Tensor | None = None,
) -> tuple[Tensor, Diagnostics]:
    """Sum of -min(rho, 1 + clip_high) A logprobs, rho = exp(logprobs - old) without a gradient
    (arXiv:2506.13585, equations 4 and 5, whose lower bound the authors leave open).

    A token beyond the bound keeps the gradient of its log-prob, which PPO's clip would take away;
    its weight grows no further. Divided by the number of tokens, as in the paper. `weights_N` and
    diagnostics as in `ppo_clip`; `clipfrac_sum` counts the tokens beyond the bound. ValueError:
    lengths that differ, clip_high <= 0.
    """
    check_same_length(
        logprobs_N=logprobs_N, old_logprobs_N=old_logprobs_N, advantages_N=advantages_N
    )
    if clip_high <= 0.0:
        raise ValueError(f"clip_high is {clip_high}, but must be > 0")
    logprobs_N, old_logprobs_N = at_least_fp32(logprobs_N), at_least_fp32(old_logprobs_N.detach())
    ratio_N = _log_ratio(logprobs_N.detach(), old_logprobs_N).exp()
    terms_N = -ratio_N.clamp(max=1.0 + clip_high) * at_least_fp32(advantages_N.detach())
    diagnostics = {
        "clipfrac_sum": (ratio_N > 1.0 + clip_high).sum().float(),
        **_ratio_diagnostics(logprobs_N, old_logprobs_N),
    }
    return _weighted_sum(terms_N * logprobs_N, weights_N), diagnostics


def value_loss(
    values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, clip: float | None = 0.2
) -> tuple[Tensor, Diagnostics]:
    """Sum of max((V - R)^2, (clamp(V, V_old +- clip) - R)^2) / 2.

    Of (V - R)^2 / 2 if `clip` is None. Diagnostics: `value_clipfrac_sum` (tokens whose clipped term
    is the larger). ValueError: lengths that differ, clip <= 0.
    """
    check_same_length(values_N=values_N, old_values_N=old_values_N, returns_N=returns_N)
    if clip is not None and clip <= 0.0:
        raise ValueError(f"clip is {clip}, but must be > 0: use None for no clipping")
    values_N, old_values_N = at_least_fp32(values_N), at_least_fp32(old_values_N.detach())
    returns_N = at_least_fp32(returns_N.detach())
    plain_N = (values_N - returns_N).square()
    if clip is None:
        return plain_N.sum() / 2, {"value_clipfrac_sum": torch.zeros((), device=values_N.device)}
    # A value that left the interval towards its return has no gradient: the larger error is
    # clipped.
    clipped_N = (values_N.clamp(old_values_N - clip, old_values_N + clip) - returns_N).square()
    diagnostics = {"value_clipfrac_sum": (clipped_N > plain_N).sum().float()}
    return torch.maximum(plain_N, clipped_N).sum() / 2, diagnostics


def apa(
    logprobs_N: Tensor,
    anchor_logprobs_N: Tensor,
    advantages_N: Tensor,
    lam: float,
    weights_N: Tensor | None = None,
) -> tuple[Tensor, Diagnostics]:
    """Sum of (logprobs - advantages / lam - anchor)^2, the squared error of arXiv:2306.02231.

    Its minimum is the policy proportional to anchor * exp(advantage / lam), if that is normalised
    already; large lam stays close to the anchor. With lam = 0.1 and whitened advantages the target
    of good tokens is a log-prob above 0, out of reach: then the loss never falls to 0, and small
    steps are what keeps it sane. `weights_N` multiplies each token's term, as in `ppo_clip`.
    Diagnostics: `unreachable_sum` (tokens with such a target), `target_max`, and `progress_sum`,
    the part of the wanted change that was made: (logprobs - anchor) / (advantages / lam), clamped
    to [-1, 1]. ValueError: lengths that differ, lam <= 0.
    """
    check_same_length(
        logprobs_N=logprobs_N, anchor_logprobs_N=anchor_logprobs_N, advantages_N=advantages_N
    )
    if lam <= 0.0:
        raise ValueError(f"lam is {lam}, but must be > 0 (0.1 in the paper's runs, 1 in Starling)")
    logprobs_N, anchor_N = at_least_fp32(logprobs_N), at_least_fp32(anchor_logprobs_N.detach())
    scaled_advantages_N = at_least_fp32(advantages_N.detach()) / lam
    # No normaliser Z(s) of the target: the paper takes it as 1, too.
    terms_N = (logprobs_N - scaled_advantages_N - anchor_N).square()
    target_N = scaled_advantages_N + anchor_N
    log_ratio_N = logprobs_N.detach() - anchor_N
    # A token with an advantage of 0 wants no change: 0 instead of 0 / 0.
    progress_N = torch.where(scaled_advantages_N == 0, 0.0, log_ratio_N / scaled_advantages_N)
    diagnostics = {
        "unreachable_sum": (target_N > 0).sum().float(),
        "target_max": _max_or_floor(target_N, floor=-math.inf),
        "progress_sum": progress_N.clamp(-1.0, 1.0).sum(),
    }
    return _weighted_sum(terms_N, weights_N), diagnostics


def awr(
    logprobs_N: Tensor,
    advantages_N: Tensor,
    coef: float,
    max_weight: float = 20.0,
    weights_N: Tensor | None = None,
) -> tuple[Tensor, Diagnostics]:
    """Sum of -min(exp(coef * advantages), max_weight) * logprobs, advantage-weighted regression.

    `coef` is 1 / lambda (0.5 for HH, 1 for TL;DR in the APA paper's code, which has no bound on the
    weight). Its minimum is the policy proportional to the sampling policy * exp(coef * advantage).
    `weights_N` multiplies each token's term besides, as in `ppo_clip`. Diagnostics, without them:
    `weight_sum`, `capped_sum` (tokens at the bound). ValueError: lengths that differ, max_weight <=
    0.
    """
    check_same_length(logprobs_N=logprobs_N, advantages_N=advantages_N)
    if max_weight <= 0.0:
        raise ValueError(f"max_weight is {max_weight}, but must be > 0 (20 in the AWR paper)")
    exponents_N = coef * at_least_fp32(advantages_N.detach())
    # The bound goes on the exponent: min(exp(x), bound) would pass through inf.
    regression_weights_N = exponents_N.clamp(max=math.log(max_weight)).exp()
    diagnostics = {
        "weight_sum": regression_weights_N.sum(),
        "capped_sum": (exponents_N > math.log(max_weight)).sum().float(),
    }
    terms_N = -regression_weights_N * at_least_fp32(logprobs_N)
    return _weighted_sum(terms_N, weights_N), diagnostics


def kl_loss(
    logprobs_N: Tensor, ref_logprobs_N: Tensor, weights_N: Tensor | None = None
) -> tuple[Tensor, Diagnostics]:
    """Sum of k2 = (logprobs - ref)^2 / 2, whose gradient on-policy is that of KL(policy || ref).

    That is the KL of the next token in the states that were visited; unlike KL in the reward it
    does not see that a token also leads to states where the two differ. `weights_N` as in
    `ppo_clip`. Diagnostics: `kl_loss_sum`. ValueError: lengths that differ.
    """
    loss = _weighted_sum(kl_k2(logprobs_N, ref_logprobs_N.detach()), weights_N)
    return loss, {"kl_loss_sum": loss.detach()}


@torch.no_grad()
def truncated_importance_weights(
    old_trainer_logprobs_N: Tensor, rollout_logprobs_N: Tensor, cap: float = 2.0
) -> Tensor:
    """min(pi_trainer,old / pi_rollout, cap) per token, a constant for the `weights_N` of a loss.

    Both log-probs are of the same weights, computed by the trainer and by the rollout engine; their
    ratio has nothing to do with the PPO ratio. A token whose log-prob is not finite on either side
    gets weight 0: it is left out. ValueError: lengths that differ, cap <= 0.
    """
    check_same_length(
        old_trainer_logprobs_N=old_trainer_logprobs_N, rollout_logprobs_N=rollout_logprobs_N
    )
    if cap <= 0.0:
        raise ValueError(f"cap is {cap}, but must be > 0 (usually 2)")
    log_ratio_N = at_least_fp32(old_trainer_logprobs_N) - at_least_fp32(rollout_logprobs_N)
    weights_N = log_ratio_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp().clamp(max=cap)
    # A where, not a product: NaN * 0 is NaN.
    return torch.where(log_ratio_N.isfinite(), weights_N, 0.0)


@torch.no_grad()
def mismatch(trainer_logprobs_N: Tensor, rollout_logprobs_N: Tensor) -> dict[str, float]:
    """How far the log-probs of trainer and rollout engine are apart on the same tokens and weights.

    `mismatch_mean` and `mismatch_max` of |gap| in nats; `mismatch_k3` estimates KL(rollout ||
    trainer), for the samples are the rollout engine's; `mismatch_factor` is the mean of exp(|gap|),
    the token-multiplied probability error of NeMo RL, 1 where both agree. A gap that is not finite
    shows up as such in the first two. ValueError: lengths that differ, no tokens.
    """
    num_tokens = check_same_length(
        trainer_logprobs_N=trainer_logprobs_N, rollout_logprobs_N=rollout_logprobs_N
    )
    if num_tokens == 0:
        raise ValueError("0 tokens to compare, but at least 1 is needed: skip the empty batch")
    # fp64, for k3 of gaps of 1e-7 is lost in the rounding of fp32.
    trainer_N, rollout_N = trainer_logprobs_N.double(), rollout_logprobs_N.double()
    gap_N = (trainer_N - rollout_N).abs()
    return {
        "mismatch_mean": float(gap_N.mean()),
        "mismatch_max": float(gap_N.max()),
        "mismatch_k3": float(kl_k3(rollout_N, trainer_N).mean()),
        "mismatch_factor": float(gap_N.clamp(max=MAX_LOG_RATIO).exp().mean()),
    }


def _log_ratio(logprobs_N: Tensor, old_logprobs_N: Tensor) -> Tensor:
    return (logprobs_N - old_logprobs_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


@torch.no_grad()
def _ratio_diagnostics(logprobs_N: Tensor, old_logprobs_N: Tensor) -> Diagnostics:
    """What `ppo_clip` tells of the ratio."""
    log_ratio_N = _log_ratio(logprobs_N, old_logprobs_N)
    return {
        # The samples come from the old policy, so k3 with the old policy first is the unbiased one.
        "approx_kl_sum": kl_k3(old_logprobs_N, logprobs_N).sum(),
        "ratio_max": _max_or_floor(log_ratio_N.exp()),
        # The exp comes last, so that the floor of an empty micro-batch is exp(-inf) = 0.
        "inverse_ratio_max": _max_or_floor(-log_ratio_N, floor=-math.inf).exp(),
    }


def _weighted_sum(terms_N: Tensor, weights_N: Tensor | None) -> Tensor:
    if weights_N is None:
        return terms_N.sum()
    check_same_length(logprobs_N=terms_N, weights_N=weights_N)
    return (terms_N * weights_N.detach()).sum()


def _max_or_floor(x_N: Tensor, floor: float = 0.0) -> Tensor:
    """The maximum, or `floor` of an empty micro-batch, without a wait for the device."""
    return torch.cat([x_N.detach(), x_N.new_full((1,), floor)]).max()
