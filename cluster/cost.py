"""What an RL iteration costs: seconds of its phases from the model, the batch and a few measured
rates.

Operations are counted (cluster/operations.py). What is not in the count (memory traffic, Python,
small matrices) is in the rates and in the seconds per token or call, so these come from measured
iterations of the same machine: `calibrate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rayward.cluster.operations import Load

SCORING = ("logprobs", "reference", "values", "reward")
UPDATES = ("policy_update", "critic_update")


@dataclass(frozen=True)
class Rates:
    """What a machine was measured to do, each role on its own processors or all on the same."""

    generate_flops: float
    """Operations per second of the engines."""
    generate_token_s: float
    """Seconds of a generated token beside its operations: scheduling and sampling."""
    forward_flops: float
    training_flops: float
    call_s: float
    """Fixed seconds of a layer's training on a micro-batch; a forward pass has a third of it."""
    transfer_bytes_per_s: float
    fixed_s: float
    """Seconds of an iteration that depend on nothing: driver, Ray, the calls of the transfer."""


@dataclass(frozen=True)
class Iteration:
    """Predicted seconds."""

    phases: dict[str, float]
    sync_s: float
    one_step_off_s: float


def predict(
    load: Load, rates: Rates, shared: bool = False, streamed_share: float = 0.75
) -> Iteration:
    """Seconds of an iteration and its phases.

    `shared`: all roles compute on the same processors, so whatever overlaps takes longer by as much
    as it saves. Otherwise the models of a phase work side by side, `streamed_share` of the scoring
    under generation (responses come in parts), and in one_step_off generation beside all that
    follows it.
    """
    forward, training = load.forward_flops(), load.training_flops()
    token_s = rates.generate_token_s * load.generated_tokens
    seconds = {"generate": token_s + forward.pop("generate") / rates.generate_flops}
    # A phase that the load does not have has no operations, and then no calls either.
    # A third of a training call is its forward pass.
    for name, flops in forward.items():
        fixed_s = rates.call_s / 3 * load.calls * bool(flops)
        seconds[name] = flops / rates.forward_flops + fixed_s
    for name, flops in training.items():
        fixed_s = rates.call_s * load.calls * load.epochs * bool(flops)
        seconds[name] = flops / rates.training_flops + fixed_s
    seconds["transfer"] = (
        load.policy.parameters * load.bytes_per_weight / rates.transfer_bytes_per_s
    )
    if shared:
        whole = sum(seconds.values()) + rates.fixed_s
        return Iteration(seconds, whole, whole)
    # Side by side, the slowest model of a phase counts.
    scoring = max(seconds[name] for name in SCORING)
    update = max(seconds[name] for name in UPDATES)
    after = seconds["transfer"] + rates.fixed_s
    sync = seconds["generate"] + (1 - streamed_share) * scoring + update + after
    return Iteration(seconds, sync, max(seconds["generate"], scoring + update) + after)


def calibrate(measured: Sequence[tuple[Load, Mapping[str, float]]]) -> Rates:
    """Rates of processors that all roles share, from iterations in `sync` of two or more loads.

    Of each its seconds: "rollout" (until all answers are there and scored), "update", "transfer"
    and "iteration". A forward pass is taken to run as fast as training. ValueError: fewer than two
    loads.
    """
    if len(measured) < 2:
        raise ValueError(
            f"{len(measured)} measured load, but two that differ in model or length are needed"
        )
    # Updates are measured by themselves: they give the rate and the seconds of a call.
    flop_s, call_s = fit(
        (sum(load.training_flops().values()), _update_calls(load), seconds["update"])
        for load, seconds in measured
    )
    # Scoring is a part of the rollout; with that rate it can be taken off, and generation is left.
    rollouts = []
    for load, seconds in measured:
        forward = load.forward_flops()
        generate_flops = forward.pop("generate")
        calls = load.calls * sum(flops > 0 for flops in forward.values())
        scoring_s = flop_s * sum(forward.values()) + call_s / 3 * calls
        # At least a tenth: `fit` needs positive seconds, where scoring is estimated too high.
        generate_s = max(seconds["rollout"] - scoring_s, 0.1 * seconds["rollout"])
        rollouts.append((generate_flops, load.generated_tokens, generate_s))
    generate_flop_s, token_s = fit(rollouts)
    byte_s, transfer_s = fit(
        (load.policy.parameters * load.bytes_per_weight, 1, seconds["transfer"])
        for load, seconds in measured
    )
    rest_s = [
        seconds["iteration"] - seconds["rollout"] - seconds["update"] - seconds["transfer"]
        for _, seconds in measured
    ]
    return Rates(
        generate_flops=_inverse(generate_flop_s),
        generate_token_s=token_s,
        forward_flops=_inverse(flop_s),
        training_flops=_inverse(flop_s),
        call_s=call_s,
        transfer_bytes_per_s=_inverse(byte_s),
        fixed_s=transfer_s + sum(rest_s) / len(rest_s),
    )


def fit(rows: Iterable[tuple[float, float, float]]) -> tuple[float, float]:
    """a, b >= 0 of y = a x1 + b x2 with the least squared error relative to y.

    `rows`: (x1, x2, y) with y > 0. Where x1 and x2 are in the same proportion in all rows, all of
    it is put on x1.
    """
    # Divided by y, the equations are 1 = a x1/y + b x2/y: their errors are relative to y.
    scaled = [(x1 / y, x2 / y) for x1, x2, y in rows]
    s11, s12, s22 = (sum(row[i] * row[j] for row in scaled) for i, j in ((0, 0), (0, 1), (1, 1)))
    s1, s2 = (sum(row[i] for row in scaled) for i in (0, 1))
    # The normal equations of least squares, by Cramer's rule.
    determinant = s11 * s22 - s12 * s12
    if determinant <= 1e-9 * s11 * s22:  # 0 but for rounding: the same proportion in all rows
        return s1 / s11, 0.0
    a = (s22 * s1 - s12 * s2) / determinant
    b = (s11 * s2 - s12 * s1) / determinant
    if a >= 0 and b >= 0:
        return a, b
    # The best with one of them 0 is on the edge: the one that explains more of the squares.
    return (s1 / s11, 0.0) if s1 * s1 / s11 >= s2 * s2 / s22 else (0.0, s2 / s22)


def _update_calls(load: Load) -> float:
    """Training passes of a layer over a micro-batch, of all models that learn."""
    return load.calls * load.epochs * (2 if load.critic else 1)


def _inverse(seconds: float) -> float:
    """A rate; infinite for what was found to take no time."""
    return 1 / seconds if seconds else float("inf")
