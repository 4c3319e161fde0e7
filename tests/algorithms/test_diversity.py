"""Golden numbers of MTLD and small cases of the n-gram measures."""

from __future__ import annotations

import pytest

from rayward.algorithms.diversity import (
    distinct_n,
    distinct_ratio,
    mtld,
    repetition_rate,
)

LINCOLN = "of the people, by the people, for the people, shall not perish from the earth"


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("the cat sat on the mat and the dog sat on the rug", 13.0),
        ("a a a a", 2.0),
        ("alpha beta gamma delta", 4.0),
        (LINCOLN, 12.8693182),
        ("", 0.0),
        ("123 -- !", 0.0),
    ],
)
def test_goldens_of_mtld(text: str, score: float) -> None:
    assert mtld(text) == pytest.approx(score, abs=1e-7)


def test_mtld_reads_both_ways() -> None:
    assert mtld(LINCOLN) == pytest.approx((10.7386364 + 15.0) / 2, abs=1e-7)
    assert mtld(" ".join(LINCOLN.replace(",", "").split()[::-1])) == pytest.approx(mtld(LINCOLN))


def test_a_factor_ends_at_the_threshold_itself() -> None:
    # 18 different words of 25 are 0.72 of them: one factor, and the last word begins the next.
    # Backwards 19 of 26 are left at the end: 7 / 26 of the 0.28 that a factor goes down.
    tokens = [f"w{chr(97 + number % 18)}" for number in range(25)] + ["other"]
    assert mtld(" ".join(tokens)) == pytest.approx((26.0 + 26 * 0.28 / (1 - 19 / 26)) / 2)


def test_the_words_of_mtld() -> None:
    """Two texts of the same words once each: as long as they have words."""
    assert mtld("A well-known \u2013 B2B caf\u00e9: don't,stop\u2014now!") == 7.0
    assert mtld("a wellknown bb caf\u00e9 don t stopnow") == 7.0


def test_distinct_n() -> None:
    assert distinct_n([[1, 2, 3], [1, 2, 4]], 1) == pytest.approx(4 / 6)
    # No bigram across the two lists.
    assert distinct_n([[1, 2, 3], [1, 2, 4]], 2) == pytest.approx(3 / 4)
    assert distinct_n([["a"], []], 2) == 0.0
    with pytest.raises(ValueError, match="n is 0"):
        distinct_n([[1]], 0)


def test_repetition_rate() -> None:
    assert repetition_rate([1, 2, 3, 4], 2) == 0.0
    assert repetition_rate([1, 2, 1, 2, 1, 2], 2) == pytest.approx(3 / 5)
    assert repetition_rate([7] * 101, 4) == pytest.approx(97 / 98)
    assert repetition_rate([1], 2) == 0.0


def test_distinct_ratio_compares_equally_much_text() -> None:
    varied = [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert distinct_ratio(varied, varied, 2) == 1.0
    assert distinct_ratio([[1, 2, 3, 4]] * 2, varied, 2) == pytest.approx(1 / 2)
    # Twice the text says everything twice, yet its first half is as varied as all of the other.
    assert distinct_ratio(varied * 2, varied, 2) == 1.0 > distinct_n(varied * 2, 2)
    # Of the longer side only [1, 2, 3] and [4] count, which has no 2-gram.
    assert distinct_ratio([[9, 9, 9, 9]], [[1, 2, 3], [4, 5, 6]], 2) == pytest.approx(1 / 3)
    assert distinct_ratio([[1]], varied, 2) == 1.0, "one token has no 2-gram on either side"
    assert distinct_ratio([[1], [2], [3]], varied, 2) == 0.0
