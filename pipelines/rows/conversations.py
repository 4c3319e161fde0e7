"""Conversations to token rows with loss weights, in the words of their class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from rayward.configs.sections.training import Sft
from rayward.data.ragged import Ragged
from rayward.data.records import Conversation, RowError, Turn
from rayward.data.segment import segments
from rayward.data.templates.template import Encoded, encode_all, truncate
from rayward.pipelines.rows import quality
from rayward.pipelines.rows.left_out import FURTHER, IN_PIECES, NO_ANSWER, set_aside
from rayward.pipelines.rows.renderer import Renderer

RECORDS_PER_CALL = 256
"""Conversations in one call of the tokenizer, which spreads them over the cores."""


def fit_conversations(
    records: Iterable[Conversation],
    renderer: Renderer,
    dropped: Counter[str],
    sft: Sft | None = None,
) -> tuple[list[Conversation], list[Encoded]]:
    """Conversations with their rows, in the words and weights of their class and in segments where
    `sft` says so.

    Long ones are cut (counted as "cut to the context", and kept). Segments are records of their
    own: of a divided conversation, all but the first that is kept count as FURTHER, so that records
    in = kept - FURTHER + dropped. What the chat template cannot render is left out.
    """
    kept: list[Conversation] = []
    rows: list[Encoded] = []
    for record, parts in _encoded(records, renderer, sft):
        if isinstance(parts, RowError):
            set_aside(dropped, record, parts)
            continue
        parts_kept = 0
        for part, whole in parts:
            # None: all its turns have weight 0, or all of its trained tokens lie beyond the cut.
            row = truncate(whole, renderer.context_tokens) if whole else None
            if whole is None or row is None:
                continue
            dropped["kept, cut to the context"] += len(row.ids) < len(whole.ids)
            dropped[IN_PIECES] += whole.apart
            kept.append(part)
            rows.append(row)
            parts_kept += 1
        if not parts_kept:
            dropped[NO_ANSWER] += 1
        elif len(parts) > 1:
            dropped["kept, divided into segments"] += 1
            dropped[FURTHER] += parts_kept - 1
            dropped["kept, without segments that have " + NO_ANSWER] += parts_kept < len(parts)
    # Adding False made entries of 0: a report shows only what happened.
    for rule in [rule for rule, count in dropped.items() if not count]:
        del dropped[rule]
    return kept, rows


def sft_rows(encoded: Sequence[Encoded]) -> tuple[Ragged, Ragged]:
    """(ids, loss weights) of encoded conversations."""
    ids = Ragged.of([row.ids for row in encoded])
    return ids, Ragged.of([row.weights for row in encoded], np.float32)


def _encoded(
    records: Iterable[Conversation], renderer: Renderer, sft: Sft | None
) -> Iterator[tuple[Conversation, list[tuple[Conversation, Encoded | None]] | RowError]]:
    """Each record with its segments, or itself, and their whole rows.

    A row is None where the weights of all turns are 0. In place of the list stands why the chat
    template cannot render the record. Many are encoded at once.
    """
    waiting = iter(records)
    while chunk := list(islice(waiting, RECORDS_PER_CALL)):
        divided = [_divided(record, renderer, sft) for record in chunk]
        parts = [part for pieces in divided if not isinstance(pieces, RowError) for part in pieces]
        turns = [quality.weighed(sft.quality, part) if sft else part.turns for part in parts]
        # The encoder refuses a conversation without a token of weight, so those do not go in.
        is_trained = [any(turn.loss_weight for turn in part_turns) for part_turns in turns]
        rendered = [
            (renderer.of_class(part, sft).template, part_turns)
            for part, part_turns, trained in zip(parts, turns, is_trained, strict=True)
            if trained
        ]
        tools = [part.tools for part, trained in zip(parts, is_trained, strict=True) if trained]
        encoded = iter(encode_all(rendered, renderer.tokenizer, tools))
        # In the order of `parts` again, each with its row or None.
        rows = iter([next(encoded) if trained else None for trained in is_trained])
        for record, pieces in zip(chunk, divided, strict=True):
            if isinstance(pieces, RowError):
                yield record, pieces
                continue
            pairs: list[tuple[Conversation, Encoded | None]] = []
            error: RowError | None = None
            for part in pieces:
                row = next(rows)
                if isinstance(row, RowError):
                    error = error or row
                else:
                    pairs.append((part, row))
            # One segment that cannot be rendered takes the record out: it is counted once.
            yield record, pairs if error is None else error


def _divided(
    record: Conversation, renderer: Renderer, sft: Sft | None
) -> list[Conversation] | RowError:
    """Its segments where `sft` asks for them, or itself; or why it cannot be rendered."""
    if sft is None or sft.long_conversations != "segment":
        return [record]
    try:
        # Measured in the words of its class, which it is trained in.
        return _segments(record, renderer.of_class(record, sft))
    except RowError as error:
        return error


def _segments(record: Conversation, renderer: Renderer) -> list[Conversation]:
    def fits(turns: Sequence[Turn]) -> bool:
        return len(renderer.conversation(turns, record.tools).ids) <= renderer.context_tokens

    # To be measured only: a stretch of turns of weight 0 could not be encoded.
    weightless = tuple(replace(turn, weight=None) for turn in record.turns)
    if fits(weightless):
        return [record]
    pieces = segments(weightless, fits)
    if len(pieces) == 1:
        return [record]
    name = record.id or record.source
    # (position of the first turn, turns) of each. The turns are taken from the record, whose
    # weights count; they end where the next segment starts.
    ends = [start for start, _ in pieces[1:]] + [len(record.turns)]
    system = record.turns[:1] if record.turns[0].role == "system" else ()
    return [
        replace(
            record,
            # The first segment starts at turn 0 and holds the system message already.
            turns=(*(system if start else ()), *record.turns[start:end]),
            id=f"{name}_{start}",
        )
        for (start, _), end in zip(pieces, ends, strict=True)
    ]
