"""The cost model: operations as torch counts them, rates found again from what they predict, times
that add up.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from rayward.actors.models.heads import TokenPolicy
from rayward.algorithms import logprobs
from rayward.cluster.cost import SCORING, Rates, calibrate, fit, predict
from rayward.cluster.operations import Load, Shape

CONFIG = LlamaConfig(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    vocab_size=200,
    attn_implementation="eager",
)
SHAPE = Shape.of(CONFIG.to_dict())
LARGER = Shape.of(CONFIG.to_dict() | {"num_hidden_layers": 6, "intermediate_size": 400})
LOAD = Load(
    SHAPE,
    16,
    4,
    32,
    64,
    epochs=2,
    micro_batch_tokens=1024,
    reward=SHAPE,
    critic=SHAPE,
    bytes_per_weight=4,
)
RATES = Rates(2e10, 5e-5, 4e10, 4e10, 1e-3, 1e9, 0.05)


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_of_the_model(tied: bool) -> None:
    config = LlamaConfig(**CONFIG.to_dict() | {"tie_word_embeddings": tied})
    model = AutoModelForCausalLM.from_config(config)
    matrices = sum(weight.numel() for weight in model.parameters() if weight.ndim == 2)
    assert Shape.of(config.to_dict()).parameters == matrices


def test_operations_are_those_that_torch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch counts attention to all tokens, half of which causal attention does not need. Logits
    are made again.
    """
    monkeypatch.setattr(logprobs, "KEPT_BYTES", 0)
    prompt, answer = 20, 31
    row = prompt + answer
    masked = 2 * SHAPE.layers * SHAPE.attention_width * row**2
    policy = TokenPolicy(AutoModelForCausalLM.from_config(CONFIG))
    chosen = torch.arange(row)[None] >= prompt
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        policy(torch.ones(1, row, dtype=torch.long), chosen)
    load = Load(SHAPE, 1, 1, prompt, answer)
    assert load.forward_flops()["logprobs"] == forward.get_total_flops() - masked
    with FlopCounterMode(display=False) as training:
        policy(torch.ones(1, row, dtype=torch.long), chosen)[0].sum().backward()
    assert load.training_flops()["policy_update"] == training.get_total_flops() - 3 * masked


def test_work_grows_as_it_should() -> None:
    def flops(load: Load) -> list[float]:
        return [*load.forward_flops().values(), *load.training_flops().values()]

    assert flops(replace(LOAD, prompts=32)) == pytest.approx([2 * x for x in flops(LOAD)])
    assert (
        replace(LOAD, epochs=4).training_flops()["critic_update"]
        == 2 * LOAD.training_flops()["critic_update"]
    )
    longer = replace(LOAD, prompt_tokens=64, answer_tokens=128).forward_flops()
    assert all(longer[name] > 2 * flops for name, flops in LOAD.forward_flops().items())
    alone = replace(LOAD, reward=None, critic=None, reference=False, trainer_logprobs=False)
    assert all(predict(alone, RATES).phases[name] == 0 for name in (*SCORING, "critic_update"))


def test_prompts_are_read_once_where_that_takes_fewer_operations() -> None:
    """Operations of the rows that share, as attention with a mask over the whole row takes them."""
    apart = replace(LOAD, answer_tokens=8)
    shared = replace(apart, shared_prompts=True)
    row = 32 + 4 * 8
    assert shared.rows(SHAPE) == (16, row, 1.0)
    each = 2 * SHAPE.body_parameters * row + 4 * SHAPE.layers * SHAPE.attention_width * row**2
    assert shared.forward_flops()["values"] == 16 * each < apart.forward_flops()["values"]
    assert shared.forward_flops()["generate"] == apart.forward_flops()["generate"]
    # Room for two answers.
    assert replace(shared, micro_batch_tokens=50).rows(SHAPE) == (32, 32 + 2 * 8, 1.0)
    # Attention over four answers costs more than prompts.
    long = replace(shared, prompt_tokens=2, answer_tokens=4000)
    assert long.rows(SHAPE) == (64, 4002, 0.5)


def test_calibration_finds_the_rates_that_made_the_times() -> None:
    def measured(load: Load) -> tuple[Load, dict[str, float]]:
        of = predict(load, RATES, shared=True)
        rollout = of.phases["generate"] + sum(of.phases[name] for name in SCORING)
        update = of.phases["policy_update"] + of.phases["critic_update"]
        seconds = {
            "rollout": rollout,
            "update": update,
            "transfer": of.phases["transfer"],
            "iteration": of.sync_s,
        }
        return load, seconds

    found = calibrate(
        [measured(LOAD), measured(replace(LOAD, policy=LARGER, reward=LARGER, critic=LARGER))]
    )
    assert found.training_flops == pytest.approx(RATES.training_flops, rel=1e-6)
    assert found.generate_flops == pytest.approx(RATES.generate_flops, rel=1e-6)
    assert found.generate_token_s == pytest.approx(RATES.generate_token_s, rel=1e-6)
    other = replace(LOAD, prompts=64, answer_tokens=200)
    assert predict(other, found, shared=True).sync_s == pytest.approx(
        predict(other, RATES, shared=True).sync_s
    )
    with pytest.raises(ValueError, match="1 measured load"):
        calibrate([measured(LOAD)])


def test_fit_keeps_to_what_can_be() -> None:
    assert fit([(1, 2, 8), (2, 1, 7)]) == pytest.approx((2, 3))
    # 2 and -1 would fit without error.
    assert fit([(1, 1, 1), (2, 1, 3)]) == pytest.approx((15 / 13, 0))
    assert fit([(1, 2, 3), (2, 4, 6)]) == pytest.approx((3, 0))


def test_overlap_saves_time_only_on_processors_of_their_own() -> None:
    own, shared = predict(LOAD, RATES), predict(LOAD, RATES, shared=True)
    assert own.phases == shared.phases
    assert (
        shared.sync_s
        == shared.one_step_off_s
        == pytest.approx(sum(own.phases.values()) + RATES.fixed_s)
    )
    assert max(own.phases.values()) < own.one_step_off_s < own.sync_s < shared.sync_s


def test_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, rayward.cluster.cost; sys.exit(bool({'torch', 'ray', 'numpy'} & "
        "sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
