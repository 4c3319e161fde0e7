"""Which rows share a micro-batch, on which rank, and in which order rows are seen.

A micro-batch is right-padded to its longest row, so its cost is max length * rows; or it is one
long row of rows back to back, without padding, so its cost is their tokens (`plan_packs`: first-fit
decreasing, as the multipack sampler of OpenChat, which drops the last rows of an epoch; nothing is
dropped here). A plan keeps the cost under a token budget, gives every rank the SAME NUMBER of
micro-batches, which the collectives of ZeRO require (a rank with one fewer would leave the others
waiting for ever), and balances tokens over ranks. A rank that has too few rows gets an empty
micro-batch, on which it must still run a forward and backward pass of zero loss.

Sorted by length and cut greedily, the number of micro-batches for a budget is the least possible
for contiguous cuts; the plan then looks for the smallest budget that needs no more of them, which
evens out their cost. Everything is deterministic: the same arguments give the same plan on every
rank, so no plan has to be sent.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf

import numpy as np

Plan = list[list[list[int]]]
"""ranks -> micro-batches -> row indices"""


@dataclass(frozen=True)
class _Unit:
    """Rows that must stay together: one row, or one group.

    A ranking's loss compares its answers with each other, so one forward pass must hold them all.
    """

    rows: tuple[int, ...]
    max_tokens: int
    total_tokens: int


def plan_micro_batches(
    lengths: Sequence[int],
    num_ranks: int,
    token_budget: int,
    group_sizes: Sequence[int] | None = None,
) -> Plan:
    """For each rank its micro-batches, each a list of row indices; every row is in exactly one.

    The padded cost of a micro-batch is at most `token_budget`, except that a row (or group) that is
    too large by itself stands alone. `group_sizes`: so many consecutive rows belong together, for
    instance the answers of a ranking; they stay in one micro-batch, side by side and in their
    order. All ranks get equally many micro-batches, the largest first, so that the i-th ones of all
    ranks are about equally large and memory runs out at the start or never. The token totals of two
    ranks differ by at most the tokens of the largest micro-batch. ValueError: num_ranks or
    token_budget < 1, a row without tokens, groups that do not sum to the number of rows.
    """
    _check(num_ranks, token_budget)
    units = _units(lengths, group_sizes)
    num_batches = _round_up(len(_cut(units, token_budget)), num_ranks)
    # The least budget that still needs no more micro-batches evens out their cost. The search may
    # bisect because a larger budget never needs more. Where no smaller budget does, it ends at
    # token_budget itself, which `range` leaves out.
    least_budget = bisect_left(
        range(token_budget), True, lo=1, key=lambda budget: len(_cut(units, budget)) <= num_batches
    )
    return _deal(_split_until(_cut(units, least_budget), num_batches), num_ranks)


def plan_packs(lengths: Sequence[int], num_ranks: int, token_budget: int) -> Plan:
    """As `plan_micro_batches`, of at most `token_budget` tokens without padding.

    The method is first-fit decreasing. A row that is longer stands alone. ValueError: num_ranks or
    token_budget < 1, a row without tokens.
    """
    _check(num_ranks, token_budget)
    packs: list[list[_Unit]] = []
    room_tokens: list[int] = []  # what is left in each pack; below 0 for a row over the budget
    for unit in _units(lengths, None):
        first = next((i for i, room in enumerate(room_tokens) if unit.total_tokens <= room), None)
        if first is None:
            packs.append([unit])
            room_tokens.append(token_budget - unit.total_tokens)
        else:
            packs[first].append(unit)
            room_tokens[first] -= unit.total_tokens
    return _deal(_split_until(packs, _round_up(len(packs), num_ranks)), num_ranks)


def _check(num_ranks: int, token_budget: int) -> None:
    if num_ranks < 1 or token_budget < 1:
        raise ValueError(
            f"num_ranks is {num_ranks}, token_budget {token_budget}: both must be at least 1"
        )


def _deal(batches: list[list[_Unit]], num_ranks: int) -> Plan:
    """Micro-batches, as many as a multiple of the ranks, to the ranks."""
    # The totals that are balanced are of tokens, without padding. All sorts here are stable, so
    # every rank breaks ties in the same way and comes to the same plan.
    batches = sorted(batches, key=_tokens, reverse=True)
    # Round by round, the largest remaining micro-batch goes to the rank with the fewest tokens so
    # far. As each rank gets one per round, the gap between two ranks never exceeds the largest
    # micro-batch.
    plan: Plan = [[] for _ in range(num_ranks)]
    load_tokens = [0] * num_ranks
    for start in range(0, len(batches), num_ranks):
        least_loaded_first = sorted(range(num_ranks), key=lambda rank: load_tokens[rank])
        # The slice is always full: `_split_until` made the number a multiple of the ranks.
        for rank, batch in zip(least_loaded_first, batches[start : start + num_ranks], strict=True):
            plan[rank].append([row for unit in batch for row in unit.rows])
            load_tokens[rank] += _tokens(batch)
    return plan


def epoch_order(num_rows: int, seed: int, epoch: int) -> list[int]:
    """A permutation of the rows that depends on (seed, epoch) alone.

    A resumed run sees the same order. ValueError for a negative number.
    """
    if num_rows < 0 or seed < 0 or epoch < 0:
        raise ValueError(f"num_rows {num_rows}, seed {seed} and epoch {epoch} must not be negative")
    # The pair seeds the generator. A sum would give epoch 1 of seed 0 the order of epoch 0 of
    # seed 1.
    order: list[int] = np.random.default_rng([seed, epoch]).permutation(num_rows).tolist()
    return order


def mixed_order(is_first: np.ndarray, seed: int, epoch: int) -> list[int]:
    """As `epoch_order`, with rows of two kinds spread evenly: any stretch of the order holds both
    in about their share of all rows, where there are enough of each.
    """
    rows = np.array(epoch_order(len(is_first), seed, epoch), dtype=np.int64)
    first = np.asarray(is_first, dtype=bool)[rows]
    # The k-th of n rows of a kind stands at (k - 1/2) / n of the way.
    place = np.zeros(len(rows))
    for kind in (first, ~first):
        place[kind] = (np.arange(kind.sum()) + 0.5) / max(1, kind.sum())
    mixed: list[int] = rows[np.argsort(place, kind="stable")].tolist()
    return mixed


def step_batches(order: Sequence[int], batch_size: int) -> list[list[int]]:
    """Cuts an order into the rows of each optimizer step. The last one may be smaller.

    No row is repeated to fill it. ValueError: batch_size < 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but must be at least 1")
    return [list(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]


def _units(lengths: Sequence[int], group_sizes: Sequence[int] | None) -> list[_Unit]:
    """Rows, or groups of consecutive rows, the one with the longest row first; ties in order."""
    for row, length in enumerate(lengths):
        if length < 1:
            raise ValueError(
                f"row {row} has {length} tokens, but needs at least 1: drop it before packing"
            )
    sizes = [1] * len(lengths) if group_sizes is None else list(group_sizes)
    if sum(sizes) != len(lengths) or min(sizes, default=1) < 1:
        raise ValueError(
            f"group_sizes sum to {sum(sizes)} (smallest {min(sizes, default=0)}) for "
            f"{len(lengths)} rows: pass the size of each group of consecutive rows, all at least 1"
        )
    units = []
    for end, size in zip(accumulate(sizes), sizes, strict=True):
        rows = range(end - size, end)
        row_tokens = [int(lengths[row]) for row in rows]
        units.append(_Unit(tuple(rows), max(row_tokens), sum(row_tokens)))
    return sorted(units, key=lambda unit: unit.max_tokens, reverse=True)


def _cut(units: Sequence[_Unit], token_budget: int) -> list[list[_Unit]]:
    """Greedy contiguous cuts of units that are sorted longest first."""
    batches: list[list[_Unit]] = []
    num_rows = 0
    for unit in units:
        # The first unit of a cut holds its longest row, which all of its rows are padded to.
        if batches and batches[-1][0].max_tokens * (num_rows + len(unit.rows)) <= token_budget:
            batches[-1].append(unit)
            num_rows += len(unit.rows)
        else:
            batches.append([unit])
            num_rows = len(unit.rows)
    return batches


def _split_until(batches: list[list[_Unit]], num_batches: int) -> list[list[_Unit]]:
    """Splits the costliest micro-batches in two, then adds empty ones, up to `num_batches`."""
    batches = list(batches)
    # Splits come first: an empty micro-batch costs its rank a pass that learns nothing. A single
    # unit cannot be split, since a group is compared within itself.
    while len(batches) < num_batches and any(len(batch) > 1 for batch in batches):
        costliest = max(
            (i for i, batch in enumerate(batches) if len(batch) > 1),
            key=lambda i: _cost(batches[i]),
        )
        batch = batches.pop(costliest)
        cut = min(range(1, len(batch)), key=lambda i: max(_cost(batch[:i]), _cost(batch[i:])))
        batches += [batch[:cut], batch[cut:]]
    # `_deal` keeps this order where tokens are equal. Single units go first: only they can be over
    # the budget.
    batches.sort(key=lambda batch: _cost(batch) if len(batch) > 1 else inf, reverse=True)
    return batches + [[] for _ in range(num_batches - len(batches))]


def _cost(batch: Sequence[_Unit]) -> int:
    """Padded tokens; the first unit is the longest."""
    return batch[0].max_tokens * sum(len(unit.rows) for unit in batch)


def _tokens(batch: Sequence[_Unit]) -> int:
    return sum(unit.total_tokens for unit in batch)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
