"""What an RL iteration costs: seconds of its phases from the model, the batch and a few measured
rates.

Operations are counted as usual: 2 a parameter and token forward, 6 in training (arXiv:2001.08361),
and what that count leaves out: attention over the tokens before, and the head, which only the
tokens of answers reach and which training computes once more instead of keeping its logits
(algorithms/sequence.py). What is not in the count (memory traffic, Python, small matrices) is in
the rates and in the seconds per token or call, so these come from measured iterations of the same
machine: `calibrate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

SCORING = ("logprobs", "reference", "values", "reward")
UPDATES = ("policy_update", "critic_update")


@dataclass(frozen=True)
class Shape:
    """A decoder in numbers."""

    layers: int
    attention_width: int
    """Heads x head size."""
    body_parameters: int
    """Weights of all layers."""
    hidden_size: int
    vocab_size: int
    tied: bool = False
    """One matrix for embedding and head."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """From the config.json of a model of the Llama family. KeyError names what it lacks."""
        hidden, heads, layers = (
            config[key] for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")
        )
        size = config.get("head_dim") or hidden // heads
        width, key_width = heads * size, (config.get("num_key_value_heads") or heads) * size
        attention = 2 * hidden * width + 2 * hidden * key_width
        body = layers * (attention + 3 * hidden * config["intermediate_size"])
        return cls(
            layers,
            width,
            body,
            hidden,
            config["vocab_size"],
            bool(config.get("tie_word_embeddings")),
        )

    @property
    def head_parameters(self) -> int:
        return self.hidden_size * self.vocab_size

    @property
    def parameters(self) -> int:
        return self.body_parameters + self.head_parameters * (1 if self.tied else 2)

    def body_flops(self, tokens: float, seen: float = 0.5) -> float:
        """Forward operations of one row through the layers, where a token sees this share of the
        row on the average.
        """
        return (
            2.0 * self.body_parameters * tokens
            + 4.0 * seen * self.layers * self.attention_width * tokens**2
        )

    def head_flops(self, tokens: int) -> float:
        return 2.0 * self.head_parameters * tokens


@dataclass(frozen=True)
class Load:
    """What one iteration has to do."""

    policy: Shape
    prompts: int
    samples_per_prompt: int
    prompt_tokens: int
    answer_tokens: int
    """Mean lengths."""
    epochs: int = 1
    micro_batch_tokens: int = 8192
    reward: Shape | None = None
    """Reward model; None: the reward takes no time of these machines."""
    critic: Shape | None = None
    reference: bool = True
    trainer_logprobs: bool = True
    """Whether the trainer computes old log-probs, or takes those of the engine."""
    gradient_checkpointing: bool = False
    shared_prompts: bool = False
    """Whether scoring and training may read a prompt once for its answers, where that takes fewer
    operations.
    """
    bytes_per_weight: int = 2

    @property
    def answers(self) -> int:
        return self.prompts * self.samples_per_prompt

    @property
    def row_tokens(self) -> int:
        return self.prompt_tokens + self.answer_tokens

    @property
    def generated_tokens(self) -> int:
        return self.answers * self.answer_tokens

    def rows(self, shape: Shape) -> tuple[float, float, float]:
        """(number, tokens of each, share that a token sees) of the rows that scoring and training
        read.

        Rows that share a prompt hold as many of its answers as a micro-batch has room for, and a
        mask hides one answer from another: attention is computed to all of the row
        (actors/models/prefix.py).
        """
        alone = (float(self.answers), float(self.row_tokens), 0.5)
        room = max(1, (self.micro_batch_tokens - self.prompt_tokens) // max(1, self.answer_tokens))
        count = self.prompts * ceil(self.samples_per_prompt / room)
        together = (float(count), self.prompt_tokens + self.generated_tokens / count, 1.0)
        fewer = together[0] * shape.body_flops(*together[1:]) < alone[0] * shape.body_flops(
            *alone[1:]
        )
        return together if self.shared_prompts and fewer else alone

    def rows_flops(self, shape: Shape) -> float:
        """Forward operations of all of them through the layers."""
        number, tokens, seen = self.rows(shape)
        return number * shape.body_flops(tokens, seen)

    @property
    def calls(self) -> float:
        """Forward passes of a layer over a micro-batch, for one model and one pass over the
        answers.
        """
        number, tokens, _ = self.rows(self.policy)
        return self.policy.layers * max(1.0, number * tokens / self.micro_batch_tokens)

    def forward_flops(self) -> dict[str, float]:
        """Operations of generation and of each phase of scoring."""
        head = self.answers * self.policy.head_flops(self.answer_tokens)
        again = self.rows_flops(self.policy) + head
        # Which generation reads once for its answers.
        prompt = self.policy.body_flops(self.prompt_tokens)
        drawn = (
            self.answers * self.policy.body_flops(self.row_tokens)
            - (self.answers - self.prompts) * prompt
        )
        return {
            "generate": drawn + head,
            "logprobs": again * self.trainer_logprobs,
            "reference": again * self.reference,
            "values": self.rows_flops(self.critic) if self.critic else 0.0,
            "reward": self.rows_flops(self.reward) if self.reward else 0.0,
        }

    def training_flops(self) -> dict[str, float]:
        """Operations of the updates: backward is twice forward; the head's logits, or all, are
        computed again.
        """
        passes = 4.0 if self.gradient_checkpointing else 3.0
        head = self.answers * self.policy.head_flops(self.answer_tokens)
        critic = self.rows_flops(self.critic) if self.critic else 0.0
        policy = passes * self.rows_flops(self.policy) + 4.0 * head
        return {
            "policy_update": self.epochs * policy,
            "critic_update": self.epochs * passes * critic,
        }


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
    under generation, and in one_step_off generation beside all that follows it.
    """
    forward, training = load.forward_flops(), load.training_flops()
    token_s = rates.generate_token_s * load.generated_tokens
    seconds = {"generate": token_s + forward.pop("generate") / rates.generate_flops}
    for name, flops in forward.items():
        seconds[name] = flops / rates.forward_flops + rates.call_s / 3 * load.calls * bool(flops)
    for name, flops in training.items():
        seconds[name] = (
            flops / rates.training_flops + rates.call_s * load.calls * load.epochs * bool(flops)
        )
    seconds["transfer"] = (
        load.policy.parameters * load.bytes_per_weight / rates.transfer_bytes_per_s
    )
    if shared:
        whole = sum(seconds.values()) + rates.fixed_s
        return Iteration(seconds, whole, whole)
    scoring, update = max(seconds[name] for name in SCORING), max(seconds[name] for name in UPDATES)
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
    updates = (
        (sum(load.training_flops().values()), _update_calls(load), of["update"])
        for load, of in measured
    )
    flop_s, call_s = fit(updates)
    rollouts = []
    for load, of in measured:
        forward = load.forward_flops()
        own = forward.pop("generate")
        calls = load.calls * sum(flops > 0 for flops in forward.values())
        scoring_s = flop_s * sum(forward.values()) + call_s / 3 * calls
        rollouts.append(
            (own, load.generated_tokens, max(of["rollout"] - scoring_s, 0.1 * of["rollout"]))
        )
    generate_flop_s, token_s = fit(rollouts)
    byte_s, transfer_s = fit(
        (load.policy.parameters * load.bytes_per_weight, 1, of["transfer"]) for load, of in measured
    )
    rest = [of["iteration"] - of["rollout"] - of["update"] - of["transfer"] for _, of in measured]
    return Rates(
        generate_flops=_inverse(generate_flop_s),
        generate_token_s=token_s,
        forward_flops=_inverse(flop_s),
        training_flops=_inverse(flop_s),
        call_s=call_s,
        transfer_bytes_per_s=_inverse(byte_s),
        fixed_s=transfer_s + sum(rest) / len(rest),
    )


