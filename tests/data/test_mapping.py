"""Vectors, places, clusters and their terms: decided by a seed, right where known, whole where data
are odd.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from rayward.data.mapping import (
    cluster,
    length_bins,
    num_different,
    place,
    reduce,
    term_weights,
    top_terms,
    unit,
)

TOPICS = (
    "stars planets orbit moon comet",
    "bread flour oven dough yeast",
    "court judge law trial appeal",
)


def texts(each: int, topics: tuple[str, ...] = TOPICS) -> list[str]:
    """`each` texts a topic, in turn; every text is three words of its topic, and what all texts
    say.
    """
    rng = random.Random(0)
    return [
        f"please tell {' '.join(rng.sample(topic.split(), 3))}"
        for _ in range(each)
        for topic in topics
    ]


@pytest.mark.slow
def test_a_seed_decides_vectors_places_and_clusters() -> None:
    weights, _ = term_weights(texts(40))
    first, second = (reduce(weights, 3) for _ in range(2))
    assert np.array_equal(first, second) and np.allclose(np.linalg.norm(first, axis=1), 1)
    assert np.array_equal(place(first, 2, 3), place(first, 2, 3)) and not np.array_equal(
        place(first, 2, 3), place(first, 2, 4)
    )
    one, two = (cluster(first, None, 3) for _ in range(2))
    assert np.array_equal(one.cluster_N, two.cluster_N) and one.silhouette == two.silhouette


@pytest.mark.parametrize("dimensions", [2, 3])
def test_topics_are_told_apart_and_named(dimensions: int) -> None:
    weights, terms = term_weights(texts(40) + texts(20, TOPICS[:1]))
    vectors = reduce(weights, 0)
    found = cluster(vectors, 3, 0)
    topic = np.array([index % 3 for index in range(120)] + [0] * 20)
    assert len(set(zip(topic.tolist(), found.cluster_N.tolist(), strict=True))) == 3
    assert (
        set(found.cluster_N[topic == 0]) == {0}
        and found.silhouette is not None
        and found.silhouette > 0.3
    )
    for number, top in enumerate(top_terms(weights, terms, found.cluster_N)):
        of_topic = TOPICS[topic[found.cluster_N == number][0]].split()
        assert len(top) == 3 and set(top) <= set(of_topic)
    places = place(vectors, dimensions, 0)
    assert places.shape == (140, dimensions) and np.isfinite(places).all()
    gaps = np.linalg.norm(places[:, None] - places[None], axis=2) + np.diag(np.full(140, np.inf))
    assert (topic[np.argsort(gaps, axis=1)[:, :5]] == topic[:, None]).mean() > 0.95


def test_the_best_silhouette_chooses_the_number_of_clusters() -> None:
    rng = np.random.default_rng(0)
    vectors = unit(np.repeat(np.eye(8), 30, axis=0) + 0.05 * rng.standard_normal((240, 8)))
    found = cluster(vectors, None, 0)
    assert np.bincount(found.cluster_N).tolist() == [30] * 8
    assert found.silhouette is not None
    assert all(
        found.silhouette > (cluster(vectors, count, 0).silhouette or 0) for count in (4, 6, 12)
    )


def test_silhouette_of_two_pairs() -> None:
    """By hand: within a pair the distance is 1, to the two of the other pair 10 and sqrt(101): 1 -
    1 / mean.
    """
    vectors = np.array([[0.0, 0.0], [0.0, 1.0], [10.0, 0.0], [10.0, 1.0]])
    found = cluster(vectors, 2, 0)
    assert found.silhouette == pytest.approx(1 - 1 / ((10 + 101**0.5) / 2))
    assert found.cluster_N[0] == found.cluster_N[1] != found.cluster_N[2] == found.cluster_N[3]


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize(
    ("given", "clusters"),
    [
        (["one text"], 1),
        (["one text", "another sentence"], 2),
        (["red apple", "green apple", "blue sea"], 2),
        (["the same words"] * 50, 1),
        (["1+1=2", "?", "...", "2*3", "(5)"], 4),
        (["the of and", "to be or not to be"], 2),
        (["words here", "123", "456", "789"], 2),
    ],
)
def test_few_equal_and_wordless_texts(given: list[str], clusters: int, dimensions: int) -> None:
    weights, terms = term_weights(given)
    vectors = reduce(weights, 0)
    places = place(vectors, dimensions, 0)
    assert places.shape == (len(given), dimensions) and np.isfinite(places).all()
    found = cluster(vectors, None, 0)
    assert found.cluster_N.max() + 1 == clusters
    assert len(top_terms(weights, terms, found.cluster_N)) == clusters


def test_more_clusters_than_different_texts_are_refused() -> None:
    vectors = reduce(term_weights(["red apple", "green sea", "red apple"])[0], 0)
    assert num_different(vectors) == 2
    with pytest.raises(ValueError, match="3 clusters of 2 different texts; ask for 2 at most"):
        cluster(vectors, 3, 0)


def test_terms_of_languages_without_spaces() -> None:
    _, terms = term_weights(["日本語です", "GPTを使う don't", "Größe naïve x1"])
    assert {"日本", "語で", "gpt", "größe", "naïve"} <= set(terms) and not {"don", "t", "x1"} & set(
        terms
    )


def test_length_bins() -> None:
    assert length_bins([5, 5, 5]) == (["5"], [0, 0, 0])
    names, of = length_bins(list(range(1, 1201)))
    assert (
        names
        == ["1 to 200", "201 to 400", "401 to 600", "601 to 800", "801 to 1,000", "1,001 to 1,200"]
        or names
    )
    assert [of.count(number) for number in range(6)] == pytest.approx([200] * 6, abs=2)
    names, of = length_bins([1, 1, 1, 1, 1, 9])
    assert names == ["1", "2 to 9"] and of == [0, 0, 0, 0, 0, 1]
