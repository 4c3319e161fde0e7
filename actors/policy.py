"""The policy that learns: log-probs of rollouts, updates under DeepSpeed, weights to rollout
engines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rayward.actors.models import lora
from rayward.actors.models.layout import Layout
from rayward.actors.models.load import load_policy
from rayward.actors.models.proof import transfer_probe
from rayward.actors.process import Rendezvous, copy_rate, peak_flops
from rayward.actors.training.engine import MetricSums, TrainEngine
from rayward.actors.training.updates import Learner, train
from rayward.algorithms.advantage import kl_k3
from rayward.algorithms.policy import apa, awr, kl_loss, ppo_clip, truncated_importance_weights
from rayward.configs.plan import rl_arithmetic
from rayward.configs.schema import Config
from rayward.data.ragged import Shard
from rayward.data.rollouts import Rollouts
from rayward.data.templates.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from rayward.actors.rollout.weights import WeightSender

# |log-ratio| allowed in the first optimizer step, where old and new weights are the same: beyond it
# old log-probs, masks or dropout are wrong. bf16 sums differ with the padding of a micro-batch,
# those of single tokens by much.
RATIO_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}


class Policy(Learner):
    """One rank of the policy."""

    def __init__(self, folder: str, config: Config, algorithm: str, rank: int):
        super().__init__()
        role = config.resources.policy
        torch.set_num_threads(role.compute_threads)
        self.config, self.algorithm, self.folder = config, algorithm, folder
        self.rendezvous = Rendezvous(rank, role.workers, config.cluster.call_timeout_s)
        self.sender: WeightSender | None = None
        self.first_step = True

    def start(self, host: str, port: int) -> None:
        """Join the group and load the model."""
        config, rl = self.config, self.config.rl
        self.place = self.rendezvous.join(host, port, config.resources.policy.gpus)
        module = load_policy(self.folder, config.model.dtype, config.rollout.temperature)
        if rl.lora:
            lora.add_adapters(module.lm, rl.lora, config.seed)
        steps, rate = (
            rl_arithmetic(config, self.algorithm).policy_steps,
            rl.own(self.algorithm).learning_rate,
        )
        self.engine = TrainEngine(
            module, rl.optimizer, rate, steps, config.model.dtype, self.place.device
        )
        group = self.rendezvous.subgroup(rl.sequence_parallel)
        self.layout = Layout(module.lm, self._logprobs, self.place, True, rl.shared_prompts, group)

    def describe(self) -> dict[str, float]:
        """Parameters of the model, floating-point operations that training takes for a token (6 for
        each weight that learns, 4 for one that does not), and what this process can do a second:
        operations, bytes copied."""
        parameters = list(self.engine.engine.module.lm.parameters())
        counts = [getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters]
        flops = sum(
            count * (6 if of.requires_grad else 4)
            for of, count in zip(parameters, counts, strict=True)
        )
        peak = peak_flops(self.config.model.dtype, self.place.device)
        about = {"parameters": sum(counts), "flops_per_token": flops, "peak_flops": peak}
        return {name: float(value) for name, value in about.items()} | {
            "copy_bytes_per_s": copy_rate()
        }

    def _logprobs(self, *rows: Tensor, **inputs: Any) -> Tensor:
        return self.engine.infer(lambda engine: engine(*rows, **inputs)[0])

    def logprobs(self, rollouts: Rollouts, what: str = "logprobs") -> tuple[Shard, float]:
        """(log-probs of this rank's rows, sum of the entropies of their tokens in nats); spans call
        it `what`.
        """
        entropy_sum = 0.0

        def run(**inputs: Any) -> Tensor:
            nonlocal entropy_sum
            logprobs_N, entropy_N = self.engine.infer(
                lambda engine: engine(**inputs, with_entropy=True)
            )
            entropy_sum += float(entropy_N.sum())
            return logprobs_N

        with self.span(what):
            return self.layout.read(
                rollouts, self.config.rl.optimizer.micro_batch_tokens, run
            ), entropy_sum

    def reference_logprobs(self, rollouts: Rollouts) -> Shard:
        """Log-probs of this rank's rows by the model without its adapters."""
        with self.span("reference"), lora.without_adapters(self.engine.engine.module.lm):
            return self.layout.read(
                rollouts, self.config.rl.optimizer.micro_batch_tokens, self._logprobs
            )

    def update(self, rollouts: Rollouts, iteration: int) -> list[MetricSums]:
        """Train on one iteration's answers; this rank's sums of every optimizer step.

        Raises RuntimeError where old log-probs are the trainer's and the first step does not start
        from a ratio of 1.
        """
        self.first_step = True
        # The old log-probs.
        self.of_engine = np.array_equal(rollouts.policy_logprobs, rollouts.rollout_logprobs)
        with self.span("update"):
            return train(
                self.engine,
                self.layout,
                rollouts,
                self.config,
                iteration,
                self._loss,
                self._stepped,
            )

    def _stepped(self, sums: MetricSums) -> None:
        if self.first_step and not self.of_engine:
            self._assert_ratio_is_one(sums)
        self.first_step = False

    def _loss(
        self, engine: Any, batch: Rollouts, inputs: dict[str, Any]
    ) -> tuple[Tensor, MetricSums]:
        rl, own = self.config.rl, self.config.rl.own(self.algorithm)
        logprobs_N, _ = engine(**inputs)
        column = lambda name: torch.from_numpy(getattr(batch, name)).to(self.place.device)  # noqa: E731
        old_N, advantages_N = column("policy_logprobs"), column("advantages")
        weights_N = None
        if not self.of_engine:
            weights_N = truncated_importance_weights(
                old_N, column("rollout_logprobs"), rl.importance_cap
            )
        if self.algorithm == "apa":
            anchor_N = column("reference_logprobs") if own.anchor == "ref" else old_N
            loss, sums = apa(logprobs_N, anchor_N, advantages_N, own.lam, weights_N=weights_N)
        elif self.algorithm == "awr":
            loss, sums = awr(
                logprobs_N, advantages_N, own.coef, own.max_weight, weights_N=weights_N
            )
        else:
            bounds = {"clip": own.clip, "clip_high": own.clip_high, "dual_clip": own.dual_clip}
            loss, sums = ppo_clip(logprobs_N, old_N, advantages_N, **bounds, weights_N=weights_N)
        if own.kl_loss:
            penalty, figures = kl_loss(logprobs_N, column("reference_logprobs"), weights_N)
            loss, sums = loss + own.kl_loss * penalty, sums | figures
        return loss, {name: float(value) for name, value in sums.items()} | self._gaps(
            logprobs_N.detach(), old_N
        )

    def _gaps(self, logprobs_N: Tensor, old_N: Tensor) -> MetricSums:
        """How far the policy is from the old log-probs; in the first step this is how far the
        engine is from it.
        """
        gap_N = (logprobs_N - old_N).abs()
        largest = float(gap_N.max()) if len(gap_N) else 0.0
        found = {
            "log_ratio_sum": float(gap_N.sum()),
            "log_ratio_max": largest,
            "own_tokens": float(len(gap_N)),
        }
        if self.first_step and self.of_engine:
            found |= {
                "first_mean_sum": found["log_ratio_sum"],
                "first_max": largest,
                "first_k3_sum": float(kl_k3(old_N, logprobs_N).sum()),
                "first_factor_sum": float(gap_N.exp().sum()),
            }
        return found

    def _assert_ratio_is_one(self, sums: MetricSums) -> None:
        """In fp32 for every token of this rank, in bf16 on the average."""
        dtype = self.config.model.dtype
        exact = dtype == "float32"
        found = (
            sums["log_ratio_max"] if exact else sums["log_ratio_sum"] / max(sums["own_tokens"], 1.0)
        )
        if not found <= RATIO_TOLERANCE[dtype]:
            raise RuntimeError(
                "the policy ratio must be 1 before the first update, but "
                f"{'a' if exact else 'the mean'} log-ratio is {found:.3g} (allowed "
                f"{RATIO_TOLERANCE[dtype]}): old log-probs and training forward disagree"
            )

    def connect(self, engines: list[Any], backend: str) -> None:
        """Open the way to the rollout engines."""
        # Brings in vLLM, which drivers that import this file do not need.
        from rayward.actors.rollout.weights import sender_to

        self.sender = sender_to(engines, self.engine, backend, self.place, self.config)

    def send_weights(self, version: int) -> dict[str, Any] | None:
        """Bring the current weights to every engine as `version`.

        Rank 0 returns their digest and bytes, and a probe to hold the engines against
        (`RolloutGroup.prove`).
        """
        assert self.sender is not None, "connect() comes first"
        with self.span("send_weights"):
            sent = self.sender.send(version)
            context = self.config.model.context_tokens
            probe = self.engine.infer(lambda module: transfer_probe(module, context))
        return sent | {"probe": probe} if sent else None

    def save(self, folder: str, tokenizer: str | None = None) -> None:
        """The model as a Hugging Face folder with the `tokenizer` of another (None: the one that it
        started from), reloaded and checked. Every rank must call it."""
        dtype, temperature = self.config.model.dtype, self.config.rollout.temperature
        given = load_tokenizer(tokenizer or self.folder)
        self.engine.save(folder, given, lambda path: load_policy(path, dtype, temperature))
