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
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasketch import MinHash

PERMUTATIONS = 128
# The hash functions. Signatures are only comparable if they are made with the same ones.
SCHEME = "affine32"
SEED = 1
RECALL = 0.999  # the probability that a pair at the threshold is compared at all
WORDS = 5
# Scripts without spaces between words count by the letter.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0eff]|[^\W_]+")


def content_hash(items: Sequence[tuple[str, str]]) -> str:
    """SHA-256, in hex, of [[speaker, text], ...] as JSON: the same in every process."""
    # JSON keeps the messages apart: joined texts would be equal where only the borders differ.
    return hashlib.sha256(json.dumps(items).encode()).hexdigest()


def signature(items: Sequence[tuple[str, str]]) -> bytes:
    """MinHash of the conversation's runs of WORDS words: PERMUTATIONS 32-bit numbers."""
    from datasketch import MinHash

    text = "\n".join(text for _, text in items).lower()
    words = WORD.findall(text) or list(text)  # of signs alone, each counts
    # A text of fewer than WORDS words is one run, and not an empty set, which would equal all
    # other empty ones.
    num_runs = max(1, len(words) - WORDS + 1)
    runs = {" ".join(words[start : start + WORDS]) for start in range(num_runs)}
    minhash = MinHash(PERMUTATIONS, SEED, scheme=SCHEME)
    minhash.update_batch([run.encode() for run in sorted(runs)])
    # Bytes travel between processes; the byte order is fixed, whatever the machine's.
    return minhash.hashvalues.astype("<u4").tobytes()


def bands(threshold: float) -> tuple[int, int]:
    """(number, size) of the bands of a signature of which a pair must share one to be compared.

    The largest size under which a pair as similar as `threshold` is compared with probability
    RECALL or more; a pair that is less similar costs one comparison. Below a threshold of 0.06 no
    size does, and the most bands are taken.
    """
    # datasketch's own choice weighs missed pairs against needless comparisons. Here a miss is
    # worse: it leaves a duplicate in, while a comparison only takes time.
    for size in range(PERMUTATIONS // 2, 1, -1):
        number = PERMUTATIONS // size
        # A pair agrees in a place with probability `threshold`, so in a band with threshold**size.
        if 1 - (1 - threshold**size) ** number >= RECALL:
            return number, size
    return PERMUTATIONS, 1


class NearDuplicates:
    """The conversations kept so far, of which no two are as similar as `threshold`.

    Each takes about 10 kB of memory.
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
        self.kept: dict[str, MinHash] = {}

    def find_or_add(self, name: str, signature: bytes) -> tuple[str, float] | None:
        """Name and similarity of the most similar one that is kept. If there is none, keep this."""
        from datasketch import MinHash

        values = np.frombuffer(signature, "<u4").astype(np.uint32)
        minhash = MinHash(hashvalues=values, seed=SEED, scheme=SCHEME)
        # Candidates share a band with this one; many are less similar than the threshold.
        candidates = self.index.query(minhash)
        pairs = [(minhash.jaccard(self.kept[other]), other) for other in candidates]
        near = [pair for pair in pairs if pair[0] >= self.threshold]
        if near:
            # The index gives them in no order, so their names settle ties.
            similarity, other = min(near, key=lambda pair: (-pair[0], pair[1]))
            return other, similarity
        # A conversation that is refused is not kept: later ones are compared with what stays alone.
        self.index.insert(name, minhash)
        self.kept[name] = minhash
        return None
