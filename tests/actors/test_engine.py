"""TrainEngine on one and two gloo ranks, against a plain torch loop and against itself under every
ZeRO stage.
"""

from __future__ import annotations

import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rayward.actors.beside import beside
from rayward.actors.group import TrainingGroup
from rayward.actors.models.forward import packed_inputs, response_inputs
from rayward.actors.models.lean import skip_unread
from rayward.actors.models.load import load_policy, load_scalar
from rayward.actors.models.lora import add_adapters
from rayward.actors.process import Rendezvous
from rayward.actors.training.engine import TrainEngine
from rayward.actors.training.supervised import require_separate_rows
from rayward.configs.sections.machines import Role
from rayward.configs.sections.rl import Lora
from rayward.configs.sections.training import Optimizer
from rayward.data.ragged import join
from rayward.data.templates.tokenizer import load_tokenizer

MOMENTS = ("exp_avg", "exp_avg_sq")
PEAK = 1e-3
TOTAL_STEPS = 4
# Warm-up of 2 steps, then a cosine over the other 2, by hand.
RATES = [PEAK / 2, PEAK, PEAK, PEAK / 2]
# eps is far above the rounding noise of gradients, which Adam would otherwise blow up to whole
# steps; clipping bites.
BASE = {
    "schedule": "cosine",
    "warmup_fraction": 0.5,
    "weight_decay": 0.1,
    "betas": (0.9, 0.95),
    "eps": 1e-4,
    "max_grad_norm": 0.5,
    "zero_stage": 0,
    "micro_batch_tokens": 10_000,
}


