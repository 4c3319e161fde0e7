"""Rollouts of made-up tokens, and the actors that several files share: each takes seconds to start.

One compute thread everywhere: with more, tensors of a few elements wait for the busiest core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch

from rayward.actors.group import TrainingGroup, critic_group, policy_group
from rayward.actors.models.load import load_policy
from rayward.actors.rollout_group import RolloutGroup
from rayward.configs.schema import Config
from rayward.data.ragged import Ragged
from rayward.data.rollouts import Rollouts


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def made_rollouts(tiny_models) -> Callable[..., Rollouts]:
    """`made_rollouts(rows, seed)`: answers of random tokens of very different lengths, every column
    filled in.
    """

    def make(rows: int, seed: int = 0) -> Rollouts:
        rng = np.random.default_rng(seed)
        vocab_size = len(tiny_models.tokenizer)
        prompt_lengths, response_lengths = rng.integers(1, 30, rows), rng.integers(1, 16, rows)
        prompts, responses = (
            Ragged.of([rng.integers(3, vocab_size, n) for n in lengths])
            for lengths in (prompt_lengths, response_lengths)
        )
        tokens = len(responses.values)
        near = plain_logprobs(load_policy(tiny_models.policy, "float32").lm, prompts, responses)

        def noise(width: float) -> np.ndarray:
            return (width * rng.standard_normal(tokens)).astype(np.float32)

        return Rollouts(
            prompts=prompts,
            responses=responses,
            prompt_index=np.arange(rows),
            finished=rng.random(rows) < 0.5,
            rollout_logprobs=near + noise(0.1),
            weight_version=0,
            scores=rng.standard_normal(rows).astype(np.float32),
            policy_logprobs=near,
            reference_logprobs=near + noise(0.1),
            values=noise(1.0),
            advantages=noise(1.0),
            returns=noise(1.0),
        )

    return make


@torch.no_grad()
def plain_logprobs(
    lm: torch.nn.Module, prompts: Ragged, responses: Ragged, temperature: float = 1.0
) -> np.ndarray:
    """Log-probs of the response tokens, one unpadded row at a time through transformers' own
    forward.
    """
    flat = []
    for row in range(len(prompts)):
        ids_T = torch.from_numpy(np.concatenate([prompts[row], responses[row]]).astype(np.int64))
        logits_TV = lm.eval()(ids_T[None]).logits[0]
        logprobs_TV = torch.log_softmax(logits_TV[:-1] / temperature, -1)
        flat.append(logprobs_TV.gather(1, ids_T[1:, None])[len(prompts[row]) - 1 :, 0])
    return torch.cat(flat).numpy()


@pytest.fixture(scope="session")
def plain() -> Callable[..., np.ndarray]:
    """`plain(lm, prompts, responses, temperature)`: log-probs without any code of ours."""
    return plain_logprobs


# What the rollouts of the training groups below look like.
ROWS, SAMPLES_PER_STEP, EPOCHS, LAM = 16, 8, 2, 5.0


class Teams:
    """Training groups by (role, ranks, ZeRO stage, tokens of a micro-batch), started when first
    asked for.
    """

    def __init__(self, make: Callable[..., TrainingGroup]):
        self.make = make
        self.groups: dict[tuple, TrainingGroup] = {}

    def get(self, wanted: Sequence[tuple]) -> list[TrainingGroup]:
        """These groups; those that are not there yet start at the same time."""
        new = {key: self.make(*key) for key in wanted if key not in self.groups}
        for group, calls in [(group, group.begin_start()) for group in new.values()]:
            group.finish(calls, 240)
        self.groups |= new
        return [self.groups[key] for key in wanted]


@pytest.fixture(scope="session")
def teams(local_ray, tiny_models, tiny_config: Callable[..., Config]) -> Iterator[Teams]:
    def make(role: str, workers: int, zero_stage: int, micro_batch_tokens: int) -> TrainingGroup:
        # Adam's eps is far above the rounding noise of gradients, which it would otherwise blow up
        # to whole steps.
        optimizer = {
            "zero_stage": zero_stage,
            "micro_batch_tokens": micro_batch_tokens,
            "eps": 1e-3,
        }
        batch = {
            "prompts_per_iteration": ROWS,
            "samples_per_prompt": 1,
            "samples_per_step": SAMPLES_PER_STEP,
        }
        config = tiny_config(
            rl=batch
            | {
                "epochs": EPOCHS,
                "optimizer": {**optimizer, "max_grad_norm": 0.5},
                "apa": {"lam": LAM},
                # As far as PPO's: at a rate that shows, the paper's bounds clip all answers.
                "gspo": {"learning_rate": 1e-3, "clip": 0.2, "clip_high": 0.2},
            }
            | {"old_logprobs": "trainer"},
            resources={name: {"workers": workers, "cpus": 0.01} for name in ("policy", "critic")},
        )
        if role == "critic":
            return critic_group(tiny_models.reward, config)
        return policy_group(tiny_models.policy, config, role)

    made = Teams(make)
    yield made
    for group in made.groups.values():
        group.stop()


@pytest.fixture(scope="session")
def rollout_group(
    local_ray, tiny_models, tiny_config: Callable[..., Config]
) -> Iterator[RolloutGroup]:
    """Two vLLM engines with the tiny policy. Whoever sends them other weights sends the first ones
    again.

    Two threads each: with one, sums whose order depends on the batch would go unnoticed.
    """
    config = tiny_config(resources={"rollout": {"workers": 2, "cpus": 0.1, "threads": 2}})
    group = RolloutGroup(tiny_models.policy, config, config.resources.policy)
    group.ready()
    yield group
    group.stop()
