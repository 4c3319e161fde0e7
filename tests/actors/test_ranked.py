"""Learning from rankings on one and two ranks, however they are cut, against the same training in
plain torch.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.util.queue import Queue
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rayward.actors.checkpoints import Checkpoints
from rayward.actors.group import TrainingGroup
from rayward.actors.process import Rendezvous
from rayward.actors.training.dpo import dpo_loop
from rayward.actors.training.job import STOP, CheckpointPlace, Job
from rayward.actors.training.labels import mismatched
from rayward.actors.training.rankings import RankedRows
from rayward.actors.training.resume import PARTS
from rayward.actors.training.reward_model import reward_loop
from rayward.configs.sections.machines import Role
from rayward.configs.sections.training import Dpo, Optimizer, Reward
from rayward.data.packing import epoch_order, mixed_order
from rayward.data.ragged import Ragged, merge

PER_STEP, SEED, RATE, BETA = 4, 3, 2e-3, 0.5
PLAIN = {
    "schedule": "constant",
    "warmup_fraction": 0.0,
    "eps": 1e-3,
    "learning_rate": RATE,
    "max_grad_norm": 1e6,
}
LOOPS = {"reward": (reward_loop, Reward), "dpo": (dpo_loop, Dpo)}


class Rank:
    """One process that runs a loop at its place in a process group."""

    def __init__(self, world_size: int, rank: int):
        torch.set_num_threads(1)
        self.rendezvous = Rendezvous(rank, world_size, timeout_s=60)

    def open(self):
        return self.rendezvous.open()

    def start(self, host, port):
        self.context = self.rendezvous.join(host, port, gpus=0)

    def learn(self, name, job):
        torch.manual_seed(job.seed)
        LOOPS[name][0](job, self.context)


@pytest.fixture(scope="module")
def ranks(local_ray, tiny_config):
    groups = {
        n: TrainingGroup("trainer", Rank, Role(workers=n, cpus=0.1), tiny_config().cluster, (n,))
        for n in (1, 2)
    }
    for calls, group in [(group.begin_start(), group) for group in groups.values()]:
        group.finish(calls, 120)
    yield groups
    for group in groups.values():
        group.stop()


def rows_of(sizes: list[int], seed: int) -> RankedRows:
    """Rankings of random tokens with prompts of their own, and ties where there are more than two
    answers.
    """
    rng = np.random.default_rng(seed)
    ids, answers = [], []
    for size in sizes:
        prompt = rng.integers(3, 60, rng.integers(2, 9)).tolist()
        for _ in range(size):
            said = rng.integers(3, 60, rng.integers(1, 14)).tolist()
            ids.append([*prompt, *said, 2])
            answers.append([0] * len(prompt) + [1] * (len(said) + 1))
    ranks = [
        rank for size in sizes for rank in ([1, 2, 2, 3, 4][:size] if size > 2 else [1, 2][:size])
    ]
    return RankedRows(
        Ragged.of(ids), np.array(sizes), np.array(ranks, np.float32), Ragged.of(answers, np.uint8)
    )


TRAIN, HELDOUT = rows_of([2, 5, 3, 2, 4, 2, 5, 2, 3], 0), rows_of([2, 3, 2, 4, 2], 1)


def labelled(rows: RankedRows, seed: int) -> RankedRows:
    """Each answer by itself, good or bad."""
    good = np.random.default_rng(seed).random(len(rows.ids)) < 0.6
    return replace(rows, sizes=np.ones(len(rows.ids), np.int64), good=good)


TRAIN_LABELS, HELDOUT_LABELS = labelled(rows_of([1] * 9 + [2], 2), 4), labelled(HELDOUT, 5)


def learned(
    ranks,
    tiny_models,
    folder,
    name,
    world=1,
    budget=10_000,
    zero_stage=1,
    model=None,
    epochs=1,
    checkpoints=None,
    **settings,
):
    """(weights, held-out scores, metrics of the steps); None where it was stopped on the way."""
    cls = LOOPS[name][1]
    objective = settings.get("objective", "dpo")
    beta = {"beta": BETA} if name == "dpo" and objective in ("dpo", "ipo", "kto") else {}
    preferences = cls(**{"rankings_per_step": PER_STEP, **beta, **settings})
    train, heldout = (TRAIN_LABELS, HELDOUT_LABELS) if objective == "kto" else (TRAIN, HELDOUT)
    queue = Queue(actor_options={"num_cpus": 0})
    job = Job(
        model=model or (tiny_models.policy if name == "dpo" else tiny_models.reward),
        tokenizer=tiny_models.policy,
        output=str(folder),
        train=ray.put(train),
        heldout=ray.put(heldout),
        epochs=epochs,
        rows_per_step=PER_STEP,
        optimizer=Optimizer(**PLAIN, micro_batch_tokens=budget, zero_stage=zero_stage),
        dtype="float32",
        seed=SEED,
        role=Role(),
        queue=queue,
        preferences=preferences,
        validate_every=preferences.validate_every,
        keep=preferences.keep,
        checkpoints=checkpoints,
    )
    ranks[world].call("learn", name, job)
    told = [message for batch in queue.get_nowait_batch(queue.qsize()) for message in batch]
    queue.shutdown()
    steps = [message for message in told if "step" in message]
    if not any("kept" in message for message in told):
        return None, None, steps
    parts = [message["heldout_scores"] for message in told if "heldout_scores" in message]
    scores = merge(parts, len(heldout.ids))
    return load_file(folder / "model.safetensors"), scores, steps


CASES = [
    ("reward", {"loss": "plackett_luce", "ties": "average", "zero_sum": 0.1}),
    pytest.param("reward", {"loss": "pairs", "margin": 0.5}, marks=pytest.mark.slow),
    pytest.param("dpo", {"loss": "pairs"}, marks=pytest.mark.slow),
    pytest.param("dpo", {"loss": "plackett_luce", "ties": "average"}, marks=pytest.mark.slow),
    pytest.param("dpo", {"objective": "kto", "kto": {"desirable_weight": 1.3}}, id="kto"),
    pytest.param("dpo", {"objective": "ipo", "ties": "average"}, marks=pytest.mark.slow),
    pytest.param(
        "dpo", {"objective": "ipo", "ipo": {"length_average": True}}, marks=pytest.mark.slow
    ),
    pytest.param("dpo", {"objective": "simpo"}, marks=pytest.mark.slow),
    pytest.param("dpo", {"objective": "orpo", "orpo": {"lam": 0.7}}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name, settings", CASES)
def test_ranks_and_micro_batches_change_nothing(ranks, tiny_models, tmp_path, name, settings):
    weights, scores, steps = learned(ranks, tiny_models, tmp_path / "whole", name, **settings)
    assert [step["step"] for step in steps] == [1, 2, 3]
    cuts = [(1, 40, {}), (2, 40, {"zero_stage": 3}), (2, 10_000, {})]
    if settings.get("objective") != "kto":  # whose answers are rows of their own
        cuts = [
            (world, budget, more | {"shared_prompts": budget == 40}) for world, budget, more in cuts
        ]
    else:
        assert steps[0]["reference_point"] == 0 < steps[-1]["reference_point"], "it is at work"
    for world, budget, more in cuts:
        found = learned(
            ranks,
            tiny_models,
            tmp_path / f"{world}-{budget}",
            name,
            world,
            budget,
            **settings,
            **more,
        )
        for key, value in weights.items():
            torch.testing.assert_close(found[0][key], value, atol=2e-6, rtol=0)
        np.testing.assert_allclose(found[1], scores, atol=2e-5)
        for ours, theirs in zip(found[2], steps, strict=True):
            # DPO begins at the reference: its first rewards are 0 but for rounding, and which is
            # larger is chance.
            chance = {"pair_accuracy"} if name == "dpo" and ours["step"] == 1 else set()
            assert ours.keys() == theirs.keys()
            for figure in ours.keys() - {"time"} - chance:
                assert ours[figure] == pytest.approx(theirs[figure], rel=1e-5, abs=3e-5), figure


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name, settings", [CASES[0], ("dpo", {}), ("dpo", {"objective": "kto"})])
def test_a_training_that_was_stopped_goes_on_to_the_same_bits(
    ranks, tiny_models, tmp_path, name, settings, world
):
    weights, scores, steps = learned(
        ranks, tiny_models, tmp_path / "whole", name, world, epochs=2, **settings
    )
    stop = tmp_path / "stop"
    place = CheckpointPlace(str(tmp_path / "made"), None, str(stop), 2, None, 1)

    def go_on(place: CheckpointPlace) -> Any:
        return learned(
            ranks,
            tiny_models,
            tmp_path / "resumed",
            name,
            world,
            epochs=2,
            checkpoints=place,
            **settings,
        )

    done = []
    for _ in range(2):  # stopped after each of the first two steps
        stop.write_text(STOP)
        none, _, told = go_on(place)
        assert none is None and len(told) == 1
        done += told
        found, broken = Checkpoints(place.folder).latest()
        assert found and found.step == len(done) and not broken
        place = replace(place, found=str(found.folder))
    assert not stop.exists(), "each wish is granted once"
    resumed, again, told = go_on(place)
    done += told
    assert len(done) == len(steps) == 6
    for ours, theirs in zip(done, steps, strict=True):
        assert ours | {"time": None} == theirs | {"time": None}
    for key, value in weights.items():
        assert torch.equal(resumed[key], value), key
    assert np.array_equal(again, scores)
    found, _ = Checkpoints(place.folder).latest()
    assert found and found.step == 6, "every second step"


@pytest.mark.parametrize("name, settings", [CASES[0], ("dpo", {"objective": "kto"})])
def test_a_training_goes_on_with_other_ranks_within_rounding(
    ranks, tiny_models, tmp_path, name, settings
):
    """Three tries: of two ranks, of one, of two at another stage."""
    best = {"keep": "best", "validate_every": 1, **settings}
    weights, scores, steps = learned(
        ranks, tiny_models, tmp_path / "whole", name, 1, epochs=2, **best
    )
    stop = tmp_path / "stop"
    place = CheckpointPlace(str(tmp_path / "made"), None, str(stop), None, None, 1)
    done = []
    for world, zero_stage in ((2, 2), (1, 1), (2, 3)):
        if len(done) < 2:
            stop.write_text(STOP)
        resumed, again, told = learned(
            ranks,
            tiny_models,
            tmp_path / "resumed",
            name,
            world,
            zero_stage=zero_stage,
            epochs=2,
            checkpoints=place,
            **best,
        )
        done += told
        if len(done) < 3:
            found, broken = Checkpoints(place.folder).latest(PARTS)
            assert found and found.step == len(done) and not broken
            assert found.parts == set(PARTS)
            place = replace(place, found=str(found.folder))
    assert len(done) == len(steps) == 6
    chance = {"pair_accuracy", "time"} if name == "dpo" else {"time"}
    for ours, theirs in zip(done, steps, strict=True):
        assert ours.keys() == theirs.keys()
        for figure in ours.keys() - chance:
            assert ours[figure] == pytest.approx(theirs[figure], rel=1e-4, abs=5e-5), figure
    for key, value in weights.items():
        torch.testing.assert_close(resumed[key], value, atol=5e-6, rtol=0)
    np.testing.assert_allclose(again, scores, atol=5e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_dpo_is_the_papers_loss_in_plain_torch(ranks, tiny_models, tmp_path, shared):
    """Unpadded rows, full logits and a loop over the pairs of every ranking."""
    weights, scores, steps = learned(
        ranks, tiny_models, tmp_path / "ours", "dpo", loss="pairs", shared_prompts=shared
    )
    lm, reference = (
        AutoModelForCausalLM.from_pretrained(tiny_models.policy, dtype=torch.float32)
        for _ in range(2)
    )
    adam = torch.optim.AdamW(
        lm.parameters(), lr=RATE, betas=(0.9, 0.95), eps=PLAIN["eps"], weight_decay=0.0
    )

    def implicit(rows: RankedRows, row: int) -> torch.Tensor:
        ids_T = torch.from_numpy(rows.ids[row].astype(np.int64))
        first = int(np.flatnonzero(rows.answers[row])[0])
        sums = []
        for model in (lm, reference):
            logprobs_TV = torch.log_softmax(model(ids_T[None]).logits[0], -1)
            sums.append(logprobs_TV[first - 1 : -1].gather(1, ids_T[first:, None]).sum())
        return BETA * (sums[0] - sums[1].detach())

    starts = np.concatenate([[0], np.cumsum(TRAIN.sizes)])
    order = epoch_order(len(TRAIN.sizes), SEED, 0)
    for number, step in enumerate(steps):
        loss = torch.zeros(())
        chosen = order[number * PER_STEP : (number + 1) * PER_STEP]
        for ranking in chosen:
            rewards = [implicit(TRAIN, row) for row in range(starts[ranking], starts[ranking + 1])]
            pairs = [(i, j) for i in range(len(rewards)) for j in range(i + 1, len(rewards))]
            loss = loss - sum(
                torch.nn.functional.logsigmoid(rewards[i] - rewards[j]) for i, j in pairs
            ) / len(pairs)
        loss = loss / len(chosen)
        assert step["loss"] == pytest.approx(float(loss), abs=1e-5)
        if number == 0:
            assert step["loss"] == pytest.approx(math.log(2)), "policy and reference are the same"
            # Shared prompts lie in other packs in the pass of the reference, and round otherwise.
            rounding = 3e-5 if shared else 0
            assert [step["best_moved"], step["worst_moved"]] == pytest.approx(
                [0, 0], rel=0, abs=rounding
            )
        adam.zero_grad()
        loss.backward()
        adam.step()
    for key, value in lm.named_parameters():
        torch.testing.assert_close(weights[key], value.detach(), atol=2e-6, rtol=0)
    np.testing.assert_allclose(
        scores, [float(implicit(HELDOUT, row)) for row in range(len(HELDOUT.ids))], atol=1e-4
    )


def logprob(model, ids: np.ndarray, first: int) -> torch.Tensor:
    """Of the tokens from number `first` on, by full logits of the row alone."""
    ids_T = torch.from_numpy(ids.astype(np.int64))
    logprobs_TV = torch.log_softmax(model(ids_T[None]).logits[0], -1)
    return logprobs_TV[first - 1 : -1].gather(1, ids_T[first:, None]).sum()


def plain(tiny_models) -> tuple:
    """(language model, its optimizer) in plain torch."""
    lm = AutoModelForCausalLM.from_pretrained(tiny_models.policy, dtype=torch.float32)
    adam = torch.optim.AdamW(
        lm.parameters(), lr=RATE, betas=(0.9, 0.95), eps=PLAIN["eps"], weight_decay=0.0
    )
    return lm, adam


def test_kto_is_the_papers_loss_in_plain_torch(ranks, tiny_models, tmp_path):
    """Two epochs; the reference point is over the mismatched pairs of the whole step."""
    weights, scores, steps = learned(
        ranks, tiny_models, tmp_path / "ours", "dpo", world=2, budget=40, objective="kto", epochs=2
    )
    lm, adam = plain(tiny_models)
    reference, _ = plain(tiny_models)
    rows, good = TRAIN_LABELS, TRAIN_LABELS.good
    firsts = [int(np.flatnonzero(rows.answers[row])[0]) for row in range(len(good))]
    cut = int(rows.ids.lengths.max())

    def moved(ids: np.ndarray, first: int) -> torch.Tensor:
        return logprob(lm, ids, first) - logprob(reference, ids, first).detach()

    orders = [mixed_order(good, SEED, epoch) for epoch in range(2)]
    of_first = [orders[0][at : at + PER_STEP] for at in range(0, len(good), PER_STEP)]
    after = {row: step[(at + 1) % len(step)] for step in of_first for at, row in enumerate(step)}
    chosen = [order[at : at + PER_STEP] for order in orders for at in range(0, len(good), PER_STEP)]
    assert len(steps) == len(chosen) == 6
    for step, batch in zip(steps, chosen, strict=True):
        with torch.no_grad():
            point = 0.0
            for row in batch:
                prompt = rows.ids[row][: firsts[row]]
                answer = rows.ids[after[row]][firsts[after[row]] :]
                mixed = np.concatenate([prompt, answer])[:cut]
                point += float(moved(mixed, firsts[row])) / len(batch)
        point = max(point, 0.0)
        assert step["reference_point"] == pytest.approx(point, abs=3e-5)
        loss = torch.zeros(())
        for row in batch:
            above = moved(rows.ids[row], firsts[row]) - point
            loss = loss + 1 - torch.sigmoid(BETA * (above if good[row] else -above))
        loss = loss / len(batch)
        assert step["loss"] == pytest.approx(float(loss), abs=1e-5)
        adam.zero_grad()
        loss.backward()
        adam.step()
    for key, value in lm.named_parameters():
        torch.testing.assert_close(weights[key], value.detach(), atol=2e-6, rtol=0)
    found = [
        BETA * float(moved(HELDOUT_LABELS.ids[row], int(np.flatnonzero(mask)[0])))
        for row, mask in enumerate(HELDOUT_LABELS.answers)
    ]
    np.testing.assert_allclose(scores, found, atol=1e-4)


@pytest.mark.parametrize(
    "objective",
    [
        "orpo",
        pytest.param("simpo", marks=pytest.mark.slow),
        pytest.param("ipo", marks=pytest.mark.slow),
    ],
)
def test_kin_of_dpo_are_their_papers_losses_in_plain_torch(ranks, tiny_models, tmp_path, objective):
    settings = {"objective": objective, "shared_prompts": False}
    weights, scores, steps = learned(ranks, tiny_models, tmp_path / "ours", "dpo", **settings)
    lm, adam = plain(tiny_models)
    reference, _ = plain(tiny_models)

    def terms(rows: RankedRows, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(what pairs of answers are compared by, mean log-prob)"""
        first = int(np.flatnonzero(rows.answers[row])[0])
        whole, tokens = logprob(lm, rows.ids[row], first), int(rows.answers[row].sum())
        if objective == "ipo":
            return whole - logprob(reference, rows.ids[row], first).detach(), whole / tokens
        p = (whole / tokens).exp()
        return (2.0 * p.log() if objective == "simpo" else (p / (1 - p)).log()), whole / tokens

    def of_pair(lead: torch.Tensor) -> torch.Tensor:
        if objective == "ipo":
            return (lead - 1 / (2 * BETA)) ** 2
        gamma = 1.0 if objective == "simpo" else 0.0
        return -torch.nn.functional.logsigmoid(lead - gamma)

    starts = np.concatenate([[0], np.cumsum(TRAIN.sizes)])
    order = epoch_order(len(TRAIN.sizes), SEED, 0)
    for number, step in enumerate(steps):
        loss = torch.zeros(())
        chosen = order[number * PER_STEP : (number + 1) * PER_STEP]
        for ranking in chosen:
            found = [terms(TRAIN, row) for row in range(starts[ranking], starts[ranking + 1])]
            values = [value for value, _ in found]
            pairs = [(i, j) for i in range(len(values)) for j in range(i + 1, len(values))]
            compared = sum(of_pair(values[i] - values[j]) for i, j in pairs) / len(pairs)
            loss = loss + (compared if objective != "orpo" else 0.1 * compared - found[0][1])
        loss = loss / len(chosen)
        assert step["loss"] == pytest.approx(float(loss), rel=1e-5)
        if objective == "orpo":
            parts = step["sft_loss"] + 0.1 * step["odds_loss"]
            assert step["loss"] == pytest.approx(parts, rel=1e-6)
        adam.zero_grad()
        loss.backward()
        adam.step()
    # IPO's gradient is linear in a log-ratio, the difference of two sums, with their rounding.
    atol = 2e-5 if objective == "ipo" else 2e-6
    for key, value in lm.named_parameters():
        torch.testing.assert_close(weights[key], value.detach(), atol=atol, rtol=0)
    factor = BETA if objective == "ipo" else 1
    found = [factor * float(terms(HELDOUT, row)[0]) for row in range(len(HELDOUT.ids))]
    np.testing.assert_allclose(scores, found, atol=1e-4)
    moved = objective == "ipo"
    assert ("best_moved" in steps[0], "best_logprob" in steps[0]) == (moved, not moved)