class Rank:
    """One process that trains with TrainEngine; `reload` of its save() can be made to tamper with
    what was written.
    """

    def __init__(self, world_size: int, rank: int):
        torch.set_num_threads(1)
        self.rendezvous = Rendezvous(rank, world_size, timeout_s=60)

    def open(self):
        return self.rendezvous.open()

    def start(self, host, port):
        self.context = self.rendezvous.join(host, port, gpus=0)

    def make(self, folder, optimizer, dtype="float32", packed=False, lora=None):
        module = load_policy(folder, dtype)
        assert not packed or skip_unread(module)
        if lora:
            add_adapters(module.lm, lora, seed=3)
        self.engine = TrainEngine(module, optimizer, PEAK, TOTAL_STEPS, dtype, self.context.device)

    def train(self, rollouts, steps, factor=1.0, poisoned_row=None, packed=False):
        """Optimizer steps on the token mean of -log p of `steps`' rows; (weights on rank 0, sums of
        every step).

        The loss is multiplied by `factor`, everywhere or only in the micro-batch that holds
        `poisoned_row`.
        """
        history = []
        if packed:
            require_separate_rows(self.engine)
        for rows in steps:
            step = rollouts.take(rows)
            cut = self.context.packs if packed else self.context.micro_batches
            micro_batches = cut(step.sequences().lengths, self.engine.settings.micro_batch_tokens)

            def loss(engine, batch):
                if packed:
                    inputs, weights_N = packed_inputs(
                        batch.sequences(), answer_weights(batch), self.context.device
                    )
                    assert bool((weights_N == 1).all())
                else:
                    inputs = response_inputs(batch, self.context.device)
                logprobs_N, _ = engine(*inputs)
                times = (
                    factor if poisoned_row is None or poisoned_row in batch.prompt_index else 1.0
                )
                return -logprobs_N.sum() * times, {
                    "count_sum": float(len(logprobs_N)),
                    "longest_max": float(batch.responses.lengths.max(initial=0)),
                }

            sums = self.engine.step(
                [step.take(rows) for rows in micro_batches], loss, int(step.responses.lengths.sum())
            )
            history.append(sums | {"micro_batches": len(micro_batches)})
        return self.engine.state_dict(), history

    def save(self, folder, tokenizer_folder, tamper=None):
        def reload(path):
            module = load_policy(path, "float32")
            if tamper is not None:
                name, change = tamper
                with torch.no_grad():
                    module.lm.get_parameter(name).view(-1)[-1] += change
            return module

        self.engine.save(folder, load_tokenizer(tokenizer_folder), reload)

    def save_scalar(self, start, folder, optimizer):
        engine = TrainEngine(
            load_scalar(start, "float32"),
            optimizer,
            PEAK,
            TOTAL_STEPS,
            "float32",
            self.context.device,
        )
        engine.save(folder, load_tokenizer(start), lambda path: load_scalar(path, "float32"))

    def save_state(self, folder, held=False):
        """`held`: nothing is written before `state_saved`."""
        if self.context.rank == 0:
            Path(folder).mkdir(parents=True)
        torch.distributed.barrier()
        if not held:
            return self.engine.save_state(Path(folder)).done()
        self.may_write = threading.Event()
        beside(self.may_write.wait)
        self.saving = self.engine.save_state(Path(folder), copies=1)
        return self.saving.done()

    def state_saved(self):
        self.may_write.set()
        self.saving.result()

    def load_state(self, folder, anew=()):
        self.engine.load_state(Path(folder), anew)
        return self.engine.steps_done

    def contents(self):
        """What DeepSpeed, asked itself, has of each weight that learns: in fp32, Adam's moments,
        and the weight that the model computes with. And random numbers, which are used up.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        engine, found = self.engine.engine, {}
        if self.engine.zero_stage in (1, 2):
            # As its step does, when Adam has a state of the first group only.
            engine.optimizer._hp_optimizer_states_linked = False
            engine.optimizer._lazy_init_hp_params_optimizer_state()
        for name, p in engine.module.named_parameters():
            if not p.requires_grad:
                continue
            if self.engine.zero_stage:
                moments = [safe_get_full_optimizer_state(p, key) for key in MOMENTS]
                found[name] = [safe_get_full_fp32_param(p), *moments]
            else:
                found[name] = [p, *(engine.optimizer.state[p][key] for key in MOMENTS)]
            with self.engine._gathered([p]):
                found[name].append(p)
                found[name] = [tensor.detach().float().clone() for tensor in found[name]]
        return found, torch.rand(4).tolist()

    def compiled_op(self):
        from deepspeed.comm import comm

        return str(comm.cdb.shm_comm_op)

    def weights(self):
        return [(name, tensor.clone()) for name, tensor in self.engine.weights()]

    def logprobs(self, rollouts):
        return self.engine.infer(
            lambda engine: engine(*response_inputs(rollouts, self.context.device))[0]
        ).numpy()


def answer_weights(rollouts):
    zeros, ones = (
        of.like(np.full(len(of.values), weight, np.float32))
        for of, weight in ((rollouts.prompts, 0), (rollouts.responses, 1))
    )
    return join(zeros, ones)


@pytest.fixture(scope="module")
def ranks(local_ray, tiny_config):
    """Process groups of 1 and of 2 ranks."""
    groups = {
        n: TrainingGroup("trainer", Rank, Role(workers=n, cpus=0.1), tiny_config().cluster, (n,))
        for n in (1, 2)
    }
    for calls, group in [(group.begin_start(), group) for group in groups.values()]:
        group.finish(calls, 120)
    yield groups
    for group in groups.values():
        group.stop()


@pytest.fixture(scope="module")
def rollouts(made_rollouts):
    return made_rollouts(12, seed=3)


STEPS = [[0, 1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11]]


def trained(
    ranks,
    tiny_models,
    rollouts,
    world_size=1,
    steps=STEPS,
    dtype="float32",
    factor=1.0,
    poisoned_row=None,
    packed=False,
    lora=None,
    **settings,
):
    group = ranks[world_size]
    group.call("make", tiny_models.policy, Optimizer(**{**BASE, **settings}), dtype, packed, lora)
    results = group.call("train", rollouts, steps, factor, poisoned_row, packed)
    assert all(state is None for state, _ in results[1:])
    return results[0][0], [history for _, history in results]


def reference(folder, rollouts, steps, weight_decay=BASE["weight_decay"]):
    """The same training in ten lines of torch: unpadded rows, one backward of the global token
    mean, AdamW by hand.
    """
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    matrices, vectors = (
        [p for p in lm.parameters() if (p.ndim >= 2) == wanted] for wanted in (True, False)
    )
    adam = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0},
        ],
        lr=PEAK,
        betas=BASE["betas"],
        eps=BASE["eps"],
    )
    losses, norms = [], []
    for rate, rows in zip(RATES, steps, strict=False):
        total, tokens = 0.0, 0
        for row in rows:
            ids_T = torch.from_numpy(rollouts.sequences()[row].astype(np.int64))
            first = int(rollouts.prompts.lengths[row])
            logits_TV = lm(ids_T[None]).logits[0, first - 1 : -1]
            total = total + torch.nn.functional.cross_entropy(
                logits_TV, ids_T[first:], reduction="sum"
            )
            tokens += len(ids_T) - first
        (total / tokens).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(lm.parameters(), BASE["max_grad_norm"])))
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
        adam.zero_grad()
        losses.append(float(total))
    return {name: p.detach() for name, p in lm.named_parameters()}, losses, norms


def assert_equal_weights(ours, theirs, atol=1e-6):
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(
            ours[name],
            theirs[name],
            atol=atol,
            rtol=0,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.fixture(scope="module")
def expected(tiny_models, rollouts):
    weights, losses, norms = reference(tiny_models.policy, rollouts, STEPS)
    assert min(norms) > BASE["max_grad_norm"], (
        "clipping has to bite for the comparison to mean anything"
    )
    return weights, losses, norms


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("world_size", "micro_batch_tokens"), [(1, 10_000), (1, 60), (2, 10_000), (2, 60)]
)
def test_steps_are_those_of_a_plain_torch_loop(
    ranks, tiny_models, rollouts, expected, zero_stage, world_size, micro_batch_tokens
):
    weights, losses, norms = expected
    ours, histories = trained(
        ranks,
        tiny_models,
        rollouts,
        world_size,
        zero_stage=zero_stage,
        micro_batch_tokens=micro_batch_tokens,
    )
    assert_equal_weights(ours, weights)
    for step in range(len(STEPS)):
        parts = [history[step] for history in histories]
        assert parts[0]["micro_batches"] == parts[1 % world_size]["micro_batches"]
        assert sum(part["loss_sum"] for part in parts) == pytest.approx(losses[step], rel=1e-5)
        assert (
            sum(part["count_sum"] for part in parts)
            == rollouts.responses.lengths[STEPS[step]].sum()
        )
        assert (
            max(part["longest_max"] for part in parts)
            == rollouts.responses.lengths[STEPS[step]].max()
        )
        assert all(part["learning_rate"] == pytest.approx(RATES[step]) for part in parts)
        assert [part["grad_norm"] for part in parts] == pytest.approx(
            [norms[step]] * world_size, rel=1e-4
        )


@pytest.mark.parametrize("zero_stage", [1, 3])
@pytest.mark.parametrize(
    ("world_size", "micro_batch_tokens"), [(1, 10_000), (1, 60), (2, 10_000), (2, 60)]
)
def test_packed_rows_give_the_steps_of_rows_alone(
    ranks, tiny_models, rollouts, expected, zero_stage, world_size, micro_batch_tokens
):
    weights, losses, norms = expected
    ours, histories = trained(
        ranks,
        tiny_models,
        rollouts,
        world_size,
        zero_stage=zero_stage,
        micro_batch_tokens=micro_batch_tokens,
        packed=True,
    )
    assert_equal_weights(ours, weights)
    for step in range(len(STEPS)):
        parts = [history[step] for history in histories]
        assert sum(part["loss_sum"] for part in parts) == pytest.approx(losses[step], rel=1e-5)
        assert [part["grad_norm"] for part in parts] == pytest.approx(
            [norms[step]] * world_size, rel=1e-4
        )


def test_the_plain_loop_tells_a_wrong_mean_apart(tiny_models, rollouts, expected):
    """The comparison above would notice a mean of means: dropping one row of a step moves weights
    far beyond 1e-6.
    """
    weights, _, _ = reference(tiny_models.policy, rollouts, [STEPS[0][:-1], *STEPS[1:]])
    assert max(float((weights[name] - expected[0][name]).abs().max()) for name in weights) > 1e-4


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_rank_without_rows_takes_part(ranks, tiny_models, rollouts, world_size):
    weights, _, _ = reference(tiny_models.policy, rollouts, [[4]])
    for zero_stage in (1, 3):
        ours, histories = trained(
            ranks, tiny_models, rollouts, world_size, steps=[[4]], zero_stage=zero_stage
        )
        assert_equal_weights(ours, weights)
        assert (
            sorted(history[0]["count_sum"] for history in histories)[-1]
            == rollouts.responses.lengths[4]
        )


def test_an_engine_starts_without_the_op_that_deepspeed_would_compile(ranks, tiny_models):
    group = ranks[2]
    group.call("make", tiny_models.policy, Optimizer(**BASE))
    assert group.call("compiled_op") == ["None", "None"]


@pytest.mark.parametrize("packed", [False, True])
def test_gradient_checkpointing_changes_nothing(ranks, tiny_models, rollouts, expected, packed):
    for zero_stage in (1, 3):
        settings = {"gradient_checkpointing": True, "zero_stage": zero_stage}
        ours, _ = trained(ranks, tiny_models, rollouts, 2, packed=packed, **settings)
        assert_equal_weights(ours, expected[0])


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_weight_decay_is_on_matrices_only(ranks, tiny_models, rollouts, zero_stage):
    """With a gradient of zero nothing but the decay is left."""
    before = {
        name: p.detach()
        for name, p in load_policy(tiny_models.policy, "float32").lm.named_parameters()
    }
    after, _ = trained(
        ranks, tiny_models, rollouts, 2, steps=[[0, 1]], factor=0.0, zero_stage=zero_stage
    )
    for name, weight in before.items():
        kept = 1 - RATES[0] * BASE["weight_decay"] if weight.ndim >= 2 else 1.0
        torch.testing.assert_close(after[name], weight * kept, atol=1e-7, rtol=0, msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_training_goes_on_to_the_same_bits(
    ranks, tiny_models, rollouts, tmp_path, zero_stage, world_size, dtype
):
    settings = {"zero_stage": zero_stage, "micro_batch_tokens": 60}
    whole, (history, *_) = trained(
        ranks, tiny_models, rollouts, world_size, STEPS, dtype, **settings
    )
    group = ranks[world_size]
    trained(ranks, tiny_models, rollouts, world_size, STEPS[:1], dtype, **settings)
    # What is written beside later steps is of the step that it began at.
    assert group.call("save_state", str(tmp_path / "state"), True) == [False] * world_size
    group.call("train", rollouts, STEPS[2:], 1.0, None, False)
    group.call("state_saved")
    # Another engine, which has learned something else meanwhile.
    trained(ranks, tiny_models, rollouts, world_size, STEPS[2:], dtype, **settings)
    assert group.call("load_state", str(tmp_path / "state")) == [1] * world_size
    results = group.call("train", rollouts, STEPS[1:], 1.0, None, False)
    resumed, again = results[0]
    assert again == history[1:]
    for name, weight in whole.items():
        assert torch.equal(resumed[name], weight), name


RESHAPED = [
    # (ranks, ZeRO stage) that wrote, and that goes on; one rank in fp32 runs 1 and 2 as 0.
    ("float32", (2, 2), (1, 2)),
    ("float32", (1, 1), (2, 1)),
    ("float32", (2, 3), (2, 1)),
    ("float32", (2, 1), (1, 3)),
    ("float32", (1, 3), (2, 0)),
    ("float32", (2, 0), (2, 3)),
    ("bfloat16", (2, 2), (1, 2)),
    ("bfloat16", (1, 3), (2, 2)),
    ("bfloat16", (2, 2), (2, 3)),
]


@pytest.mark.parametrize(("dtype", "wrote", "goes_on"), RESHAPED)
@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["all", "lora"])
def test_other_ranks_at_another_stage_go_on_from_the_same_numbers(
    ranks, tiny_models, rollouts, tmp_path, dtype, wrote, goes_on, lora
):
    def engine(layout, steps, **more):
        settings = {"zero_stage": layout[1], "micro_batch_tokens": 60, **more}
        return trained(ranks, tiny_models, rollouts, layout[0], steps, dtype, lora=lora, **settings)

    _, whole = engine(wrote, STEPS)
    engine(wrote, STEPS[:1])
    old, new = ranks[wrote[0]], ranks[goes_on[0]]
    old.call("save_state", str(tmp_path / "state"))
    before = old.call("contents")
    engine(goes_on, [])
    assert new.call("load_state", str(tmp_path / "state")) == [1] * goes_on[0]
    after = new.call("contents")
    assert all(len(found) > 3 and found.keys() == after[0][0].keys() for found, _ in before)
    for found, random in after:
        for name, tensors in found.items():
            for ours, theirs in zip(tensors, before[0][0][name], strict=True):
                assert torch.equal(ours, theirs), name
            # Both moments, or the equality above would be one of zeros.
            assert tensors[1].abs().max() > 0 < tensors[2].max() or "lora_A" in name
        assert random in [random for _, random in before] or goes_on[0] > wrote[0]
    assert len({tuple(random) for _, random in after}) == goes_on[0] or wrote[0] == 2
    history = [history for _, history in new.call("train", rollouts, STEPS[1:], 1.0, None, False)]
    # bf16 rounds what the ranks' micro-batches add up.
    near = {"rel": 1e-5, "abs": 1e-6} if dtype == "float32" else {"rel": 2e-2}
    for step in range(2):
        ours, theirs = (
            sum(rank[step + first]["loss_sum"] for rank in of)
            for of, first in ((history, 0), (whole, 1))
        )
        assert ours == pytest.approx(theirs, **near)
        norms = history[0][step]["grad_norm"], whole[0][step + 1]["grad_norm"]
        assert norms[0] == pytest.approx(norms[1], **near)
        assert history[0][step]["learning_rate"] == whole[0][step + 1]["learning_rate"]


def test_a_state_without_its_optimizer_or_of_other_weights(ranks, tiny_models, rollouts, tmp_path):
    group, place = ranks[2], tmp_path / "state"
    trained(ranks, tiny_models, rollouts, 2, STEPS[:1], zero_stage=1)
    group.call("save_state", str(place))
    (place / "optimizer-1.pt").unlink()
    with pytest.raises(ValueError, match="of the .* in its optimizer: a file of a rank is missing"):
        group.call("load_state", str(place))
    assert group.call("load_state", str(place), ("optimizer", "random")) == [1, 1]
    weights, _ = trained(ranks, tiny_models, rollouts, 1, [], zero_stage=1, lora=Lora(rank=2))
    with pytest.raises(ValueError, match="is of other weights: .* and .* more has the shape"):
        ranks[1].call("load_state", str(place))


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_many_micro_batches_add_up_in_bf16(ranks, tiny_models, rollouts, zero_stage):
    """The same row 3 or 300 times has the gradient of one, to fp32's rounding.

    A sum in bf16 would stand still where the row is half a step of it, and a loss that is divided
    by the count of tokens before its gradients are taken would have them rounded otherwise, by up
    to 0.4 %.
    """
    norms = []
    for count in (1, 3, 300):
        settings = {"zero_stage": zero_stage, "micro_batch_tokens": 10, "max_grad_norm": 1e9}
        _, (history,) = trained(
            ranks, tiny_models, rollouts, 1, [[0] * count], "bfloat16", **settings
        )
        assert history[0]["micro_batches"] == count
        norms.append(history[0]["grad_norm"])
    assert norms[1:] == pytest.approx([norms[0]] * 2, rel=1e-5)


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_the_norm_in_bf16_is_that_of_fp32(ranks, tiny_models, rollouts, zero_stage):
    """That of the mean over the tokens of all ranks, whoever divides by their count and when."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        _, histories = trained(
            ranks, tiny_models, rollouts, 2, STEPS[:1], dtype, zero_stage=zero_stage
        )
        found[dtype] = [history[0]["grad_norm"] for history in histories]
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=2e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_every_rank(
    ranks, tiny_models, rollouts, dtype, zero_stage, factor
):
    """Also where it comes from one row of one rank."""
    with pytest.raises(
        FloatingPointError, match=r"gradient norm is (nan|inf|-1\.0) in optimizer step 1; lower"
    ):
        trained(
            ranks,
            tiny_models,
            rollouts,
            2,
            steps=[[0, 1, 2, 3]],
            dtype=dtype,
            factor=factor,
            poisoned_row=2,
            zero_stage=zero_stage,
            micro_batch_tokens=60,
        )


