"""Long dialogues in segments of whole (user, assistant) pairs, as UltraLM was trained on them.

Greedy, as UltraChat's `data/split_long.py`: a segment takes pairs until the next does not fit.
Departures: the last pair is never lost, which happens there where it opens a segment; a pair too
long for any segment is a segment alone, to be cut by whoever encodes it, and leaves no empty one
before it; lengths are exact, not estimated. A system message stands before every segment, so that
each is answered as the whole was. Where an answer calls tools, a pair is all from one turn of the
user to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rayward.data.records import Turn, check_turns


def bounds(num_pairs: int, fits: Callable[[int, int], bool]) -> list[tuple[int, int]]:
    """Ranges [start, end) that cover 0 to `num_pairs` in order, as long as `fits` allows, or 1.

    `fits(start, end)`: what does not fit does not fit when longer, so that a search by doubling and
    halving finds the end.
    """
    ranges: list[tuple[int, int]] = []
    start = 0
    while start < num_pairs:
        # `fits` encodes the turns, which is dear: a search asks it log times, not once for each
        # pair. The first pair is not asked about, as a segment has one at least.
        end, step = start + 1, 1
        while end + step <= num_pairs and fits(start, end + step):
            end, step = end + step, 2 * step
        # The end is now less than `step` pairs away; halving the step closes in on it.
        while step := step // 2:
            if end + step <= num_pairs and fits(start, end + step):
                end += step
        ranges.append((start, end))
        start = end
    return ranges


def segments(
    turns: Sequence[Turn], fits: Callable[[Sequence[Turn]], bool]
) -> list[tuple[int, tuple[Turn, ...]]]:
    """(position of the first turn, turns) of each segment. `fits`: whether turns are short enough.

    RowError unless the turns are a conversation that ends with the assistant.
    """
    check_turns(turns, last="assistant")
    first = 1 if turns[0].role == "system" else 0
    system, dialogue = tuple(turns[:first]), tuple(turns[first:])

    # Where each pair begins, and where the last ends.
    edges = [place for place, turn in enumerate(dialogue) if turn.role == "user"]
    edges.append(len(dialogue))

    def segment(start: int, end: int) -> tuple[Turn, ...]:
        return (*system, *dialogue[edges[start] : edges[end]])

    ranges = bounds(len(edges) - 1, lambda start, end: fits(segment(start, end)))
    # The first segment begins at turn 0, even where that is the system turn, which all repeat.
    return [(first + edges[start] if start else 0, segment(start, end)) for start, end in ranges]