def fit(rows: Iterable[tuple[float, float, float]]) -> tuple[float, float]:
    """a, b >= 0 of y = a x1 + b x2 with the least squared error relative to y; (x1, x2, y) with y >
    0.

    Where x1 and x2 are in the same proportion in all rows, all of it is put on x1.
    """
    scaled = [(x1 / y, x2 / y) for x1, x2, y in rows]
    s11, s12, s22 = (sum(row[i] * row[j] for row in scaled) for i, j in ((0, 0), (0, 1), (1, 1)))
    s1, s2 = (sum(row[i] for row in scaled) for i in (0, 1))
    determinant = s11 * s22 - s12 * s12
    if determinant > 1e-9 * s11 * s22:
        a, b = (s22 * s1 - s12 * s2) / determinant, (s11 * s2 - s12 * s1) / determinant
        if a >= 0 and b >= 0:
            return a, b
    # How much of the squares each explains.
    alone = {(s1 / s11, 0.0): s1 * s1 / s11, (0.0, s2 / s22): s2 * s2 / s22}
    return max(alone, key=alone.__getitem__) if determinant > 1e-9 * s11 * s22 else (s1 / s11, 0.0)


def _update_calls(load: Load) -> float:
    return load.calls * load.epochs * (2 if load.critic else 1)


def _inverse(seconds: float) -> float:
    return 1 / seconds if seconds else float("inf")
