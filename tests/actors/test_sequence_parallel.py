"""Ranks that share the tokens of rows: results and updates are those of one rank alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from rayward.actors.group import critic_group, policy_group
from rayward.actors.models.forward import RankContext
from rayward.actors.models.layout import Layout
from rayward.actors.models.load import load_policy, save_model
from rayward.actors.models.prefix import shared_responses
from rayward.actors.models.ulysses import check_heads, slice_of
from rayward.actors.training.updates import mean_over_steps
from rayward.data.ragged import Ragged, merge

CPU = torch.device("cpu")
PROMPTS, SAMPLES = 5, 3
# (role, ranks, ranks that share rows, ZeRO stage, tokens of a micro-batch of one rank)
ALONE = {"grpo": ("grpo", 1, 1, 1, 4096), "critic": ("critic", 1, 1, 1, 4096)}
SHARED = [("grpo", 2, 2, 3, 30)]
SLOW = [
    ("grpo", 2, 2, 1, 4096),
    ("critic", 2, 2, 3, 4096),
    ("grpo", 4, 2, 0, 30),
    ("critic", 2, 2, 0, 30),
]


@dataclass
class Trained:
    before: np.ndarray
    entropy_sum: float
    metrics: dict[str, float]
    weights: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def rollouts(made_rollouts):
    """Groups of answers to one prompt."""
    rng = np.random.default_rng(3)
    prompts = [rng.integers(3, 50, length).tolist() for length in (70, 9, 1, 24, 5)]
    index = np.repeat(np.arange(PROMPTS), SAMPLES)
    return made_rollouts(len(index), seed=7).with_columns(
        prompts=Ragged.of([prompts[i] for i in index]), prompt_index=index
    )


@pytest.fixture(scope="module")
def grouped_queries(tiny_models, tmp_path_factory) -> str:
    """A model whose four attention heads share two heads of keys and values."""
    config = LlamaConfig(
        vocab_size=len(tiny_models.tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.125,
    )
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    folder = tmp_path_factory.mktemp("grouped")
    save_model(model, model.state_dict(), tiny_models.tokenizer, folder)
    return str(folder)


@pytest.fixture(scope="module")
def trained(local_ray, tiny_models, grouped_queries, tiny_config, rollouts, tmp_path_factory):
    """`trained(key)`: what a group computed before its first update, that update's metrics, and the
    weights then.
    """
    made: dict[tuple, Trained] = {}

    def train(key: tuple) -> Trained:
        role, workers, size, zero_stage, budget = key
        optimizer = {
            "zero_stage": zero_stage,
            "micro_batch_tokens": budget,
            "eps": 1e-3,
            "max_grad_norm": 0.5,
        }
        config = tiny_config(
            rl={
                "algorithms": ["grpo", "ppo"],
                "prompts_per_iteration": PROMPTS,
                "samples_per_prompt": SAMPLES,
                "samples_per_step": PROMPTS * SAMPLES,
                "epochs": 2,
                "sequence_parallel": size,
                "optimizer": optimizer,
                "grpo": {"learning_rate": 1e-3},
            },
            resources={name: {"workers": workers, "cpus": 0.01} for name in ("policy", "critic")},
        )
        critic = role == "critic"
        group = (
            critic_group(tiny_models.reward, config)
            if critic
            else policy_group(grouped_queries, config, role)
        )
        try:
            group.finish(group.begin_start(), 240)
            entropy_sum, parts = 0.0, group.call("values" if critic else "logprobs", rollouts)
            if not critic:
                entropy_sum, parts = sum(nats for _, nats in parts), [part for part, _ in parts]
            assert sum(len(part.rows) > 0 for part in parts) <= workers // size
            before = merge(parts, len(rollouts))
            own = {} if critic else {"policy_logprobs": before, "rollout_logprobs": before}
            sums = group.call("update", rollouts.with_columns(**own), 0)
            folder = tmp_path_factory.mktemp("saved")
            weights = {}
            if critic:
                weights = {
                    "values": torch.from_numpy(merge(group.call("values", rollouts), len(rollouts)))
                }
            else:
                group.call("save", str(folder))
                weights = load_file(folder / "model.safetensors")
        finally:
            group.stop()
        return Trained(before, entropy_sum, mean_over_steps(sums), weights)

    def of(key: tuple) -> Trained:
        if key not in made:
            made[key] = train(key)
        return made[key]

    return of


@pytest.mark.parametrize(
    "key", [*SHARED, *(pytest.param(key, marks=pytest.mark.slow) for key in SLOW)], ids=str
)
def test_results_and_updates_are_those_of_a_rank_alone(trained, key):
    alone, shared = trained(ALONE[key[0]]), trained(key)
    np.testing.assert_allclose(shared.before, alone.before, atol=1e-5, rtol=0)
    assert shared.entropy_sum == pytest.approx(alone.entropy_sum, rel=1e-5)
    for name in alone.metrics.keys() - {"padding", "computed_tokens"}:  # which are of how rows lie
        assert shared.metrics[name] == pytest.approx(alone.metrics[name], rel=1e-4, abs=1e-5), name
    assert alone.metrics["grad_norm"] > 0.01 and shared.weights.keys() == alone.weights.keys()
    for name, weight in alone.weights.items():
        torch.testing.assert_close(shared.weights[name], weight, atol=1e-5, rtol=0)


def test_a_rank_alone_gives_the_logprobs_of_transformers(trained, grouped_queries, rollouts, plain):
    """What the others are compared with."""
    expected = plain(
        load_policy(grouped_queries, "float32").lm, rollouts.prompts, rollouts.responses
    )
    np.testing.assert_allclose(trained(ALONE["grpo"]).before, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("rows", [1, 4, 15])
def test_slices_hold_every_token_once(rollouts, size, rows):
    batch = rollouts.take(range(rows))
    inputs = shared_responses(batch, CPU, True)
    slices = [slice_of(inputs, rank, size) for rank in range(size)]
    assert len({part["input_ids_BT"].shape for _, part in slices}) == 1
    ids, positions = (
        torch.cat([part[name] for _, part in slices], dim=1)[0]
        for name in ("input_ids_BT", "positions_BT")
    )
    length = inputs["input_ids_BT"].shape[1]
    assert 0 < len(ids) - length <= size and torch.equal(ids[:length], inputs["input_ids_BT"][0])
    assert torch.equal(positions[:length], inputs["positions_BT"][0])
    owned = torch.stack([own_N for own_N, _ in slices])
    assert (owned.sum(0) == 1).all()
    for rank, (own_N, part) in enumerate(slices):
        assert sum(mask.shape[-1] for mask in part["row_masks"]) >= len(ids)
        assert torch.equal(
            part["read_N"] + rank * part["input_ids_BT"].shape[1], inputs["read_N"][own_N]
        )
        assert torch.equal(part["targets_N"], inputs["targets_N"][own_N])
        kept = batch.keep(own_N.numpy())
        assert np.array_equal(kept.responses.values, part["targets_N"].numpy())
        assert np.array_equal(kept.advantages, batch.advantages[own_N.numpy()])
        assert len(kept) == rows and np.array_equal(
            kept.take([0]).advantages, kept.responses.like(kept.advantages)[0]
        )


@pytest.mark.parametrize(
    ("heads", "key_heads", "size", "fits"), [(8, 2, 2, True), (8, 2, 4, False), (6, 6, 4, False)]
)
def test_heads_that_do_not_divide_are_refused(heads, key_heads, size, fits):
    config = LlamaConfig(
        hidden_size=heads * 16, num_attention_heads=heads, num_key_value_heads=key_heads
    )
    if fits:
        check_heads(config, size)
    else:
        with pytest.raises(
            ValueError, match=rf"parallel {size} .* {heads} attention heads and {key_heads} key"
        ):
            check_heads(config, size)


def test_a_model_that_reads_across_rows_is_refused(tiny_models):
    module = load_policy(tiny_models.policy, "float32")
    module.lm.config.sliding_window = 8
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with pytest.raises(
            ValueError, match="rl.sequence_parallel 1 needs attention that keeps rows apart"
        ):
            Layout(
                module.lm, module, RankContext(0, 1, CPU), True, None, torch.distributed.group.WORLD
            )
    finally:
        torch.distributed.destroy_process_group()
