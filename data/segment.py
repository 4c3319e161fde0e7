"""Long dialogues in segments of whole (user, assistant) pairs, as UltraLM was trained on them.

Greedy, as UltraChat's `data/split_long.py`: a segment takes pairs until the next does not fit.
Departures: the last pair is never lost, which happens there where it opens a segment; a pair too
long for any segment is a segment alone, to be cut by whoever encodes it, and leaves no empty one
before it; lengths are exact, not estimated. A system message stands before every segment, so that
each is answered as the whole was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rayward.data.records import Turn, check_turns


def bounds(num_pairs: int, fits: Callable[[int, int], bool]) -> list[tuple[int, int]]:
    """Ranges [start, end) that cover 0 to `num_pairs` in order, each as long as `fits(start, end)`
    allows, or 1.

    What does not fit does not fit when longer, so that a search by doubling and halving finds the
    end.
    """
    found: list[tuple[int, int]] = []
    start = 0
    while start < num_pairs:
        end, step = start + 1, 1
        while end + step <= num_pairs and fits(start, end + step):
            end, step = end + step, 2 * step
        while step := step // 2:
            if end + step <= num_pairs and fits(start, end + step):
                end += step
        found.append((start, end))
        start = end
    return found


def segments(
    turns: Sequence[Turn], fits: Callable[[Sequence[Turn]], bool]
) -> list[tuple[int, tuple[Turn, ...]]]:
    """(position of the first turn, turns) of each segment. `fits` tells whether turns are short
    enough.

    RowError unless the turns are a conversation that ends with the assistant.
    """
    check_turns(turns, last="assistant")
    first = 1 if turns[0].role == "system" else 0
    system, said = tuple(turns[:first]), tuple(turns[first:])

    def cut(start: int, end: int) -> tuple[Turn, ...]:
        return (*system, *said[2 * start : 2 * end])

    found = bounds(len(said) // 2, lambda start, end: fits(cut(start, end)))
    return [(first + 2 * start if start else 0, cut(start, end)) for start, end in found]
