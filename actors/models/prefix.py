"""Answers to one prompt as one row: the prompt is computed once, and no answer sees another.

A row is the tokens that all answers of a group begin with, then what follows in each:

    prompt prompt prompt | a a a | b b | c c c c
    0      1      2      | 3 4 5 | 3 4 | 3 4 5 6    positions go on from the prompt in every answer

A mask keeps the answers apart; CAUSAL_FROM shared tokens or more need none themselves. Rows stand
back to back, without padding; attention takes them one by one (`attend_by_row` of
actors/models/attention.py). Scores and gradients are those of separate rows.

It saves the layers' work on repeated prompts and costs attention over longer rows; `pays` weighs
the two by their floating-point operations (per token and layer about 24 H^2 for the matrices, 4 H a
key for attention).

Shapes: T = tokens of all groups back to back, N = positions that are read, H = hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rayward.data.ragged import Ragged, Rows
from rayward.data.rollouts import Rollouts

# Where a second call of attention, causal and without a mask, is faster than a larger mask.
CAUSAL_FROM = 64


def prefix_lengths(ids: Rows, sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """[groups] tokens that all answers of each group begin with. `sizes`: answers a group."""
    lengths = []
    row = 0
    for size in sizes:
        first = ids[row]
        # Less than any answer has: each keeps a token of its own, whose state can be read.
        length = int(ids.lengths[row : row + size].min()) - 1
        for other in range(row + 1, row + size):
            differs = np.flatnonzero(first[:length] != ids[other][:length])
            length = int(differs[0]) if len(differs) else length
        lengths.append(length)
        row += size
    return np.array(lengths, dtype=np.int64)


def shared_lengths(ids: Rows, sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """[groups] tokens of each group as one row: of all its answers, the beginning counted once."""
    ends = np.cumsum(sizes)
    totals = np.diff(np.concatenate([[0], ids.offsets[ends]]))
    return totals - prefix_lengths(ids, sizes) * (np.asarray(sizes) - 1)


def pays(ids: Rows, sizes: np.ndarray, hidden_size: int) -> bool:
    """Whether rows that share their prompts take fewer operations than separate ones."""
    return operations(shared_lengths(ids, sizes), hidden_size) < operations(
        ids.lengths, hidden_size
    )


def operations(lengths: np.ndarray, hidden_size: int) -> float:
    """Floating-point operations of a layer for rows of these lengths, up to a factor."""
    # Those of the module's docstring divided by H, as if every token saw all of its row.
    return float((24.0 * hidden_size * lengths + 4.0 * lengths.astype(float) ** 2).sum())


@dataclass(frozen=True)
class SharedRows:
    """Groups of rows back to back, with the beginning that a group's rows share written once."""

    ids_T: np.ndarray
    positions_T: np.ndarray
    masks: list[np.ndarray]
    """Of each group, [queries, its tokens] True where a query may look.

    The queries are its last tokens: see CAUSAL_FROM. A group of one row has no query that needs a
    mask: at 64k tokens a mask of all would take 4 GB.
    """
    places: Ragged
    """Of each row, where its tokens stand among the T."""


def shared_rows(
    ids: Rows, sizes: Sequence[int] | np.ndarray, prefixes: Sequence[int]
) -> SharedRows:
    """Groups of `sizes` consecutive rows, each of which begins as its group's first row does.

    `prefixes`: of each group, how many tokens its rows share.
    """
    tokens, positions, masks, places = [], [], [], []
    row = 0  # the first row of the group
    written = 0  # tokens before this row's
    for size, prefix in zip(sizes, prefixes, strict=True):
        owners = []
        base = written  # where the group's shared tokens begin
        for answer in range(size):
            # The group's first row brings the shared tokens, the others only what follows.
            start = prefix if answer else 0
            length = int(ids.lengths[row + answer])
            position = np.arange(start, length)
            tokens.append(ids[row + answer][start:])
            # As in a row alone, so that its rotary embeddings are the same.
            positions.append(position)
            owners.append(np.where(position < prefix, 0, answer + 1))
            tail = np.arange(written, written + length - start)
            places.append(np.concatenate([np.arange(base, base + start), tail]))
            written += length - start
        # The shared tokens are causal among themselves, and never see an answer's.
        causal = prefix if prefix >= CAUSAL_FROM else 0
        masks.append(_mask(np.concatenate(owners), causal, size))
        row += size
    return SharedRows(np.concatenate(tokens), np.concatenate(positions), masks, Ragged.of(places))


