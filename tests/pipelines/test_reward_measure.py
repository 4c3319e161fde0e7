"""What a reward model's scores are worth on held-out rankings, and the rows they are scores of."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from rayward.actors.training.rankings import RankedRows
from rayward.data.ragged import Ragged
from rayward.data.records import Ranking, Turn
from rayward.data.templates.template import find
from rayward.data.templates.tokenizer import train_tokenizer
from rayward.data.toy import toyworld
from rayward.pipelines.rows.ranked import ranked_rows
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.scoring.reward_measures import measure

TEMPLATE = find("openchat_3.5")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    tokenizer = train_tokenizer(["It is cold. It is hot."], 300, TEMPLATE.special_tokens, 256)
    return Renderer(TEMPLATE, tokenizer, 256)


def ranking(*answers: str, source: str = "", ranks: tuple[float, ...] | None = None) -> Ranking:
    return Ranking((Turn("user", "q"),), answers, source, "", ranks)


def rows_of(rankings: list[Ranking]) -> RankedRows:
    sizes = np.array([len(ranking.answers) for ranking in rankings], dtype=np.int64)
    ranks = [
        rank for ranking in rankings for rank in (ranking.ranks or range(len(ranking.answers)))
    ]
    ids = Ragged.of([[1]] * int(sizes.sum()))
    return RankedRows(ids, sizes, np.array(ranks, dtype=np.float32), ids)


def measured(rankings: list[Ranking], scores: list[float]) -> dict:
    return measure(np.array(scores, dtype=np.float32), rankings, rows_of(rankings))


# ---- measures
# ----------------------------------------------------------------------------------------------

RANKINGS = [ranking("aaaa", "bbb", "cc"), ranking("a", "bb"), ranking("aa", "bb", "c", "dddd")]
RIGHT = [3.0, 2.0, 1.0, 9.0, -9.0, 0.4, 0.3, 0.2, 0.1]


def test_perfect_reversed_and_constant_scores() -> None:
    perfect, reverse = measured(RANKINGS, RIGHT), measured(RANKINGS, [-score for score in RIGHT])
    constant = measured(RANKINGS, [0.5] * 9)
    assert (perfect["heldout_rankings"], perfect["heldout_pairs"], perfect["chance_baseline"]) == (
        3,
        3 + 1 + 6,
        0.5,
    )
    assert (perfect["pair_accuracy"], perfect["kendall_tau"]) == (1, 1)
    assert (reverse["pair_accuracy"], reverse["kendall_tau"]) == (0, -1)
    assert (constant["pair_accuracy"], constant["kendall_tau"]) == (0.5, 0)


def test_pairs_are_counted_within_rankings_only() -> None:
    """A constant added to one ranking's scores changes nothing: scores of different prompts are not
    compared.
    """
    shifted = [
        score + shift for score, shift in zip(RIGHT, [0] * 3 + [100] * 2 + [-100] * 4, strict=True)
    ]
    assert measured(RANKINGS, shifted) == pytest.approx(measured(RANKINGS, RIGHT), abs=1e-5)


def test_a_case_by_hand() -> None:
    told = measured([ranking("x", "y", "z"), ranking("x", "y")], [1.0, 2.0, 0.0, 5.0, 5.0])
    # x < y is wrong, x > z and y > z are right; the tie counts half.
    assert told["heldout_pairs"] == 4 and told["pair_accuracy"] == (2 + 0.5) / 4
    assert told["kendall_tau"] == pytest.approx((1 / 3 + 0) / 2)


def test_tied_ranks_are_no_pairs() -> None:
    tied = [ranking("x", "y", "z", ranks=(1.0, 1.0, 2.0))]
    for first, second in ((5.0, 4.0), (4.0, 5.0)):
        told = measured(tied, [first, second, 0.0])
        assert (told["heldout_pairs"], told["pair_accuracy"]) == (2, 1)


def test_the_length_baseline_prefers_the_longer_answer() -> None:
    told = measured(RANKINGS, RIGHT)
    # aaaa > bbb > cc: 3 right. a < bb: 0. aa = bb: a half; aa > c, bb > c: 2; dddd is the longest:
    # 0 of 3.
    assert told["length_baseline"] == (3 + 0 + 0.5 + 2 + 0) / 10
    assert told["length_baseline"] == measured(RANKINGS, RIGHT[::-1])["length_baseline"], (
        "whatever the scores"
    )


def test_each_source_is_measured_on_its_own_where_there_are_several() -> None:
    assert not [key for key in measured(RANKINGS, RIGHT) if key.startswith("pair_accuracy_")]
    mixed = [
        ranking("a", "b", source="hh"),
        ranking("a", "b", "c", source="nectar"),
        ranking("a", "b"),
        ranking("a", "b", source="hh"),
    ]
    told = measured(mixed, [1, 0, 1, 2, 3, 5, 5, 0, 1])
    by_source = {
        key.removeprefix("pair_accuracy_"): value
        for key, value in told.items()
        if key.startswith("pair_accuracy_")
    }
    assert by_source == {"hh": 0.5, "nectar": 0.0, "unnamed": 0.5}
    assert told["accuracy_low_hh"] == 0 < told["accuracy_high_hh"] == 1, "one of two pairs is right"
    assert told["length_baseline_nectar"] == 0.5, "all are as long"
    assert told["pair_accuracy"] == (2 * 0.5 + 3 * 0.0 + 0.5) / 6, (
        "the whole is the mean over pairs"
    )


def test_random_scores_are_right_half_of_the_time() -> None:
    rng = np.random.default_rng(0)
    rankings = [ranking(*(f"answer {k}" for k in range(5))) for _ in range(300)]
    told = measured(rankings, rng.normal(size=1500).tolist())
    assert told["pair_accuracy"] == pytest.approx(0.5, abs=0.03) and told[
        "kendall_tau"
    ] == pytest.approx(0, abs=0.06)


def test_a_diverged_model_is_told() -> None:
    with pytest.raises(ValueError, match="1 of 9 scores are NaN"):
        measured(RANKINGS, [float("nan"), *RIGHT[1:]])


# ---- rows
# --------------------------------------------------------------------------------------------------


def test_rows_are_the_answers_of_their_rankings(renderer: Renderer) -> None:
    given, _ = toyworld.rankings(20, 4, 0.1, 0)
    kept, rows = ranked_rows(given, renderer, seed=0)
    assert kept == given and rows.sizes.tolist() == [4] * 20
    expected = [
        renderer.conversation((*r.turns, Turn("assistant", a))).ids
        for r in given
        for a in r.answers
    ]
    assert [rows.ids[i].tolist() for i in range(80)] == expected


def test_ties_are_broken_by_the_seed_and_nothing_else_moves(renderer: Renderer) -> None:
    given = [ranking("a", "b", "c", "d", "e", ranks=(1.0, 2.0, 2.0, 2.0, 3.0)) for _ in range(30)]
    kept, rows = ranked_rows(given, renderer, seed=1)
    assert (
        kept == ranked_rows(given, renderer, seed=1)[0] != ranked_rows(given, renderer, seed=2)[0]
    )
    for row in kept:
        assert (
            row.answers[0] == "a"
            and row.answers[4] == "e"
            and sorted(row.answers) == ["a", "b", "c", "d", "e"]
        )
        assert row.ranks == (1.0, 2.0, 2.0, 2.0, 3.0)
    assert len({row.answers for row in kept}) > 3, "drawn anew for each ranking"
    flat = [answer for row in kept for answer in row.answers]
    for i, answer in enumerate(flat):
        assert (
            rows.ids[i].tolist()
            == renderer.conversation((Turn("user", "q"), Turn("assistant", answer))).ids
        )


def test_what_does_not_fit_is_left_out_of_rankings_and_rows_alike(renderer: Renderer) -> None:
    given = [ranking("a", "b" * 300, "c"), ranking("a", "b" * 300), ranking("c", "d")]
    kept, rows = ranked_rows(given, renderer, seed=0)
    assert [row.answers for row in kept] == [("a", "c"), ("c", "d")] and rows.sizes.tolist() == [
        2,
        2,
    ]
    assert len(rows.ids) == 4
    assert measure(np.array([1, 0, 0, 1], np.float32), kept, rows)["pair_accuracy"] == 0.5