@pytest.mark.parametrize(("world_size", "zero_stage"), [(1, 1), (2, 3)])
def test_save_writes_a_folder_that_transformers_loads(
    ranks, tiny_models, rollouts, tmp_path, world_size, zero_stage
):
    state, _ = trained(ranks, tiny_models, rollouts, world_size, zero_stage=zero_stage)
    ranks[world_size].call("save", str(tmp_path / "model"), tiny_models.policy)
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert lm.dtype == torch.float32
    assert all(torch.equal(state[name], p) for name, p in lm.named_parameters())
    whole = load_policy(tiny_models.policy, "float32").lm
    whole.load_state_dict(state)
    ids_BT = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(lm.eval()(ids_BT).logits, whole.eval()(ids_BT).logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.chat_template == tiny_models.tokenizer.chat_template
    assert (
        tokenizer.decode(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": "Hi"}], add_generation_prompt=True
            )["input_ids"]
        )
        == "<s>GPT4 Correct User: Hi<|end_of_turn|>GPT4 Correct Assistant:"
    )
    generation = GenerationConfig.from_pretrained(tmp_path / "model")
    assert (
        generation.eos_token_id
        == tokenizer.eos_token_id
        == tokenizer.convert_tokens_to_ids("<|end_of_turn|>")
    )
    assert generation.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert [path.suffix for path in Path(tmp_path / "model").iterdir()].count(".safetensors") == 1


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "lm_head.weight"])
def test_save_notices_a_folder_that_is_not_the_model(ranks, tiny_models, rollouts, tmp_path, name):
    trained(ranks, tiny_models, rollouts, steps=STEPS[:1])
    with pytest.raises(
        RuntimeError, match=r"model: reloaded outputs differ by .* the folder is not the model"
    ):
        ranks[1].call("save", str(tmp_path / "model"), tiny_models.policy, (name, 1.0))
    ranks[1].call("save", str(tmp_path / "model"), tiny_models.policy, (name, 0.0))


