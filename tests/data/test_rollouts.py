"""Answers in columns: every column follows its row, and engines' parts come back in the order of
the requests.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest

from rayward.data.ragged import Ragged
from rayward.data.rollouts import Rollouts, gather

PER_TOKEN = (
    "rollout_logprobs",
    "policy_logprobs",
    "reference_logprobs",
    "values",
    "advantages",
    "returns",
)


def made(rows: int, seed: int = 0, version: int = 3, first: int = 0) -> Rollouts:
    """Freshly sampled answers; `prompt_index` counts from `first`, some answers are empty."""
    rng = np.random.default_rng(seed)
    responses = Ragged.of([rng.integers(1, 99, rng.integers(0, 6)) for _ in range(rows)])
    return Rollouts(
        prompts=Ragged.of([rng.integers(1, 99, rng.integers(1, 5)) for _ in range(rows)]),
        responses=responses,
        prompt_index=np.arange(first, first + rows),
        finished=rng.random(rows) < 0.5,
        rollout_logprobs=rng.normal(size=len(responses.values)),
        weight_version=version,
    )


def full(rows: int, seed: int = 0) -> Rollouts:
    """Answers with every column filled in, each with numbers of its own."""
    rng = np.random.default_rng(seed + 100)
    rollouts = made(rows, seed)
    tokens = len(rollouts.responses.values)
    return rollouts.with_columns(
        scores=rng.normal(size=rows), **{name: rng.normal(size=tokens) for name in PER_TOKEN}
    )


def row_of(rollouts: Rollouts, row: int) -> dict:
    """All that is known of one answer."""
    told = {
        "prompt": rollouts.prompts[row].tolist(),
        "response": rollouts.responses[row].tolist(),
        "sequence": rollouts.sequences()[row].tolist(),
        "index": int(rollouts.prompt_index[row]),
        "finished": bool(rollouts.finished[row]),
        "version": rollouts.weight_version,
        "score": None if rollouts.scores is None else float(rollouts.scores[row]),
    }
    for name in PER_TOKEN:
        column = getattr(rollouts, name)
        told[name] = None if column is None else rollouts.responses.like(column)[row].tolist()
    return told


def test_the_columns_of_this_test_are_all_there_are() -> None:
    known = {
        "prompts",
        "responses",
        "prompt_index",
        "finished",
        "weight_version",
        "scores",
        *PER_TOKEN,
    }
    assert {field.name for field in dataclasses.fields(Rollouts)} == known
    assert all(getattr(full(3), name) is not None for name in known)


@pytest.mark.parametrize("build", [made, full])
@pytest.mark.parametrize("order", [[0], [4, 3, 2, 1, 0], [2, 2, 0], [], [1, 3]])
def test_take_moves_every_column_together(build, order: list[int]) -> None:
    rollouts = build(5)
    taken = rollouts.take(order)
    assert len(taken) == len(order)
    assert [row_of(taken, row) for row in range(len(order))] == [
        row_of(rollouts, row) for row in order
    ]


def test_a_sequence_is_the_prompt_and_then_the_response() -> None:
    rollouts = made(6)
    for row in range(6):
        told = row_of(rollouts, row)
        assert told["sequence"] == told["prompt"] + told["response"]


def test_more_columns_leave_the_old_answers_as_they_were() -> None:
    rollouts = made(4)
    scored = rollouts.with_columns(scores=np.arange(4.0))
    assert rollouts.scores is None and scored.scores is not None
    assert {**row_of(scored, 2), "score": None} == row_of(rollouts, 2)
    with pytest.raises(TypeError, match="skores"):
        rollouts.with_columns(skores=np.arange(4.0))


@pytest.mark.parametrize("cuts", [[0, 9], [0, 1, 9], [0, 4, 5, 9], [0, 0, 9, 9], list(range(10))])
def test_the_number_of_engines_does_not_change_the_answers(cuts: list[int]) -> None:
    """However 9 answers were shared out, and in whatever order, they come back in the order of the
    requests.
    """
    whole = made(9)
    shuffled = np.random.default_rng(1).permutation(9)
    parts = [whole.take(shuffled[start:end]) for start, end in pairwise(cuts)]
    back = gather(parts, np.argsort(shuffled))
    assert [row_of(back, row) for row in range(9)] == [row_of(whole, row) for row in range(9)]
    assert back.prompt_index.tolist() == list(range(9)) and back.weight_version == 3


def test_row_i_is_row_order_i_of_all_parts() -> None:
    back = gather([made(2, seed=1, first=10), made(2, seed=2, first=20)], np.array([3, 0, 2, 1]))
    assert back.prompt_index.tolist() == [21, 10, 20, 11]


def test_parts_of_different_weights_do_not_mix() -> None:
    with pytest.raises(ValueError, match=r"different weight versions \[3, 4\]"):
        gather([made(2, version=4), made(2, version=3)], np.arange(4))