def test_mismatched_pairs_have_the_answer_to_another_prompt():
    rows = RankedRows(
        Ragged.of([[5, 6, 10, 2], [5, 6, 11, 2], [7, 12, 13, 14, 2], [8, 15, 2]]),
        np.ones(4, np.int64),
        np.ones(4, np.float32),
        Ragged.of([[0, 0, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1, 1], [0, 1, 1]], np.uint8),
        good=np.array([True, False, True, False]),
    )
    found = mismatched(rows, [[0, 1, 2], [3]])
    # 0 skips 1, which asks the same; 2 goes round; the step of 3 has no other prompt. The answer of
    # 2 is cut, for no row is longer than 5.
    assert [row.tolist() for row in found.ids] == [
        [5, 6, 12, 13, 14],
        [5, 6, 12, 13, 14],
        [7, 10, 2],
        [8, 10, 2],
    ]
    assert [row.tolist() for row in found.answers] == [
        [0, 0, 1, 1, 1],
        [0, 0, 1, 1, 1],
        [0, 1, 1],
        [0, 1, 1],
    ]
    assert len(mismatched(rows.take([0, 1]), [[0, 1]]).ids) == 0, "one prompt, no other answer"


def test_a_model_whose_answers_would_see_each_other_trains_on_rows_apart(
    ranks, tiny_models, tmp_path
):
    """GPT-J's attention has no place for masks of rows."""
    from transformers import GPTJConfig, GPTJForSequenceClassification

    torch.manual_seed(0)
    shape = {
        "vocab_size": 300,
        "n_positions": 64,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "rotary_dim": 8,
    }
    model = GPTJForSequenceClassification(GPTJConfig(**shape, num_labels=1, pad_token_id=0))
    model.save_pretrained(tmp_path / "gptj")
    more = {"model": str(tmp_path / "gptj"), "loss": "pairs"}
    apart = learned(ranks, tiny_models, tmp_path / "apart", "reward", shared_prompts=False, **more)
    found = learned(ranks, tiny_models, tmp_path / "found", "reward", **more)
    for ours, theirs in zip(found[2], apart[2], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    with pytest.raises(
        ValueError, match="shared_prompts: results of answers that share their prompt differ by"
    ):
        learned(ranks, tiny_models, tmp_path / "wanted", "reward", shared_prompts=True, **more)
