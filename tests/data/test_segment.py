"""Segments: whole pairs, in order, none lost, none longer than need be."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest

from rayward.data.records import RowError, Turn
from rayward.data.segment import bounds, segments


def by_length(lengths: list[int], limit: int) -> list[tuple[int, int]]:
    return bounds(len(lengths), lambda start, end: sum(lengths[start:end]) <= limit)


@pytest.mark.parametrize("lengths, expected", [
    ([1000, 900, 1500], [(0, 2), (2, 3)]),  # UltraChat's own loses the last pair here
    ([3000, 10], [(0, 1), (1, 2)]),  # ... and leaves an empty segment first here
    ([2048], [(0, 1)]), ([2049], [(0, 1)]), ([1024, 1024, 1], [(0, 2), (2, 3)]),
    ([10, 3000, 10], [(0, 1), (1, 2), (2, 3)]), ([], [])])  # fmt: skip
def test_by_hand(lengths: list[int], expected: list[tuple[int, int]]) -> None:
    assert by_length(lengths, 2048) == expected


def test_random_lengths_against_what_must_hold() -> None:
    rng = random.Random(3)
    for _ in range(300):
        lengths = [rng.randint(1, 30) for _ in range(rng.randint(1, 25))]
        limit = rng.randint(1, 60)
        found = by_length(lengths, limit)
        assert [number for start, end in found for number in range(start, end)] == list(
            range(len(lengths))
        )
        for start, end in found:
            assert end > start and (sum(lengths[start:end]) <= limit or end == start + 1)
        for (start, _), (_, end) in pairwise(found):
            assert (
                sum(lengths[start : found[found.index((start, _))][1] + 1]) > limit or end == start
            ), "greedy"


def test_turns_stay_whole_and_a_system_message_stands_before_each() -> None:
    said = tuple(Turn(("user", "assistant")[i % 2], f"{i} " + "x" * (i % 7)) for i in range(20))  # type: ignore[arg-type]
    system = Turn("system", "Be brief.")

    def fits(turns: Sequence[Turn]) -> bool:
        return sum(len(turn.content) for turn in turns) <= 32

    for turns in (said, (system, *said)):
        found = segments(turns, fits)
        assert len(found) >= 3
        first = len(turns) - len(said)
        assert tuple(turn for _, part in found for turn in part[first:]) == said
        assert all(
            part[:first] == turns[:first] and part[-1].role == "assistant" for _, part in found
        )
        assert [start for start, _ in found] == [0] + [
            turns.index(part[first]) for _, part in found[1:]
        ]


def test_turns_that_do_not_end_with_an_answer_are_refused() -> None:
    with pytest.raises(RowError, match="expected assistant"):
        segments((Turn("user", "q"),), lambda turns: True)


def test_a_long_dialogue_is_not_measured_over_and_over() -> None:
    calls = []

    def fits(start: int, end: int) -> bool:
        calls.append(end - start)
        return end - start <= 300

    assert bounds(1000, fits) == [(0, 300), (300, 600), (600, 900), (900, 1000)]
    assert len(calls) < 80
