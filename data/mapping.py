"""Where texts lie: vectors of their words, places on a map, clusters and the clusters' terms.

A seed decides all of it.

Vectors are TF-IDF of words, brought to 100 dimensions by a truncated SVD (latent semantic analysis,
Deerwester et al. 1990) and to length 1; those of an embedding model can take their place. Places
come from UMAP (McInnes, Healy and Melville 2018), clusters from K-means of the vectors. K is given,
or of a few the one with the best silhouette (Rousseeuw 1987), measured on a sample of the points.

Letters: N texts, V terms, D dimensions of a vector, P dimensions of the map.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CJK = "\u3040-\u30ff\u3400-\u9fff"  # written without spaces: a term is up to two characters
WORD = rf"[{CJK}]{{1,2}}|[^\W\d_{CJK}]{{2,}}"
CONTRACTED = (
    "aren couldn didn doesn don hadn hasn haven isn let ll re shouldn ve wasn weren won wouldn"
).split()
MAX_TERMS = 20_000  # the most frequent ones; it bounds the memory of the sparse matrix
VECTOR_DIMENSIONS = 100
NEIGHBOURS = 15
FEWEST_FOR_UMAP = 10
CLUSTER_COUNTS = (4, 6, 8, 12, 16, 24)
SILHOUETTE_SAMPLE = 2000  # points: the silhouette takes the distances of all pairs of them
TERMS_A_NAME = 3

Vectors = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Clusters:
    """A cluster for each of N points."""

    cluster_N: NDArray[np.int64]
    """Each point's cluster; 0 is the largest."""
    silhouette: float | None
    """-1 to 1; None where there is one cluster only, or one for each point."""


