"""Properties of micro-batch plans over random batches, and of the order of rows."""

from __future__ import annotations

import random
from itertools import accumulate

import numpy as np
import pytest

from rayward.data.packing import (
    epoch_order,
    mixed_order,
    plan_micro_batches,
    plan_packs,
    step_batches,
)


def random_batch(rng: random.Random) -> tuple[list[int], int, int]:
    """(lengths, num_ranks, token_budget), over rows that fit easily, hardly and not at all."""
    longest = rng.choice([5, 100, 1000])
    lengths = [rng.randint(1, longest) for _ in range(rng.choice([0, 1, 3, 17, 120]))]
    return (
        lengths,
        rng.randint(1, 9),
        rng.choice([1, longest // 2 + 1, longest, 4 * longest, 50 * longest]),
    )


def cost(lengths: list[int], batch: list[int]) -> int:
    return max((lengths[row] for row in batch), default=0) * len(batch)


@pytest.mark.parametrize("seed", range(80))
def test_plans_keep_every_promise(seed: int) -> None:
    lengths, num_ranks, token_budget = random_batch(random.Random(seed))
    plan = plan_micro_batches(lengths, num_ranks, token_budget)

    assert len(plan) == num_ranks
    assert len({len(rank) for rank in plan}) == 1
    batches = [batch for rank in plan for batch in rank]
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(cost(lengths, batch) <= token_budget or len(batch) == 1 for batch in batches)

    tokens = [[sum(lengths[row] for row in batch) for batch in rank] for rank in plan]
    assert all(rank == sorted(rank, reverse=True) for rank in tokens)
    loads = [sum(rank) for rank in tokens]
    assert max(loads) - min(loads) <= max((size for rank in tokens for size in rank), default=0)
    # An empty micro-batch only where there are no more rows to split.
    if [] in batches:
        assert max(map(len, batches)) <= 1
    assert plan == plan_micro_batches(lengths, num_ranks, token_budget)


@pytest.mark.parametrize("seed", range(80))
def test_packs_keep_every_promise(seed: int) -> None:
    lengths, num_ranks, token_budget = random_batch(random.Random(seed))
    plan = plan_packs(lengths, num_ranks, token_budget)

    assert len(plan) == num_ranks and len({len(rank) for rank in plan}) == 1
    batches = [batch for rank in plan for batch in rank]
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    tokens = [sum(lengths[row] for row in batch) for batch in batches]
    assert all(
        size <= token_budget or len(batch) == 1 for size, batch in zip(tokens, batches, strict=True)
    )
    loads = [sum(lengths[row] for batch in rank for row in batch) for rank in plan]
    assert max(loads) - min(loads) <= max(tokens, default=0)
    if [] in batches:
        assert max(map(len, batches)) <= 1
    # All packs but one are more than half full on average; splitting rounds up to a multiple of the
    # ranks.
    fitting = [length for length in lengths if length <= token_budget]
    least = len(lengths) - len(fitting) + -(-sum(fitting) // token_budget)
    at_least_half = len(lengths) - len(fitting) + 2 * -(-sum(fitting) // token_budget)
    assert least <= len(batches) < at_least_half + num_ranks + 1
    assert plan == plan_packs(lengths, num_ranks, token_budget)


def test_packs_are_first_fit_decreasing() -> None:
    assert plan_packs([3, 8, 5, 2, 7, 4], 1, 10) == [[[1, 3], [4, 0], [2, 5]]]
    assert plan_packs([3, 8, 5, 2, 7, 4], 3, 10) == [[[1, 3]], [[4, 0]], [[2, 5]]]
    assert plan_packs([], 2, 10) == [[], []]
    with pytest.raises(ValueError, match="token_budget 0"):
        plan_packs([1], 1, 0)


@pytest.mark.parametrize("seed", range(40))
def test_groups_stay_together(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [rng.randint(1, 7) for _ in range(rng.randint(0, 40))]
    lengths = [rng.randint(1, 200) for _ in range(sum(sizes))]
    num_ranks, token_budget = rng.randint(1, 6), rng.choice([100, 1000, 5000])
    plan = plan_micro_batches(lengths, num_ranks, token_budget, group_sizes=sizes)

    assert len({len(rank) for rank in plan}) == 1
    batches = [batch for rank in plan for batch in rank]
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    groups = [
        list(range(end - size, end)) for end, size in zip(accumulate(sizes), sizes, strict=True)
    ]
    group_of_row = {row: group for group in groups for row in group}
    for batch in batches:
        rest, num_groups = batch, 0
        while rest:  # The batch is whole groups, one after another, each in its order.
            group = group_of_row[rest[0]]
            assert rest[: len(group)] == group
            rest, num_groups = rest[len(group) :], num_groups + 1
        assert cost(lengths, batch) <= token_budget or num_groups == 1


@pytest.mark.parametrize("seed", range(20))
def test_no_more_micro_batches_than_needed(seed: int) -> None:
    """Against the least number of contiguous cuts of the sorted lengths, by dynamic programming."""
    rng = random.Random(seed)
    lengths = [rng.randint(1, 60) for _ in range(40)]
    num_ranks, token_budget = rng.randint(1, 4), rng.randint(30, 400)
    longest_first = sorted(lengths, reverse=True)
    fewest = [0]
    for end in range(1, len(lengths) + 1):
        starts = [
            s for s in range(end) if s == end - 1 or longest_first[s] * (end - s) <= token_budget
        ]
        fewest.append(1 + min(fewest[s] for s in starts))
    plan = plan_micro_batches(lengths, num_ranks, token_budget)
    assert len(plan[0]) == -(-fewest[-1] // num_ranks)


def test_small_plans_by_hand() -> None:
    assert plan_micro_batches([5, 5, 5, 5], 2, 10) == [[[0, 1]], [[2, 3]]]
    assert plan_micro_batches([3, 9, 3, 9], 1, 18) == [[[1, 3], [0, 2]]]
    assert plan_micro_batches([4], 3, 10) == [[[0]], [[]], [[]]]
    assert plan_micro_batches([], 2, 10) == [[], []]
    # The rank that got the 9 gets the 1.
    assert plan_micro_batches([9, 7, 5, 1], 2, 9) == [[[0], [3]], [[1], [2]]]
    assert plan_micro_batches([50, 2, 2], 1, 10) == [[[0], [1, 2]]]
    # One micro-batch would hold all; two ranks share it.
    assert plan_micro_batches([2, 2, 2, 2], 2, 100) == [[[0, 1]], [[2, 3]]]
    assert plan_micro_batches([1, 9, 2, 2], 1, 18, group_sizes=[2, 2]) == [[[0, 1], [2, 3]]]


def test_lengths_that_vary_cost_little_padding_and_balance_well() -> None:
    rng = random.Random(1)
    lengths = [min(2048, int(rng.lognormvariate(5.5, 0.9)) + 1) for _ in range(512)]
    plan = plan_micro_batches(lengths, 8, 8192)
    arrival_order = [list(range(start, start + 8)) for start in range(0, 512, 8)]
    padded = sum(cost(lengths, batch) for rank in plan for batch in rank)
    assert 0.9 * padded < sum(lengths) < 0.5 * sum(cost(lengths, batch) for batch in arrival_order)
    loads = [sum(lengths[row] for batch in rank for row in batch) for rank in plan]
    assert max(loads) < 1.1 * sum(loads) / 8
    # What all ranks do at the same time costs about the same: the wait at the collectives is short.
    costs = [[cost(lengths, batch) for batch in rank] for rank in plan]
    assert sum(max(step) for step in zip(*costs, strict=True)) < 1.15 * sum(map(sum, costs)) / 8


def test_epoch_order_depends_on_seed_and_epoch_alone() -> None:
    orders = [epoch_order(50, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert epoch_order(50, 1, 0) == orders[2]
    assert all(type(row) is int for row in orders[0])
    assert epoch_order(0, 0, 0) == []
    with pytest.raises(ValueError, match="epoch -1"):
        epoch_order(5, 0, -1)


def test_step_batches() -> None:
    assert step_batches([4, 2, 0, 1, 3], 2) == [[4, 2], [0, 1], [3]]
    assert step_batches([4, 2, 0, 1], 2) == [[4, 2], [0, 1]]
    assert step_batches([], 2) == []
    with pytest.raises(ValueError, match="batch_size is 0"):
        step_batches([1], 0)


def test_user_mistakes_name_both_numbers() -> None:
    with pytest.raises(ValueError, match="num_ranks is 0, token_budget 10"):
        plan_micro_batches([1], 0, 10)
    with pytest.raises(ValueError, match="row 1 has 0 tokens"):
        plan_micro_batches([3, 0], 1, 10)
    with pytest.raises(ValueError, match=r"sum to 3 .* for 2 rows"):
        plan_micro_batches([3, 1], 1, 10, group_sizes=[3])
    with pytest.raises(ValueError, match=r"smallest 0"):
        plan_micro_batches([3, 1], 1, 10, group_sizes=[2, 0])


def test_mixed_order_spreads_two_kinds_evenly() -> None:
    first = np.arange(103) % 5 == 0  # 21 of 103
    order = mixed_order(first, 3, 0)
    assert sorted(order) == list(range(103))
    for start in range(0, 103 - 20):
        assert 3 <= int(first[order[start : start + 20]].sum()) <= 5
    assert mixed_order(first, 3, 0) == order != mixed_order(first, 3, 1)
    assert mixed_order(np.zeros(0, bool), 3, 0) == []
    for one_kind in (np.ones(9, bool), np.zeros(9, bool)):
        assert sorted(mixed_order(one_kind, 3, 0)) == list(range(9))
