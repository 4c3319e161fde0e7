"""vLLM engines: an answer is a function of weights, prompt and seed, and its log-probs are the
trainer's.
"""

from __future__ import annotations

import copy
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import ray
import torch

from rayward.actors.rollout_group import ExtraPrompts, RolloutGroup, request_seed, transfer_backend
from rayward.actors.scoring.reference import FrozenModel
from rayward.configs.sections.machines import Role
from rayward.data.ragged import Ragged, merge
from rayward.data.rollouts import Rollouts, concatenated
from rayward.data.templates.template import TEMPLATES, encode
from rayward.data.toy.toyworld import prompts as toy_prompts

MAX_NEW_TOKENS = 24


@pytest.fixture(scope="module")
def prompts(tiny_models) -> Ragged:
    """Chats, and long rows: three that share two blocks of the KV cache (128 tokens each), one that
    is just a block.
    """
    template, rng = TEMPLATES["openchat_3.5"], np.random.default_rng(0)
    vocab_size = len(tiny_models.tokenizer)
    chats = [
        encode(template, p.turns, tiny_models.tokenizer, True).ids
        for p in toy_prompts(6, 0, "train")
    ]
    shared = rng.integers(3, vocab_size, 300).tolist()
    long = [
        shared,
        shared[:260] + rng.integers(3, vocab_size, 60).tolist(),
        shared[:257],
        shared[:128],
    ]
    return Ragged.of([*chats, *long])


@pytest.fixture(scope="module")
def stops(tiny_models) -> list[int]:
    """Enough of the vocabulary that about half of the answers stop before the limit."""
    return [tiny_models.tokenizer.eos_token_id, *range(40, 50)]


def generate(group, prompts, stops, samples=3, seed=("run", 0), temperature=1.0) -> Rollouts:
    return group.generate(prompts, samples, seed, stops, temperature, MAX_NEW_TOKENS)


@pytest.fixture(scope="module")
def answers(rollout_group, prompts, stops) -> Rollouts:
    return generate(rollout_group, prompts, stops)


def assert_identical(ours: Rollouts, theirs: Rollouts, rounding: float = 0.0) -> None:
    """Bit by bit; tells which answers differ. `rounding`: allowed in log-probs, in nats."""
    assert np.array_equal(ours.prompt_index, theirs.prompt_index)
    different = []
    for row in range(len(theirs)):
        left, right = ours.take([row]), theirs.take([row])
        assert np.array_equal(left.prompts.values, right.prompts.values)
        if not np.array_equal(left.responses.values, right.responses.values):
            different.append(f"answer {row} in its tokens")
        elif np.abs(left.rollout_logprobs - right.rollout_logprobs).max(initial=0.0) > rounding:
            gap = np.abs(left.rollout_logprobs - right.rollout_logprobs)
            different.append(
                f"answer {row} in {(gap > 0).sum()} of {len(gap)} log-probs, by up to "
                f"{gap.max():.2g}"
            )
        else:
            assert np.array_equal(left.finished, right.finished)
    assert not different, different


def test_answers_are_in_the_order_of_the_requests(answers, prompts):
    assert answers.prompt_index.tolist() == np.repeat(np.arange(len(prompts)), 3).tolist()
    for row in range(len(answers)):
        assert np.array_equal(answers.prompts[row], prompts[answers.prompt_index[row]])
    assert len({tuple(answers.responses[row]) for row in range(len(answers))}) == len(answers)


def test_an_answer_has_ended_where_it_ends_with_the_end_token_of_the_template(
    rollout_group, prompts, tiny_models
):
    """The engine also stops at the end token of the folder's generation config; a reward model
    never saw it there.
    """
    stops, other = list(range(40, 50)), tiny_models.tokenizer.eos_token_id
    answers = generate(rollout_group, prompts, stops, samples=12)
    last = answers.responses.values[answers.responses.offsets[1:] - 1]
    assert np.array_equal(
        answers.finished, np.isin(last, stops)
    ) and 0 < answers.finished.sum() < len(answers)
    stopped_there = (last == other) & (answers.responses.lengths < MAX_NEW_TOKENS)
    assert stopped_there.any() and not answers.finished[stopped_there].any()


@pytest.mark.parametrize("engine", [0, 1])
def test_the_number_of_engines_changes_nothing(rollout_group, answers, prompts, stops, engine):
    one = copy.copy(rollout_group)
    one.actors = [rollout_group.actors[engine]]
    assert_identical(generate(one, prompts, stops), answers)


