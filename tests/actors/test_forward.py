"""How rows are shared out and put together again: the number of processes changes no value."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayward.actors.models.attention import attend_by_row
from rayward.actors.models.forward import (
    RankContext,
    map_rollouts,
    packed_inputs,
    response_inputs,
    to_device,
    weighted_inputs,
)
from rayward.actors.models.load import load_policy
from rayward.actors.training.supervised import require_separate_rows
from rayward.data.ragged import Ragged, Shard, merge

CPU = torch.device("cpu")


def parts_of(rollouts, world_size, token_budget, score):
    lengths = rollouts.sequences().lengths
    places = [RankContext(rank, world_size, CPU) for rank in range(world_size)]
    return [
        map_rollouts(rollouts, place.micro_batches(lengths, token_budget), score)
        for place in places
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("token_budget", [1, 70, 10_000])
def test_every_row_is_scored_once_and_alike(
    tiny_models, made_rollouts, plain, world_size, token_budget
):
    rollouts = made_rollouts(7)
    policy = load_policy(tiny_models.policy, "float32")
    seen: list[int] = []

    def score(batch):
        seen.extend(batch.prompt_index.tolist())
        with torch.no_grad():
            return policy(*response_inputs(batch, CPU))[0]

    parts = parts_of(rollouts, world_size, token_budget, score)
    assert sorted(seen) == list(range(7)) == sorted(int(row) for part in parts for row in part.rows)
    merged = merge(parts, 7)
    assert merged.dtype == np.float32
    np.testing.assert_allclose(
        merged, plain(policy.lm, rollouts.prompts, rollouts.responses), atol=1e-5, rtol=0
    )


def test_more_processes_than_rows(made_rollouts):
    rollouts = made_rollouts(2)
    parts = parts_of(rollouts, 3, 100, lambda batch: torch.from_numpy(batch.policy_logprobs))
    assert sorted(len(part.rows) for part in parts) == [0, 1, 1]
    assert np.array_equal(merge(parts, 2), rollouts.policy_logprobs)


def test_a_missing_or_doubled_row_is_an_error(made_rollouts):
    rollouts = made_rollouts(6)
    parts = parts_of(rollouts, 2, 60, lambda batch: torch.from_numpy(batch.policy_logprobs))
    with pytest.raises(
        ValueError, match=f"{len(parts[0].rows)} results for {len(parts[0].rows)} of 6 rows"
    ):
        merge(parts[:1], 6)
    with pytest.raises(ValueError, match=f"{6 + len(parts[1].rows)} results for 6 of 6 rows"):
        merge([*parts, parts[1]], 6)
    with pytest.raises(ValueError, match="1 results for 1 of 2 rows"):
        merge([Shard(np.array([5]), Ragged.of([[1.0]], np.float32))], 2)


def test_no_rows_become_one_row_with_nothing_chosen():
    ids_BT, chosen_BT = to_device(Ragged.of([]), np.zeros((0, 0), dtype=bool), CPU)
    assert ids_BT.shape == chosen_BT.shape == (1, 2) and not chosen_BT.any()


def test_packed_inputs_choose_what_padded_ones_do(tiny_models):
    """Weights that are not 0 at the start of a row, too: nothing stands before it to predict it
    from.
    """
    rng = np.random.default_rng(0)
    ids = Ragged.of([rng.integers(3, 50, length) for length in (1, 9, 1, 4, 2)])
    weights = ids.like(rng.choice([0.0, 0.1, 1.0], len(ids.values)).astype(np.float32))
    policy = load_policy(tiny_models.policy, "float32")
    packed, packed_weights_N = packed_inputs(ids, weights, CPU)
    padded, padded_weights_N = weighted_inputs(ids, weights, CPU)
    assert packed[0].shape == (1, 17) and padded[0].shape == (5, 9)
    assert packed[2].tolist() == [[0, *range(9), 0, *range(4), *range(2)]]
    assert torch.equal(packed_weights_N, padded_weights_N) and len(packed_weights_N) > 4
    with torch.no_grad():
        torch.testing.assert_close(policy(*packed)[0], policy(*padded)[0], atol=1e-5, rtol=0)
        assert float((policy(*packed[:2])[0] - policy(*padded)[0]).abs().max()) > 1e-2, (
            "positions keep rows apart"
        )
        alone = policy(*padded)[0]
        attend_by_row(policy.lm)
        torch.testing.assert_close(policy(*packed)[0], alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(policy(*padded)[0], alone, atol=1e-5, rtol=0)
    empty, none_N = packed_inputs(Ragged.of([]), Ragged.of([], np.float32), CPU)
    assert len(none_N) == 0 and len(policy(*empty)[0]) == 0


class Leaky(torch.nn.Module):
    """A policy that takes no notice of positions."""

    def __init__(self, policy):
        super().__init__()
        self.policy = policy

    def forward(self, ids_BT, chosen_BT, positions_BT=None):
        return self.policy(ids_BT, chosen_BT)


class Engine:
    """What `require_separate_rows` needs of a TrainEngine."""

    device = CPU
    vocab_size = 50

    def __init__(self, module):
        self.module = module

    @torch.no_grad()
    def infer(self, forward):
        return forward(self.module)


def test_a_model_that_reads_across_packed_rows_is_refused(tiny_models):
    policy = load_policy(tiny_models.policy, "float32")
    require_separate_rows(Engine(policy))
    with pytest.raises(ValueError, match="does not keep rows apart; set packing: false"):
        require_separate_rows(Engine(Leaky(policy)))
