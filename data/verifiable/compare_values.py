"""Run by `maths.py` as a script: for each line [gold, answer] whether they have the same value.

It prints 1.0, 0.0, or null where gold has none. The limit of memory is for expressions that grow.
"""

import json
import os
import resource
import sys

MEMORY_BYTES = 4 << 30


def score(gold: str, answer: str) -> float | None:
    """Whether they have one value; None where `gold` has none."""
    from math_verify import parse, verify

    # Its own limits work by signals, and are coarser than those of the process that asks.
    wanted = parse(gold, parsing_timeout=None) or parse(f"${gold}$", parsing_timeout=None)
    if not wanted:
        return None
    try:
        found = parse(answer, parsing_timeout=None)
        return float(bool(found) and verify(wanted, found, timeout_seconds=None))
    except Exception:  # whatever an expression makes of a library, memory that is out too
        return 0.0


def main() -> None:
    """Answer until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no score
    score("1", "1")  # imports
    print('"ready"', file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(score(*json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
