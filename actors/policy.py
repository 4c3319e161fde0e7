"""The policy that learns: log-probs of rollouts, PPO and APA updates under DeepSpeed, weights to rollout engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actors.engine import Sums, TrainEngine
from actors.forward import Part, map_rollouts, response_inputs
from actors.models import load_policy
from actors.process import Rendezvous, set_threads, workers_per_engine
from algorithms.policy import apa, ppo_clip, truncated_importance_weights
from configs.plan import rl_arithmetic
from configs.schema import Config
from data.packing import epoch_order, step_batches
from data.rollouts import Rollouts

if TYPE_CHECKING:
    from actors.weights import Sender

# |log-ratio| allowed in the first optimizer step, where old and new weights are the same: beyond it old log-probs,
# masks or dropout are wrong. bf16 sums differ with the padding of a micro-batch, those of single tokens by much.
RATIO_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}


class Policy:
    """One rank of the policy."""

    def __init__(self, folder: str, config: Config, algorithm: str, rank: int):
        role = config.resources.policy
        set_threads(role.threads)
        self.config, self.algorithm, self.folder = config, algorithm, folder
        self.rendezvous = Rendezvous(rank, role.workers, config.cluster.call_timeout_s)
        self.sender: Sender | None = None

    def open(self) -> tuple[str, int]:
        return self.rendezvous.open()

    def start(self, host: str, port: int) -> None:
        """Join the group and load the model."""
        config, rl = self.config, self.config.rl
        self.place = self.rendezvous.join(host, port, config.resources.policy.gpus)
        rate = rl.ppo.learning_rate if self.algorithm == "ppo" else rl.apa.learning_rate
        module = load_policy(self.folder, config.model.dtype, config.rollout.temperature)
        self.engine = TrainEngine(
            module, rl.optimizer, rate, rl_arithmetic(config).policy_steps, config.model.dtype, self.place.device
        )

    def logprobs(self, rollouts: Rollouts) -> tuple[Part, float]:
        """(log-probs of this rank's rows, sum of the entropies of their tokens in nats)."""
        entropy_sum = 0.0

        def score(batch: Rollouts) -> torch.Tensor:
            nonlocal entropy_sum
            logprobs_N, entropy_N = self.engine.infer(
                lambda engine: engine(*response_inputs(batch, self.place.device), with_entropy=True)
            )
            entropy_sum += float(entropy_N.sum())
            return logprobs_N

        part = map_rollouts(rollouts, self.place, self.config.rl.optimizer.micro_batch_tokens, score)
        return part, entropy_sum

    def update(self, rollouts: Rollouts, iteration: int) -> list[Sums]:
        """Train on one iteration's answers; this rank's sums of every optimizer step.

        Raises RuntimeError where the first step does not start from a ratio of 1.
        """
        rl = self.config.rl
        lengths = rollouts.sequences().lengths
        history: list[Sums] = []
        for epoch in range(rl.epochs):
            order = epoch_order(len(rollouts), self.config.seed, iteration * rl.epochs + epoch)
            for rows in step_batches(order, rl.samples_per_step):
                step = rollouts.take(rows)
                micro_batches = self.place.micro_batches(lengths[rows], rl.optimizer.micro_batch_tokens)
                tokens = int(step.responses.lengths.sum())
                sums = self.engine.step((step.take(m) for m in micro_batches), self._loss, tokens)
                if not history:
                    self._assert_ratio_is_one(sums)
                history.append(sums | {"tokens": tokens})
        return history

    def _loss(self, engine: Any, batch: Rollouts) -> tuple[torch.Tensor, Sums]:
        rl = self.config.rl
        logprobs_N, _ = engine(*response_inputs(batch, self.place.device))
        column = lambda name: torch.from_numpy(getattr(batch, name)).to(self.place.device)  # noqa: E731
        old_N, advantages_N = column("policy_logprobs"), column("advantages")
        if self.algorithm == "ppo":
            weights_N = truncated_importance_weights(old_N, column("rollout_logprobs"), rl.importance_cap)
            loss, sums = ppo_clip(logprobs_N, old_N, advantages_N, rl.ppo.clip, weights_N=weights_N)
        else:
            anchor_N = column("reference_logprobs") if rl.apa.anchor == "ref" else old_N
            loss, sums = apa(logprobs_N, anchor_N, advantages_N, rl.apa.lam)
        gap_N = (logprobs_N.detach() - old_N).abs()
        return loss, {name: float(value) for name, value in sums.items()} | {
            "log_ratio_sum": float(gap_N.sum()),
            "log_ratio_max": float(gap_N.max()) if len(gap_N) else 0.0,
            "own_tokens": float(len(gap_N)),
        }

    def _assert_ratio_is_one(self, sums: Sums) -> None:
        """In fp32 for every token of this rank, in bf16 on the average."""
        dtype = self.config.model.dtype
        exact = dtype == "float32"
        found = sums["log_ratio_max"] if exact else sums["log_ratio_sum"] / max(sums["own_tokens"], 1.0)
        if not found <= RATIO_TOLERANCE[dtype]:
            raise RuntimeError(
                f"the policy ratio must be 1 before the first update, but {'a' if exact else 'the mean'} log-ratio is "
                f"{found:.3g} (allowed {RATIO_TOLERANCE[dtype]}): old log-probs and training forward disagree"
            )

    def connect(self, engines: list[Any], backend: str) -> None:
        """Open the way to the rollout engines."""
        from actors.weights import Sender  # brings in vLLM, which drivers that import this file do not need

        self.sender = Sender(
            self.engine,
            engines,
            backend,
            self.place,
            self.config.cluster.call_timeout_s,
            workers_per_engine(self.config),
        )

    def send_weights(self, version: int) -> dict[str, Any] | None:
        """Bring the current weights to every engine as `version`; rank 0 returns their digest and bytes."""
        assert self.sender is not None, "connect() comes first"
        return self.sender.send(version)

    def save(self, folder: str) -> None:
        """The model as a Hugging Face folder, reloaded and checked. Every rank must call it."""
        from data.tokenizer import load_tokenizer

        self.engine.save(
            folder,
            load_tokenizer(self.folder),
            lambda path: load_policy(path, self.config.model.dtype, self.config.rollout.temperature).to(
                self.place.device
            ),
        )


def mean_over_steps(ranks: list[list[Sums]]) -> dict[str, float]:
    """Metrics of one update from every rank's sums: `_sum` divided by the tokens of all steps, `_max` the largest."""
    steps = [step for rank in ranks for step in rank]
    tokens = float(np.sum([step["tokens"] for step in ranks[0]]))
    merged: dict[str, float] = {}
    for name in steps[0]:
        values = [step[name] for step in steps]
        if name.endswith("_sum"):
            merged[name.removesuffix("_sum")] = float(np.sum(values)) / tokens
        elif name.endswith("_max"):
            merged[name] = float(np.max(values))
        elif name not in ("tokens", "own_tokens"):
            merged[name] = float(np.mean(values))
    return merged
