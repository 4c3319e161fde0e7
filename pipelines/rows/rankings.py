"""Rankings to the rows of their answers, as a reward model reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from rayward.data.records import Ranking, RowError, Turn
from rayward.data.templates.template import Encoded
from rayward.pipelines.rows.left_out import IN_PIECES, LeftOut, set_aside
from rayward.pipelines.rows.renderer import Renderer


def fit_rankings(
    records: Iterable[Ranking], renderer: Renderer, dropped: Counter[str]
) -> tuple[list[Ranking], list[list[Encoded]]]:
    """Rankings and the rows of their answers, weight 1 at the answer.

    An answer that does not fit is left out, and a ranking of fewer than two that differ.
    """
    kept: list[Ranking] = []
    rows: list[list[Encoded]] = []
    limit = renderer.context_tokens
    for record in records:
        # Earlier answers of the conversation are part of the prompt: only the ranked one counts.
        turns = [replace(turn, weight=0.0) for turn in record.turns]
        try:
            encoded = [
                renderer.scored((*turns, Turn("assistant", answer)), tools=record.tools)
                for answer in record.answers
            ]
        except RowError as error:
            set_aside(dropped, record, error)
            continue
        # Not cut, as conversations are: a score is that of the last token, the end of the answer.
        pick = [index for index, row in enumerate(encoded) if len(row.ids) <= limit]
        ranks = None if record.ranks is None else tuple(record.ranks[index] for index in pick)
        rule, found = "", ""
        if len(pick) < 2:
            lengths = ", ".join(str(len(row.ids)) for row in encoded)
            rule = "fewer than two answers fit the context"
            found = f"conversations of {lengths} tokens"
        elif ranks is not None and len(set(ranks)) == 1:
            # No pair of them has a better answer: there is nothing to learn.
            rule = "all answers that fit are tied"
            found = f"{len(pick)} answers of rank {ranks[0]:g}"
        if rule:
            if isinstance(dropped, LeftOut):
                expected = (
                    f"two answers of different rank, each at most {limit} tokens with its prompt"
                )
                where = record.id or record.source or "a ranking"
                dropped.add(where, rule, found, expected, **dropped.places.of(record))
            else:
                dropped[rule] += 1
            continue
        if len(pick) < len(encoded):
            dropped["kept, without answers longer than the context"] += 1
        if any(encoded[index].apart for index in pick):
            dropped[IN_PIECES] += 1
        answers = tuple(record.answers[index] for index in pick)
        kept.append(replace(record, answers=answers, ranks=ranks))
        rows.append([encoded[index] for index in pick])
    return kept, rows