def _mask(owner_T: np.ndarray, causal: int, size: int) -> np.ndarray:
    """[queries, T] what the tokens of a group from number `causal` on may see, T its tokens.

    No queries of a row alone, which is causal throughout. `owner_T`: 0 at tokens that all `size`
    rows share, the number of the row at others.
    """
    if size == 1:
        return np.zeros((0, len(owner_T)), dtype=bool)
    queries = owner_T[causal:, None]
    # A token sees what its row holds: the shared tokens, and those of the same answer.
    sees = (owner_T[None, :] == 0) | (owner_T[None, :] == queries)
    # Of these, what comes before it. Query i is token `causal` + i, so the diagonal is shifted.
    return sees & np.tri(len(queries), len(owner_T), causal, dtype=bool)


def on_device(rows: SharedRows, device: torch.device) -> dict[str, Any]:
    """Input ids and positions [1, T] and masks [1, 1, queries, tokens], as our modules take them.

    The modules are those of actors/models/heads.py.
    """
    ids_1T = torch.from_numpy(rows.ids_T[None].astype(np.int64))
    positions_1T = torch.from_numpy(rows.positions_T[None].astype(np.int64))
    # Bool, which SDPA takes with queries of any dtype.
    masks = [torch.from_numpy(mask).to(device)[None, None] for mask in rows.masks]
    return {
        "input_ids_BT": ids_1T.to(device),
        "positions_BT": positions_1T.to(device),
        "row_masks": masks,
    }


def shared_inputs(
    ids: Rows, sizes: Sequence[int] | np.ndarray, device: torch.device
) -> dict[str, Any]:
    """What a scalar model takes to read the last token of every row, rows in their order."""
    rows = shared_rows(ids, sizes, prefix_lengths(ids, sizes).tolist())
    # The last token is each row's own, never a shared one.
    last_N = rows.places.values[rows.places.offsets[1:] - 1]
    return {**on_device(rows, device), "read_N": torch.from_numpy(last_N).to(device)}


def shared_answers(
    ids: Ragged, sizes: Sequence[int] | np.ndarray, answers: Ragged, device: torch.device
) -> dict[str, Any]:
    """What a policy takes to give the log-probs of the tokens that `answers` marks, rows in order.

    `answers` has the shape of `ids`, above 0 at those tokens. The first token of a row has none.
    """
    rows = shared_rows(ids, sizes, prefix_lengths(ids, sizes).tolist())
    marked = answers.values > 0
    marked[answers.offsets[:-1]] = False
    tokens_N = np.flatnonzero(marked)
    # The state before a token predicts it. Its place comes from the row, not from the token before
    # it in the pass: an answer's first token follows the last shared one, which stands far away.
    read_N = torch.from_numpy(rows.places.values[tokens_N - 1]).to(device)
    targets_N = torch.from_numpy(ids.values[tokens_N].astype(np.int64)).to(device)
    return {**on_device(rows, device), "read_N": read_N, "targets_N": targets_N}


def shared_responses(
    rollouts: Rollouts, device: torch.device, with_targets: bool
) -> dict[str, Any]:
    """What a policy (with targets) or a critic takes to read the state before every response token.

    Rows in order. Responses that stand side by side and have the same prompt share its tokens.
    """
    ids, sizes = rollouts.sequences(), group_sizes(rollouts)
    firsts = np.cumsum(sizes) - sizes
    # The prompt and no more, also where responses begin alike: the first row's prompt is all of
    # its group's, and the state after it is read once for each response.
    rows = shared_rows(ids, sizes, rollouts.prompts.lengths[firsts].tolist())
    read_N = np.concatenate(
        [
            # From the prompt's last token to the last but one of the response.
            rows.places[row][prompt_length - 1 : -1]
            for row, prompt_length in enumerate(rollouts.prompts.lengths)
        ]
    )
    inputs = {**on_device(rows, device), "read_N": torch.from_numpy(read_N).to(device)}
    if with_targets:
        targets_N = torch.from_numpy(rollouts.responses.values.astype(np.int64))
        inputs["targets_N"] = targets_N.to(device)
    return inputs


def group_sizes(rollouts: Rollouts) -> np.ndarray:
    """[groups] responses to the same prompt that stand side by side."""
    changes = np.flatnonzero(np.diff(rollouts.prompt_index)) + 1
    return np.diff(np.concatenate([[0], changes, [len(rollouts)]]))


def response_units(rollouts: Rollouts, token_budget: int) -> tuple[list[list[int]], np.ndarray]:
    """(units: rows of one prompt that stay together, [units] the tokens of each as one row).

    A group over the budget is cut into several units, of which each computes the prompt again.
    """
    prompts, responses = rollouts.prompts.lengths, rollouts.responses.lengths
    units: list[list[int]] = []
    costs: list[int] = []
    first = 0
    for size in group_sizes(rollouts).tolist():
        for row in range(first, first + size):
            if row > first and costs[-1] + responses[row] <= token_budget:
                units[-1].append(row)
                costs[-1] += int(responses[row])
            else:
                units.append([row])
                costs.append(int(prompts[row] + responses[row]))
        first += size
    return units, np.array(costs, dtype=np.int64)
