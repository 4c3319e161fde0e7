"""The policy that learns: log-probs of rollouts, updates under DeepSpeed, weights to engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from rayward.actors.losses import LossInputs, policy_loss
from rayward.actors.models import lora
from rayward.actors.models.layout import Layout
from rayward.actors.models.load import load_policy
from rayward.actors.models.proof import transfer_probe
from rayward.actors.process import Rendezvous, copy_rate, peak_flops
from rayward.actors.training.engine import MetricSums, TrainEngine
from rayward.actors.training.updates import Learner, column, train
from rayward.algorithms.advantage import kl_k3
from rayward.algorithms.policy import truncated_importance_weights
from rayward.configs.plan import rl_arithmetic
from rayward.configs.schema import Config
from rayward.data.ragged import Shard
from rayward.data.rollouts import Rollouts
from rayward.data.templates.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from ray.actor import ActorHandle

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
        """Join the group and load the model. A collective."""
        config, rl = self.config, self.config.rl
        self.context = self.rendezvous.join(host, port, config.resources.policy.gpus)
        # Log-probs are those at the sampling temperature, as the engines' are.
        module = load_policy(self.folder, config.model.dtype, config.rollout.temperature)
        if rl.lora:
            # Before the engine, whose optimizer takes what requires a gradient.
            lora.add_adapters(module.lm, rl.lora, config.seed)
        self.engine = TrainEngine(
            module,
            rl.optimizer,
            rl.settings_of(self.algorithm).learning_rate,
            rl_arithmetic(config, self.algorithm).policy_steps,
            config.model.dtype,
            self.context.device,
        )
        group = self.rendezvous.subgroup(rl.sequence_parallel)
        self.layout = Layout(
            module.lm, self._logprobs, self.context, True, rl.shared_prompts, group
        )

    def describe(self) -> dict[str, float]:
        """Size of the model, what a token costs, and what this process can do.

        `flops_per_token`: floating-point operations of training, 6 for each weight that learns
        (forward 2, gradients of activations 2 and of the weight 2), 4 for one that does not.
        `peak_flops` and `copy_bytes_per_s` are measured here, in operations and bytes a second.
        """
        parameters = list(self.engine.hf_model.parameters())
        # Under ZeRO-3 `numel` is 0 where the weight is not gathered, and `ds_numel` the whole.
        counts = [getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters]
        flops = sum(
            count * (6 if parameter.requires_grad else 4)
            for parameter, count in zip(parameters, counts, strict=True)
        )
        return {
            "parameters": float(sum(counts)),
            "flops_per_token": float(flops),
            "peak_flops": float(peak_flops(self.config.model.dtype, self.context.device)),
            "copy_bytes_per_s": copy_rate(),
        }

    def _logprobs(self, *rows: Tensor, **inputs: Any) -> Tensor:
        return self.engine.infer(lambda engine: engine(*rows, **inputs)[0])

    def logprobs(self, rollouts: Rollouts, span_name: str = "logprobs") -> tuple[Shard, float]:
        """(log-probs of this rank's rows, sum of the entropies of their tokens in nats).

        A collective under ZeRO-3.
        """
        entropy_sum = 0.0

        def run(**inputs: Any) -> Tensor:
            nonlocal entropy_sum
            logprobs_N, entropy_N = self.engine.infer(
                lambda engine: engine(**inputs, with_entropy=True)
            )
            # Where ranks share rows, a rank reads its slice of the tokens only; their sums add up.
            entropy_sum += float(entropy_N.sum())
            return logprobs_N

        budget = self.config.rl.optimizer.micro_batch_tokens
        with self.span(span_name):
            shard = self.layout.read(rollouts, budget, run)
        return shard, entropy_sum

    def reference_logprobs(self, rollouts: Rollouts) -> Shard:
        """Log-probs of this rank's rows by the model without its adapters.

        With adapters that is the reference, which so takes no memory of its own.
        """
        budget = self.config.rl.optimizer.micro_batch_tokens
        with self.span("reference"), lora.without_adapters(self.engine.hf_model):
            return self.layout.read(rollouts, budget, self._logprobs)

    def update(self, rollouts: Rollouts, iteration: int) -> list[MetricSums]:
        """Train on one iteration's responses; this rank's sums of every step. A collective.

        Raises RuntimeError where old log-probs are the trainer's and the first step does not start
        from a ratio of 1.
        """
        self.first_step = True
        # Whose the old log-probs are shows only here: the driver fills the policy's column with the
        # engine's where those are the old ones.
        assert rollouts.policy_logprobs is not None, "the old log-probs come first"
        self.old_from_engine = np.array_equal(rollouts.policy_logprobs, rollouts.rollout_logprobs)
        with self.span("update"):
            return train(
                self.engine,
                self.layout,
                rollouts,
                self.config,
                iteration,
                self._loss,
                self._after_step,
            )

    def _after_step(self, sums: MetricSums) -> None:
        # A rank that raises leaves the others waiting in the next step's collectives; the driver
        # takes the first error and does not wait for them. The engine's log-probs differ from ours
        # anyway: by how much, `first_` tells the driver, which judges it.
        if self.first_step and not self.old_from_engine:
            self._assert_ratio_is_one(sums)
        self.first_step = False

    def _loss(
        self, engine: nn.Module, batch: Rollouts, inputs: dict[str, Any], step: Rollouts
    ) -> tuple[Tensor, MetricSums]:
        config, device = self.config, self.context.device
        logprobs_N, _ = engine(**inputs)
        old_N = column(batch, "policy_logprobs", device)
        # Samples are the engine's. Where the old log-probs are too, all weights would be 1.
        weights_N = None
        if not self.old_from_engine:
            rollout_N = column(batch, "rollout_logprobs", device)
            weights_N = truncated_importance_weights(old_N, rollout_N, config.rl.importance_cap)
        loss_inputs = LossInputs(
            logprobs_N,
            old_N,
            column(batch, "advantages", device),
            weights_N,
            batch,
            tokens_per_answer=len(step.responses.values) / len(step),
            max_new_tokens=config.rollout.max_new_tokens,
        )
        settings = config.rl.settings_of(self.algorithm)
        loss, sums = policy_loss(self.algorithm, settings, loss_inputs)
        metrics = {name: float(value) for name, value in sums.items()}
        return loss, metrics | self._gaps(logprobs_N.detach(), old_N)

    def _gaps(self, logprobs_N: Tensor, old_N: Tensor) -> MetricSums:
        """How far the policy is from the old log-probs.

        In the first step, whose weights are the old ones, it is how far the engine is from it.
        """
        gap_N = (logprobs_N - old_N).abs()
        largest = float(gap_N.max()) if len(gap_N) else 0.0  # 0 tokens: an empty micro-batch
        sums = {
            "log_ratio_sum": float(gap_N.sum()),
            "log_ratio_max": largest,
            "own_tokens": float(len(gap_N)),
        }
        if self.first_step and self.old_from_engine:
            # The old log-probs are the samples' own, so k3 takes them first (see kl_k3).
            sums |= {
                "first_mean_sum": sums["log_ratio_sum"],
                "first_max": largest,
                "first_k3_sum": float(kl_k3(old_N, logprobs_N).sum()),
                "first_factor_sum": float(gap_N.exp().sum()),
            }
        return sums

    def _assert_ratio_is_one(self, sums: MetricSums) -> None:
        """In fp32 for every token of this rank, in bf16 on the average."""
        dtype = self.config.model.dtype
        exact = dtype == "float32"
        if exact:
            log_ratio = sums["log_ratio_max"]
        else:
            log_ratio = sums["log_ratio_sum"] / max(sums["own_tokens"], 1.0)
        # Not `>`, which a NaN would pass.
        if not log_ratio <= RATIO_TOLERANCE[dtype]:
            raise RuntimeError(
                "the policy ratio must be 1 before the first update, but "
                f"{'a' if exact else 'the mean'} log-ratio is {log_ratio:.3g} (allowed "
                f"{RATIO_TOLERANCE[dtype]}): old log-probs and training forward disagree"
            )

    def connect(self, engines: list[ActorHandle], backend: str) -> None:
        """Open the way to the rollout engines."""
        # Brings in vLLM, which drivers that import this file do not need.
        from rayward.actors.rollout.weights import sender_to

        # In that mode engines sample with weights that the policy no longer has.
        keeps = self.config.rl.mode == "one_step_off"
        self.sender = sender_to(engines, self.engine, backend, self.context, self.config, keeps)

    def send_weights(self, version: int) -> dict[str, Any] | None:
        """Bring the current weights to every engine as `version`. Every rank must call it.

        Rank 0 returns their digest and bytes, and a probe to hold the engines against
        (`RolloutGroup.prove`).
        """
        assert self.sender is not None, "connect() comes first"
        with self.span("send_weights"):
            # Both gather weights under ZeRO-3, so ranks that return None take part too. The probe
            # first: after a transfer that fails on one rank no other may wait for that one in it.
            context = self.config.model.context_tokens
            probe = self.engine.infer(lambda module: transfer_probe(module, context))
            sent = self.sender.send(version)
        return sent | {"probe": probe} if sent else None

    def send_again(self, engines: list[ActorHandle], version: int) -> None:
        """Bring what was sent last to engines that were started anew. Every rank must call it."""
        assert self.sender is not None, "connect() comes first"
        with self.span("send_weights"):
            self.sender.again(engines, version)

    def save(self, folder: str, tokenizer: str | None = None) -> None:
        """The model as a Hugging Face folder, reloaded and checked. Every rank must call it.

        With the `tokenizer` of another folder; None: of the one that it started from.
        """
        dtype, temperature = self.config.model.dtype, self.config.rollout.temperature
        loaded = load_tokenizer(tokenizer or self.folder)
        # At the same temperature, or the proof would compare other log-probs.
        self.engine.save(folder, loaded, lambda path: load_policy(path, dtype, temperature))