@pytest.mark.parametrize("order", ["reversed", "shuffled", "one by one", "in threes"])
def test_batches_and_their_order_change_nothing(rollout_group, answers, prompts, stops, order):
    rows = np.arange(len(answers))
    batches = {
        "reversed": [rows[::-1]],
        "shuffled": [np.random.default_rng(1).permutation(rows)],
        "one by one": [rows[i : i + 1] for i in rows],
        "in threes": [rows[i::10] for i in range(10)],
    }[order]
    seeds = np.array([request_seed("run", 0, row // 3, row % 3) for row in range(len(answers))])
    for batch in batches:
        index = answers.prompt_index[batch]
        generate = rollout_group.actors[0].generate.options(num_returns="streaming")
        arguments = (prompts.take(index), index, seeds[batch], 1.0, MAX_NEW_TOKENS, stops)
        (part, again), (end, seconds) = [
            ray.get(ref) for ref in generate.remote(*arguments, [7] * len(batch))
        ]
        assert part == 7 and end == -1 and seconds > 0
        assert_identical(again, answers.take(batch))


@pytest.mark.parametrize("size", [1, 3, 10])
def test_parts_are_whole_prompts_and_hold_what_all_answers_hold(
    rollout_group, prompts, stops, size
):
    """Both with filled prefix caches: on some processors the last bits differ from those of the
    first answers ever.
    """
    generate(rollout_group, prompts, stops)
    answers = generate(rollout_group, prompts, stops)
    stream = rollout_group.stream(prompts, 3, ("run", 0), stops, 1.0, MAX_NEW_TOKENS, size)
    assert stream.running() == [0, 1]
    parts = dict(stream.parts())
    assert stream.running() == [] and stream.seconds > 0
    assert sorted(parts) == list(range(-(-len(prompts) // size)))
    for number, part in parts.items():
        rows = np.flatnonzero(answers.prompt_index // size == number)
        assert_identical(part, answers.take(rows))


def test_prompts_beside_others_get_the_answers_that_they_get_alone(rollout_group, prompts, stops):
    """As a part of their own, the last; and the others theirs. With filled caches, as above.

    The same tokens. The log-probs up to two roundings: with AVX512 vLLM's engine gives the
    tokens of a prompt other last bits where another prompt is prefilled along with it.
    """
    fixed, size = prompts.take([0, 3, 7]), 4
    arguments = (stops, 1.0, MAX_NEW_TOKENS)
    for _ in range(2):
        alone, others = (
            rollout_group.generate(fixed, 1, ("fixed",), *arguments),
            generate(rollout_group, prompts, stops),
        )
    stream = rollout_group.stream(
        prompts, 3, ("run", 0), *arguments, size, extra=ExtraPrompts(fixed, ("fixed",))
    )
    parts = dict(stream.parts())
    assert sorted(parts) == [0, 1, 2, 3]
    extra = parts.pop(3)
    extra = replace(extra, prompt_index=extra.prompt_index - len(prompts))
    assert_identical(extra, alone, rounding=2e-6)
    assert_identical(concatenated([parts[number] for number in sorted(parts)]), others, 2e-6)


def test_an_engine_that_is_killed_on_the_way_changes_no_answer(
    rollout_group, answers, prompts, stops
):
    """But for rounding where its prefix cache was filled before; see above."""

    def pid() -> int:
        return ray.get(rollout_group.actors[1].__ray_call__.remote(lambda _: os.getpid()))

    before = pid()
    parts = rollout_group.stream(
        prompts, 3, ("run", 0), stops, 1.0, MAX_NEW_TOKENS, prompts_per_part=1
    ).parts()
    known = dict([next(parts)])
    os.kill(before, signal.SIGKILL)
    known |= dict(parts)
    assert sorted(known) == list(range(len(prompts)))
    again = concatenated([known[number] for number in sorted(known)])
    assert_identical(again, answers, rounding=1e-5)
    assert pid() != before


def test_seeds_change_the_answers(rollout_group, answers, prompts, stops):
    for other in (("run", 1), ("another", 0)):
        rollouts = generate(rollout_group, prompts, stops, seed=other)
        same = [
            np.array_equal(rollouts.responses[row], answers.responses[row])
            for row in range(len(answers))
        ]
        assert sum(same) <= 1


def test_an_answer_ends_with_its_stop_token_or_at_the_limit(answers, stops):
    assert 0.2 < answers.finished.mean() < 0.9
    for row in range(len(answers)):
        response = answers.responses[row].tolist()
        assert not set(response[:-1]) & set(stops)
        assert (response[-1] in stops) == bool(answers.finished[row])
        assert answers.finished[row] or len(response) == MAX_NEW_TOKENS


def test_the_last_token_before_the_limit_may_still_be_a_stop(rollout_group, prompts):
    """Answers of one token out of a vocabulary that is half stops: finished is what was sampled,
    not the length.
    """
    rollouts = rollout_group.generate(prompts, 4, ("last",), list(range(3, 150)), 1.0, 1)
    assert rollouts.responses.lengths.tolist() == [1] * len(rollouts)
    assert rollouts.finished.tolist() == [3 <= token < 150 for token in rollouts.responses.values]
    assert 0 < rollouts.finished.mean() < 1


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rollout_logprobs_are_the_trainers(
    rollout_group, tiny_config, tiny_models, prompts, stops, temperature
):
    rollouts = generate(rollout_group, prompts, stops, temperature=temperature)
    trainer = FrozenModel(tiny_models.policy, tiny_config(), temperature, 0)
    logprobs = merge([trainer.logprobs(rollouts)], len(rollouts))
    assert rollouts.rollout_logprobs.dtype == np.float32
    np.testing.assert_allclose(rollouts.rollout_logprobs, logprobs, atol=1e-4, rtol=0)
    assert logprobs.std() > 0.5


def test_tokens_are_drawn_from_the_whole_distribution(rollout_group, tiny_models, prompts):
    """Frequencies of 2000 first tokens against the trainer's probabilities: no top-p, top-k or
    penalty.
    """
    drawn = rollout_group.generate(
        prompts.take([0]), 2000, ("frequencies",), [], 1.0, 1
    ).responses.values
    with torch.no_grad():
        from rayward.actors.models.load import load_policy

        lm = load_policy(tiny_models.policy, "float32").lm
        probability_V = (
            lm(torch.from_numpy(prompts[0].astype(np.int64))[None])
            .logits[0, -1]
            .double()
            .softmax(-1)
            .numpy()
        )
    count_V = np.bincount(drawn, minlength=len(probability_V))
    likely_V = probability_V * len(drawn) >= 5
    chi_squared = float(
        ((count_V - probability_V * 2000) ** 2 / (probability_V * 2000))[likely_V].sum()
    )
    degrees = int(likely_V.sum())
    assert degrees > 50
    assert chi_squared < degrees + 4 * (2 * degrees) ** 0.5
    rare = probability_V[~likely_V].sum()
    assert abs(count_V[~likely_V].sum() / 2000 - rare) < 4 * (rare / 2000) ** 0.5


def test_no_rows_for_an_engine(rollout_group, prompts, stops):
    """Fewer requests than engines."""
    rollouts = generate(rollout_group, prompts.take([1]), stops, samples=1)
    assert len(rollouts) == 1 and rollouts.weight_version == 0


def test_request_seeds_are_fixed_numbers():
    """They must not change between machines and releases, or a run could not be repeated."""
    assert request_seed(7, "rl", 3, 0, 1) == request_seed(7, "rl", 3, 0, 1)
    drawn = {
        request_seed(7, "rl", i, j, k) for i in range(10) for j in range(10) for k in range(10)
    }
    assert len(drawn) == 1000 and all(0 <= seed < 2**63 for seed in drawn)
    assert request_seed(7, "rl", 11, 1) != request_seed(7, "rl", 1, 11)


def test_weights_go_by_nccl_only_to_whole_gpus(tiny_config):
    on_cpu, on_gpu = Role(), Role(gpus=1)

    def config(backend, gpus):
        shares = {role: {"gpus": gpus} for role in ("rollout", "policy", "reference")}
        return tiny_config(
            rollout={"weight_transfer": backend, "gpu_memory_fraction": 0.4}, resources=shares
        )

    assert (
        transfer_backend(config("auto", 0), on_cpu)
        == transfer_backend(config("auto", 1), on_cpu)
        == "object_store"
    )
    assert (
        transfer_backend(config("auto", 0), on_gpu)
        == transfer_backend(config("auto", 0.5), on_gpu)
        == "object_store"
    )
    assert (
        transfer_backend(config("auto", 1), on_gpu)
        == transfer_backend(config("auto", 1), Role(gpus=0.5))
        == "nccl"
    )
    ipc = config("ipc", 0.5)
    assert transfer_backend(ipc, ipc.resources.policy) == "ipc"
    assert transfer_backend(ipc, ipc.resources.reference) == "object_store", (
        "it does not stand beside every engine"
    )


def test_a_folder_without_a_model_is_told(local_ray, tiny_config, tmp_path):
    config = tiny_config()
    group = RolloutGroup(str(tmp_path / "nothing"), config, config.resources.policy)
    with pytest.raises(Exception, match="nothing"):
        group.ready()
    with pytest.raises(ray.exceptions.RayActorError, match="nothing"):
        group.call("commit_weights", 1)