def term_weights(texts: Sequence[str]) -> tuple[Any, list[str]]:
    """TF-IDF of N texts: a sparse NxV matrix with rows of length 1, and the terms.

    Terms are words other than English function words; where no text has any, runs of up to three
    characters. Raises ValueError where all texts are blank.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

    stop_words = sorted(ENGLISH_STOP_WORDS.union(CONTRACTED))
    words = TfidfVectorizer(
        token_pattern=WORD, stop_words=stop_words, sublinear_tf=True, max_features=MAX_TERMS
    )
    runs = TfidfVectorizer(
        analyzer="char", ngram_range=(1, 3), sublinear_tf=True, max_features=MAX_TERMS
    )
    # The analyzer gives the list of a text's terms. Fitting without a single one would raise.
    vectorizer = words if any(map(words.build_analyzer(), texts)) else runs
    weights_NV = vectorizer.fit_transform(texts)
    return weights_NV, vectorizer.get_feature_names_out().tolist()


def reduce(weights_NV: Any, seed: int) -> Vectors:
    """Vectors NxD of length 1, D at most 100, of sparse term weights; 0 for a text without any."""
    from sklearn.decomposition import TruncatedSVD

    if min(weights_NV.shape) < 2:
        return unit(weights_NV.toarray())
    model = TruncatedSVD(min(VECTOR_DIMENSIONS, *weights_NV.shape), random_state=seed)
    # The SVD divides by the variance of the texts to tell the share that it explains; equal texts
    # have none.
    with np.errstate(divide="ignore", invalid="ignore"):
        return unit(model.fit_transform(weights_NV))


def unit(vectors_ND: Vectors) -> Vectors:
    """The vectors brought to length 1, so that their distances rank as cosines do; 0 stays 0."""
    from sklearn.preprocessing import normalize

    vectors: Vectors = normalize(np.asarray(vectors_ND, dtype=np.float64))
    return vectors


def num_different(vectors_ND: Vectors) -> int:
    """Number of vectors that differ, to six decimals."""
    return len(np.unique(vectors_ND.round(6), axis=0))


def place(vectors_ND: Vectors, dimensions: int, seed: int) -> Vectors:
    """Places NxP on a map of 2 or 3 dimensions by UMAP, or principal components where it cannot.

    UMAP's graph of neighbours needs 10 different vectors.
    """
    if num_different(vectors_ND) < FEWEST_FOR_UMAP:
        left, scale, _ = np.linalg.svd(vectors_ND - vectors_ND.mean(axis=0), full_matrices=False)
        places_NP = (left * scale)[:, :dimensions]
        # There are no more components than vectors; what lacks is 0.
        return np.pad(places_NP, ((0, 0), (0, dimensions - places_NP.shape[1])))
    # UMAP warns of islands in the graph of neighbours, which are what a map shows.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from umap import UMAP

        neighbours = min(NEIGHBOURS, len(vectors_ND) - 1)
        # One thread: with more, UMAP's optimisation is not repeatable.
        model = UMAP(
            n_neighbors=neighbours, n_components=dimensions, random_state=seed, n_jobs=1, init="pca"
        )
        return np.asarray(model.fit_transform(vectors_ND), dtype=np.float64)


def cluster(vectors_ND: Vectors, count: int | None, seed: int) -> Clusters:
    """K-means with `count` clusters, or the best of a few. ValueError for too large a `count`."""
    most = num_different(vectors_ND)
    if count is not None and count > most:
        raise ValueError(f"{count} clusters of {most} different texts; ask for {most} at most")
    if count:
        counts = [count]
    else:
        counts = [k for k in CLUSTER_COUNTS if k <= most] or [min(2, most)]
    candidates = [_cluster(vectors_ND, k, seed) for k in counts]
    # -2 is below every silhouette: clusters without one are taken only if all are.
    return max(candidates, key=lambda one: -2.0 if one.silhouette is None else one.silhouette)


def _cluster(vectors_ND: Vectors, count: int, seed: int) -> Clusters:
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    label_N = KMeans(count, n_init=4, random_state=seed).fit_predict(vectors_ND)
    # K-means numbers clusters by chance. Numbers by size make the names and colours of a map stay.
    rank_K = np.empty(count, dtype=np.int64)
    rank_K[np.argsort(-np.bincount(label_N, minlength=count), kind="stable")] = np.arange(count)
    cluster_N = rank_K[label_N]
    total = len(cluster_N)
    sample = np.random.default_rng(seed).choice(total, min(total, SILHOUETTE_SAMPLE), replace=False)
    # The silhouette is defined for 2 to n - 1 clusters only, and a sample may miss small ones.
    if not 2 <= len(np.unique(cluster_N[sample])) < len(sample):
        return Clusters(cluster_N, None)
    return Clusters(cluster_N, float(silhouette_score(vectors_ND[sample], cluster_N[sample])))


def top_terms(
    weights_NV: Any, terms: Sequence[str], cluster_N: NDArray[np.int64]
) -> list[list[str]]:
    """For each cluster the terms whose mean weight is the most above that in the other clusters.

    A cluster that holds all texts gets the terms of the highest mean.
    """
    names = []
    for number in range(int(cluster_N.max()) + 1):
        inside_N = cluster_N == number
        # The mean of a sparse matrix is a matrix of 1xV.
        scores_V = np.asarray(weights_NV[inside_N].mean(axis=0)).ravel()
        if not inside_N.all():
            scores_V = scores_V - np.asarray(weights_NV[~inside_N].mean(axis=0)).ravel()
        best = np.argsort(-scores_V, kind="stable")[:TERMS_A_NAME]
        names.append([terms[term] for term in best if scores_V[term] > 0])
    return names


def length_bins(lengths: Sequence[int]) -> tuple[list[str], list[int]]:
    """Names of up to six ranges of about as many lengths each, and the range of each length."""
    # A set: where many lengths are equal, quantiles fall together and there are fewer ranges.
    edges = sorted(set(np.quantile(lengths, np.arange(1, 7) / 6, method="higher").tolist()))
    starts = [min(lengths), *(edge + 1 for edge in edges[:-1])]
    names = [
        f"{low:,} to {high:,}" if low < high else f"{low:,}"
        for low, high in zip(starts, edges, strict=True)
    ]
    return names, np.searchsorted(edges, lengths).tolist()
