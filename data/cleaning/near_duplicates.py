"""Conversations that are the same, by a hash of their text, or nearly the same, by MinHash.

The key of equality is SHA-256 of the messages as JSON. OpenChat took Python's hash() of a string,
which differs from process to process, so that equal pages in different workers were not always seen
to be equal.

Nearness is the Jaccard similarity of the sets of runs of WORDS words, estimated by MinHash (Broder
1997) and looked up by locality-sensitive hashing, both of datasketch. The standard error of an
estimate is at most 0.5 / sqrt(128).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

PERMUTATIONS = 128
SCHEME = "affine32"
SEED = 1
FOUND = 0.999
WORDS = 5
# Scripts without spaces between words count by the letter.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0eff]|[^\W_]+")


def content_hash(items: Sequence[tuple[str, str]]) -> str:
    """SHA-256, in hex, of [[speaker, text], ...] as JSON: the same in every process and on every
    machine.
    """
    return hashlib.sha256(json.dumps(items).encode()).hexdigest()


def signature(items: Sequence[tuple[str, str]]) -> bytes:
    """MinHash of the conversation's runs of WORDS words: PERMUTATIONS 32-bit numbers."""
    from datasketch import MinHash

    text = "\n".join(text for _, text in items).lower()
    words = WORD.findall(text) or list(text)  # of signs alone, each counts
    runs = {" ".join(words[at : at + WORDS]) for at in range(max(1, len(words) - WORDS + 1))}
    made = MinHash(PERMUTATIONS, SEED, scheme=SCHEME)
    made.update_batch([run.encode() for run in sorted(runs)])
    return made.hashvalues.astype("<u4").tobytes()


def bands(threshold: float) -> tuple[int, int]:
    """(number, size) of the bands of a signature of which a pair must share one to be compared.

    The largest size under which a pair as similar as `threshold` is compared with probability FOUND
    or more; a pair that is less similar costs one comparison. Below a threshold of 0.06 no size
    does, and the most bands are taken.
    """
    for size in range(PERMUTATIONS // 2, 1, -1):
        number = PERMUTATIONS // size
        if 1 - (1 - threshold**size) ** number >= FOUND:
            return number, size
    return PERMUTATIONS, 1


class NearDuplicates:
    """The conversations kept so far, of which no two are as similar as `threshold`: about 10 kB of
    memory each.
    """

    def __init__(self, threshold: float) -> None:
        """ValueError unless 0 < threshold < 1."""
        from datasketch import MinHashLSH

        if not 0 < threshold < 1:
            raise ValueError(
                f"a similarity of {threshold:g} is no threshold; give one between 0 and 1, such "
                "as 0.8"
            )
        self.threshold = threshold
        self.index = MinHashLSH(threshold, PERMUTATIONS, params=bands(threshold))
        self.kept: dict[str, Any] = {}

    def find_or_add(self, name: str, bytes_: bytes) -> tuple[str, float] | None:
        """Name and similarity of the most similar one that is kept; where there is none, keep this
        one.
        """
        from datasketch import MinHash

        made = MinHash(
            hashvalues=np.frombuffer(bytes_, "<u4").astype(np.uint32), seed=SEED, scheme=SCHEME
        )
        near = [(made.jaccard(self.kept[other]), other) for other in self.index.query(made)]
        near = [(similarity, other) for similarity, other in near if similarity >= self.threshold]
        if near:
            similarity, other = min(near, key=lambda pair: (-pair[0], pair[1]))
            return other, similarity
        self.index.insert(name, made)
        self.kept[name] = made
        return None
