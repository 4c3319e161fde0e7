"""Answers to one prompt as one row: the prompt's tokens are computed once, and no answer sees
another.

A row is the tokens that all answers of a group begin with, then what follows in each. Positions go
on from the shared tokens in every answer, and a mask keeps the answers apart; CAUSAL_FROM shared
tokens or more need none themselves. Rows stand back to back, without padding; attention takes them
one by one (`attend_by_row` of actors/models/attention.py). Scores and gradients are those of
separate rows.

It saves the layers' work on repeated prompts and costs attention over longer rows; `pays` weighs
the two by their floating-point operations (per token and layer about 24 H^2 for the matrices, 4 H a
key for attention).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rayward.data.ragged import Ragged
from rayward.data.rollouts import Rollouts

# Where a second call of attention, causal and without a mask, is faster than a larger mask.
CAUSAL_FROM = 64


def prefix_lengths(ids: Ragged, sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """Tokens that all answers of each group begin with, less than any of them has. `sizes`: answers
    a group.
    """
    found, row = [], 0
    for size in sizes:
        first, length = ids[row], int(ids.lengths[row : row + size].min()) - 1
        for other in range(row + 1, row + size):
            differs = np.flatnonzero(first[:length] != ids[other][:length])
            length = int(differs[0]) if len(differs) else length
        found.append(length)
        row += size
    return np.array(found, dtype=np.int64)


def shared_lengths(ids: Ragged, sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """Tokens of each group as one row."""
    ends = np.cumsum(sizes)
    totals = np.diff(np.concatenate([[0], ids.offsets[ends]]))
    return totals - prefix_lengths(ids, sizes) * (np.asarray(sizes) - 1)


def pays(ids: Ragged, sizes: np.ndarray, hidden_size: int) -> bool:
    """Whether rows that share their prompts take fewer operations than separate ones."""
    return operations(shared_lengths(ids, sizes), hidden_size) < operations(
        ids.lengths, hidden_size
    )


def operations(lengths: np.ndarray, hidden_size: int) -> float:
    """Floating-point operations of a layer for rows of these lengths, up to a factor."""
    return float((24.0 * hidden_size * lengths + 4.0 * lengths.astype(float) ** 2).sum())


@dataclass(frozen=True)
class SharedRows:
    """Groups of rows back to back, the beginning that a group's rows share written once; T tokens
    in all.
    """

    ids_T: np.ndarray
    positions_T: np.ndarray
    masks: list[np.ndarray]
    """Of each group, [queries, its tokens]: what may be seen; the queries are its last tokens, see
    CAUSAL_FROM.

    A group of one row has no query that needs a mask: at 64k tokens a mask of all would take 4 GB.
    """
    places: Ragged
    """Of each row, where its tokens stand among the T."""


def shared_rows(
    ids: Ragged, sizes: Sequence[int] | np.ndarray, prefixes: Sequence[int]
) -> SharedRows:
    """Groups of `sizes` consecutive rows, of which each begins with the `prefixes` tokens of its
    group's first.
    """
    tokens, positions, masks, places, row, begun = [], [], [], [], 0, 0
    for size, prefix in zip(sizes, prefixes, strict=True):
        owners, base = [], begun
        for answer in range(size):
            start, length = (prefix if answer else 0), int(ids.lengths[row + answer])
            place = np.arange(start, length)
            tokens.append(ids[row + answer][start:])
            positions.append(place)
            owners.append(np.where(place < prefix, 0, answer + 1))
            own = np.arange(begun, begun + length - start)
            places.append(np.concatenate([np.arange(base, base + start), own]))
            begun += length - start
        masks.append(_mask(np.concatenate(owners), prefix if prefix >= CAUSAL_FROM else 0, size))
        row += size
    return SharedRows(np.concatenate(tokens), np.concatenate(positions), masks, Ragged.of(places))


def _mask(owner_T: np.ndarray, causal: int, size: int) -> np.ndarray:
    """[queries, T] what the tokens from number `causal` on may see: none of a row alone, which is
    causal throughout.

    `owner_T`: 0 at tokens that all `size` rows share, the number of the row at others.
    """
    if size == 1:
        return np.zeros((0, len(owner_T)), dtype=bool)
    queries = owner_T[causal:, None]
    sees = (owner_T[None, :] == 0) | (owner_T[None, :] == queries)
    return sees & np.tri(len(queries), len(owner_T), causal, dtype=bool)


def on_device(rows: SharedRows, device: torch.device) -> dict[str, Any]:
    """Input ids and positions [1, T] and masks [1, 1, queries, tokens], as the models of
    actors/models/load.py take them.
    """
    ids_1T, positions_1T = (
        torch.from_numpy(x[None].astype(np.int64)) for x in (rows.ids_T, rows.positions_T)
    )
    masks = [torch.from_numpy(mask).to(device)[None, None] for mask in rows.masks]
    return {
        "input_ids_BT": ids_1T.to(device),
        "positions_BT": positions_1T.to(device),
        "row_masks": masks,
    }


def shared_inputs(
    ids: Ragged, sizes: Sequence[int] | np.ndarray, device: torch.device
) -> dict[str, Any]:
    """What a scalar model takes to read the last token of every row, rows in their order."""
    rows = shared_rows(ids, sizes, prefix_lengths(ids, sizes).tolist())
    last_N = rows.places.values[rows.places.offsets[1:] - 1]
    return {**on_device(rows, device), "read_N": torch.from_numpy(last_N).to(device)}


def shared_answers(
    ids: Ragged, sizes: Sequence[int] | np.ndarray, answers: Ragged, device: torch.device
) -> dict[str, Any]:
    """What a policy takes to give the log-probs of the tokens that `answers` (like `ids`) marks,
    rows in their order.

    The first token of a row has none.
    """
    rows = shared_rows(ids, sizes, prefix_lengths(ids, sizes).tolist())
    marked = answers.values > 0
    marked[answers.offsets[:-1]] = False
    tokens_N = np.flatnonzero(marked)
    read_N = torch.from_numpy(rows.places.values[tokens_N - 1]).to(device)
    targets_N = torch.from_numpy(ids.values[tokens_N].astype(np.int64)).to(device)
    return {**on_device(rows, device), "read_N": read_N, "targets_N": targets_N}


def shared_responses(
    rollouts: Rollouts, device: torch.device, with_targets: bool
) -> dict[str, Any]:
    """What a policy (with targets) or a critic takes to read the state before every response token,
    rows in order.

    Answers that stand side by side and have the same prompt share its tokens.
    """
    ids, sizes = rollouts.sequences(), group_sizes(rollouts)
    firsts = np.cumsum(sizes) - sizes
    rows = shared_rows(ids, sizes, rollouts.prompts.lengths[firsts].tolist())
    answers = zip(
        (rows.places[row] for row in range(len(ids))), rollouts.prompts.lengths, strict=True
    )
    read_N = np.concatenate([places[length - 1 : -1] for places, length in answers])
    inputs = {**on_device(rows, device), "read_N": torch.from_numpy(read_N).to(device)}
    if with_targets:
        inputs["targets_N"] = torch.from_numpy(rollouts.responses.values.astype(np.int64)).to(
            device
        )
    return inputs


def group_sizes(rollouts: Rollouts) -> np.ndarray:
    """Answers to the same prompt that stand side by side."""
    changes = np.flatnonzero(np.diff(rollouts.prompt_index)) + 1
    return np.diff(np.concatenate([[0], changes, [len(rollouts)]]))


def response_units(rollouts: Rollouts, token_budget: int) -> tuple[list[list[int]], np.ndarray]:
    """Rows of one prompt that stay together, cut where over the budget, and the tokens of each such
    unit as one row.
    """
    prompts, answers = rollouts.prompts.lengths, rollouts.responses.lengths
    units: list[list[int]] = []
    costs: list[int] = []
    row = 0
    for size in group_sizes(rollouts).tolist():
        for answer in range(row, row + size):
            if answer > row and costs[-1] + answers[answer] <= token_budget:
                units[-1].append(answer)
                costs[-1] += int(answers[answer])
            else:
                units.append([answer])
                costs.append(int(prompts[answer] + answers[answer]))
        row += size
    return units, np.array(costs, dtype=np.int64)