def test_save_of_a_scalar_model(ranks, tiny_models, made_rollouts, tmp_path):
    ranks[1].call("save_scalar", tiny_models.reward, str(tmp_path / "reward"), Optimizer(**BASE))
    ours, theirs = (
        load_scalar(str(folder), "float32").state_dict()
        for folder in (tmp_path / "reward", tiny_models.reward)
    )
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_weights_are_whole_and_in_the_same_order_on_every_rank(
    ranks, tiny_models, rollouts, zero_stage
):
    state, _ = trained(ranks, tiny_models, rollouts, 2, zero_stage=zero_stage)
    for weights in ranks[2].call("weights"):
        assert [name for name, _ in weights] == list(state)
        assert all(torch.equal(tensor, state[name]) for name, tensor in weights)


def test_infer_sees_the_trained_weights(ranks, tiny_models, rollouts, plain):
    for world_size, zero_stage in ((1, 0), (2, 3)):
        state, _ = trained(ranks, tiny_models, rollouts, world_size, zero_stage=zero_stage)
        lm = load_policy(tiny_models.policy, "float32").lm
        lm.load_state_dict(state)
        expected = plain(lm, rollouts.prompts, rollouts.responses)
        for logprobs in ranks[world_size].call("logprobs", rollouts):
            np.testing.assert_allclose(logprobs, expected, atol=1e-5, rtol=0)
