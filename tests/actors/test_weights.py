"""The way of weights into vLLM: what the engines sample from afterwards is what was sent, or
somebody is told.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import ray
import torch

from rayward.actors.group import Group
from rayward.actors.models.forward import RankContext
from rayward.actors.rollout import object_store
from rayward.actors.rollout.digest import WeightDigest, checksum
from rayward.actors.rollout.weights import EngineClient, WeightReader, WeightSender
from rayward.actors.rollout.worker import RolloutEngine
from rayward.actors.rollout_group import RolloutGroup
from rayward.actors.scoring.reference import FrozenModel
from rayward.data.ragged import Ragged, merge
from rayward.data.rollouts import Rollouts

CPU = torch.device("cpu")


class Transfer:
    """A policy in this process and its way to the engines: change it, send it, look at what the
    engines sample.
    """

    def __init__(self, group: RolloutGroup, policy: FrozenModel, prompts: Ragged):
        self.group, self.policy, self.prompts, self.version = group, policy, prompts, 0
        self.first = {name: weight.clone() for name, weight in policy.weights()}
        policy.connect(group.actors, group.backend)
        self.first_greedy = self.sample(temperature=0.0)

    def send(self) -> dict:
        self.version += 1
        sent = self.policy.send_weights(self.version)
        assert self.group.prove(sent["probe"], self.version) < 1e-5
        return sent

    def restore(self) -> dict:
        """Send the first weights again."""
        for name, weight in self.policy.weights():
            weight.copy_(self.first[name])
        return self.send()

    def sample(self, temperature: float = 1.0) -> Rollouts:
        return self.group.generate(self.prompts, 2, ("weights",), [2], temperature, 16)

    def assert_engines_run_the_policy(self) -> Rollouts:
        rollouts = self.sample()
        logprobs = merge([self.policy.logprobs(rollouts)], len(rollouts))
        np.testing.assert_allclose(rollouts.rollout_logprobs, logprobs, atol=1e-4, rtol=0)
        assert rollouts.weight_version == self.version
        return rollouts


@pytest.fixture(scope="module")
def prompts(tiny_models) -> Ragged:
    rng = np.random.default_rng(7)
    return Ragged.of([rng.integers(3, len(tiny_models.tokenizer), n) for n in (3, 9, 17, 33, 300)])


@pytest.fixture(scope="module")
def transfer(rollout_group, tiny_config, tiny_models, prompts) -> Iterator[Transfer]:
    transfer = Transfer(
        rollout_group, FrozenModel(tiny_models.policy, tiny_config(), 1.0, 0), prompts
    )
    yield transfer
    transfer.version = -1
    transfer.restore()  # as version 0, which a fresh engine has


def perturb(weight: torch.Tensor) -> None:
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    weight.add_(noise * weight.std().clamp(min=0.1))


PERTURBED = [
    "model.embed_tokens.weight",
    *(f"model.layers.1.self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    "model.layers.1.input_layernorm.weight",
    "model.norm.weight",
    "lm_head.weight",
]


def test_sending_the_same_weights_changes_no_bit(transfer):
    before = transfer.sample()
    sent = transfer.send()
    after = transfer.assert_engines_run_the_policy()
    assert sent["bytes"] == sum(weight.nbytes for weight in transfer.first.values())
    assert np.array_equal(after.responses.values, before.responses.values)
    assert np.array_equal(after.rollout_logprobs, before.rollout_logprobs)


@pytest.mark.parametrize("name", PERTURBED)
def test_every_kind_of_weight_arrives(transfer, name):
    first = transfer.first_greedy
    perturb(dict(transfer.policy.weights())[name])
    digest = transfer.send()["digest"]
    changed = transfer.sample(temperature=0.0)
    assert not np.array_equal(changed.rollout_logprobs[:1], first.rollout_logprobs[:1])
    assert not np.array_equal(changed.responses.values, first.responses.values)
    transfer.assert_engines_run_the_policy()
    assert transfer.restore()["digest"] != digest
    again = transfer.sample(temperature=0.0)
    assert np.array_equal(again.responses.values, first.responses.values)
    assert np.array_equal(again.rollout_logprobs, first.rollout_logprobs)


def test_all_weights_at_once_and_many_buckets(transfer, monkeypatch):
    monkeypatch.setattr(object_store, "BUCKET_BYTES", 20_000)
    for _, weight in transfer.policy.weights():
        perturb(weight)
    transfer.send()
    transfer.assert_engines_run_the_policy()
    transfer.restore()
    transfer.assert_engines_run_the_policy()


def test_an_engine_that_computes_something_else_is_named(transfer):
    """As where weights arrive but not where they are used: the digest cannot see it, the log-probs
    do.
    """
    ids, logprobs = transfer.send()["probe"]
    expected = (
        r"weight transfer 7 is not proved: .* differ by 0.02 nats on the average .* engine 0 "
        r"\(allowed 0.0003"
    )
    with pytest.raises(RuntimeError, match=expected):
        transfer.group.prove((ids, [value - 0.02 for value in logprobs]), 7)
    odd = [value - 7.0 * (place == 3) for place, value in enumerate(logprobs)]
    assert transfer.group.prove((ids, odd), 7) < 1e-4, (
        "rounding may be amplified at one token: see OUTLIER"
    )
    with pytest.raises(RuntimeError, match="differ by nan nats"):
        transfer.group.prove((ids, [float("nan")] * len(logprobs)), 7)


def test_the_version_is_on_every_rollout_of_every_engine(transfer):
    for _ in range(2):
        transfer.send()
        assert transfer.sample().weight_version == transfer.version
        versions = [
            actor.__ray_call__.remote(
                lambda engine: (engine.version, engine.llm.get_weight_version())
            )
            for actor in transfer.group.actors
        ]
        assert ray.get(versions) == [(transfer.version, str(transfer.version))] * 2


def test_prefixes_cached_with_old_weights_are_forgotten(transfer, prompts):
    """300 tokens are two whole blocks of the KV cache; a second request for them is served from
    it.
    """
    long = prompts.take([4])

    def cached_tokens(engine):
        from vllm import SamplingParams

        request = [{"prompt_token_ids": long[0].tolist()}]
        greedy = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False)
        return engine.llm.generate(request, greedy, use_tqdm=False)[0].num_cached_tokens

    def ask() -> list[int]:
        return ray.get(
            [actor.__ray_call__.remote(cached_tokens) for actor in transfer.group.actors]
        )

    ask()
    assert ask() == [256, 256]
    perturb(dict(transfer.policy.weights())["model.layers.0.self_attn.v_proj.weight"])
    transfer.send()
    rollouts = transfer.group.generate(long, 2, ("prefix",), [2], 1.0, 8)
    logprobs = merge([transfer.policy.logprobs(rollouts)], 2)
    np.testing.assert_allclose(rollouts.rollout_logprobs, logprobs, atol=1e-4, rtol=0)
    transfer.restore()
    assert ask() == [0, 0]


class Tampered(WeightReader):
    """Yields another tensor than the one whose checksum was taken: bits that change on the way."""

    def __iter__(self):
        for name, tensor in super().__iter__():
            changed = tensor.clone()
            if name == "model.norm.weight":
                changed[5] = torch.nextafter(changed[5], torch.tensor(9.0))
            yield name, changed


def test_bits_that_change_on_the_way_are_noticed(transfer):
    sender = transfer.policy.sender
    whole = sender.source
    sender.source = sender.transfer.source = Tampered(transfer.policy)
    try:
        expected = (
            r"weight transfer \d+: rollout engine 0 loaded digest \w{16}, the policy sent \w{16}"
        )
        with pytest.raises(RuntimeError, match=expected):
            transfer.send()
    finally:
        sender.source = sender.transfer.source = whole
    transfer.send()
    transfer.assert_engines_run_the_policy()


class LaggingClient(EngineClient):
    """Reports for engine 1 what it had loaded the time before."""

    before = ""

    def commit(self, version):
        digests = super().commit(version)
        lagging, self.before = [digests[0], self.before], digests[1]
        return lagging


def test_the_engine_whose_digest_differs_is_named(transfer):
    sender = transfer.policy.sender
    whole = sender.client
    sender.client = LaggingClient(transfer.group.actors, timeout_s=60)
    try:
        with pytest.raises(
            RuntimeError, match=r"rollout engine 1 loaded digest , the policy sent \w{16}"
        ):
            transfer.send()
        transfer.send()  # nothing has changed since
        perturb(dict(transfer.policy.weights())["lm_head.weight"])
        with pytest.raises(
            RuntimeError, match=r"rollout engine 1 loaded digest \w{16}, the policy sent \w{16}"
        ):
            transfer.send()
    finally:
        sender.client = whole
        transfer.restore()


@contextmanager
def stopped(actor) -> Iterator[None]:
    """The actor's process stands still, as it does in a machine that swaps or a kernel that
    hangs.
    """
    pid = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_stuck_engine_is_named_within_the_deadline(transfer):
    client = EngineClient(transfer.group.actors, timeout_s=3)
    source = WeightReader(transfer.policy)
    hasty = WeightSender(source, client, transfer.group.backend, RankContext(0, 1, CPU))
    with stopped(transfer.group.actors[1]):
        begun = time.monotonic()
        with pytest.raises(
            TimeoutError, match="rollout engine 1 did not finish start_weight_update within 3 s"
        ):
            hasty.send(99)
        assert time.monotonic() - begun < 10
    # The transfer was left half-way. Ended without a tensor, it leaves the weights as they were.
    transfer.policy.sender.client.finish_weight_update()
    again = transfer.sample(temperature=0.0)
    assert np.array_equal(again.rollout_logprobs, transfer.first_greedy.rollout_logprobs)
    assert again.weight_version == transfer.version
    perturb(dict(transfer.policy.weights())["model.embed_tokens.weight"])
    transfer.send()
    transfer.assert_engines_run_the_policy()
    transfer.restore()


@pytest.mark.parametrize("keeps", [False, True])
def test_an_engine_that_was_started_anew_gets_what_the_others_hold(transfer, keeps):
    """While the model learns on only where the sender keeps a copy."""
    policy = transfer.policy
    policy.sender.source.keeps = policy.sender.source.copies = keeps
    weight = dict(policy.weights())["model.norm.weight"]
    perturb(weight)
    transfer.send()
    expected = transfer.sample()
    actor = transfer.group.actors[1]
    if not keeps:
        policy.send_again([actor], transfer.version)
        assert_same_answers(transfer.sample(), expected)
    weight.mul_(1.5)
    if keeps:
        policy.send_again([actor], transfer.version)
        assert_same_answers(transfer.sample(), expected)
    else:
        with pytest.raises(RuntimeError, match="has other weights than the others"):
            policy.send_again([actor], transfer.version)
    policy.sender.source.keeps = policy.sender.source.copies = False
    transfer.restore()


def assert_same_answers(ours: Rollouts, theirs: Rollouts) -> None:
    assert np.array_equal(ours.responses.values, theirs.responses.values)
    np.testing.assert_allclose(ours.rollout_logprobs, theirs.rollout_logprobs, atol=1e-5, rtol=0)


def test_a_dead_engine_stops_the_transfer_at_once(transfer, tiny_config, tmp_path):
    config = tiny_config()
    none = (str(tmp_path / "none"), config, "x", True)
    dead = Group("rollout", RolloutEngine, config.resources.rollout, config.cluster, none)
    with pytest.raises(Exception, match="."):
        dead.ready()
    begun = time.monotonic()
    with pytest.raises((TimeoutError, ray.exceptions.RayActorError), match="RolloutEngine"):
        EngineClient([transfer.group.actors[0], dead.actors[0]], timeout_s=60).commit(
            transfer.version
        )
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    "key", [("ppo", 1, 1, 4000), ("ppo", 2, 3, 61)], ids=["one rank", "ZeRO-3 on two ranks"]
)
def test_a_policy_that_learns_sends_what_it_learnt(teams, transfer, made_rollouts, key):
    (group,) = teams.get([key])
    try:
        group.call("connect", transfer.group.actors, transfer.group.backend)
        seen = []
        for iteration in range(2):
            transfer.version += 1
            first, *others = group.call("send_weights", transfer.version)
            seen.append(first["digest"])
            assert first["bytes"] == sum(weight.nbytes for weight in transfer.first.values())
            assert others == [None] * (key[1] - 1)
            rollouts = transfer.sample()
            assert rollouts.weight_version == transfer.version
            now = merge([part for part, _ in group.call("logprobs", rollouts)], len(rollouts))
            np.testing.assert_allclose(rollouts.rollout_logprobs, now, atol=1e-4, rtol=0)
            batch = made_rollouts(16, seed=iteration)
            old = merge([part for part, _ in group.call("logprobs", batch)], len(batch))
            group.call(
                "update", batch.with_columns(policy_logprobs=old, rollout_logprobs=old), iteration
            )
        assert seen[0] != seen[1]
    finally:
        transfer.restore()
    transfer.assert_engines_run_the_policy()


# ------------------------------------------------------------------------------------
# The digest


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn]
)
def test_a_checksum_sees_one_bit_and_the_order(dtype):
    tensor = torch.randn(70_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    bits = tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()])
    original = checksum(tensor)
    assert checksum(tensor.clone()) == original
    for position in (0, 1, 65_519, 65_520, 65_521, 69_999):
        for bit in range(8 * tensor.element_size() - 1):
            bits[position] ^= 1 << bit
            assert checksum(tensor) != original, (position, bit)
            bits[position] ^= 1 << bit
    for i, j in ((0, 1), (5, 69_999), (65_520, 65_521), (0, 65_522)):
        if bits[i] != bits[j]:
            bits[[i, j]] = bits[[j, i]]
            assert checksum(tensor) != original, (i, j)
            bits[[i, j]] = bits[[j, i]]
    assert checksum(tensor) == original


def test_a_checksum_does_not_depend_on_how_the_tensor_lies_in_memory():
    tensor = torch.randn(40, 30)
    assert checksum(tensor.t()) == checksum(tensor.t().contiguous()) != checksum(tensor)
    assert checksum(torch.nn.Parameter(tensor)) == checksum(tensor)
    assert isinstance(checksum(torch.tensor(1.5)), int)
    assert checksum(torch.tensor(0.0)) != checksum(torch.tensor(-0.0))


def test_a_checksum_of_more_than_one_part():
    tensor = torch.zeros(2**24 + 3, dtype=torch.uint8)
    original = checksum(tensor)
    tensor[2**24] = 1
    assert checksum(tensor) == original + 2**24 % 65521 + 1
    tensor[2**24], tensor[2**24 + 1] = 0, 1
    assert checksum(tensor) == original + (2**24 + 1) % 65521 + 1


def test_a_digest_depends_on_names_dtypes_and_shapes_but_not_on_the_order():
    def digest(*pairs):
        taken = WeightDigest()
        assert [name for name, _ in taken.watch(pairs)] == [name for name, _ in pairs]
        assert taken.bytes == sum(tensor.nbytes for _, tensor in pairs)
        return taken.text()

    a, b = ("a", torch.arange(6.0)), ("b", torch.ones(3))
    assert digest(a, b) == digest(b, a) != digest(a)
    others = [
        ("c", a[1]),
        ("a", a[1].view(2, 3)),
        ("a", a[1].view(torch.int32)),
        ("a", a[1].flip(0)),
    ]
    assert len({digest(a), *(digest(other) for other in others)}) == 5
