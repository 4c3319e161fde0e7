"""Records to token rows, with every record that does not fit counted under the rule that dropped
it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rayward.configs.sections.training import Sft
from rayward.data.packing import epoch_order
from rayward.data.ragged import Ragged
from rayward.data.records import Conversation, Prompt, Ranking, RowError, Turn, describe, from_json
from rayward.data.segment import segments
from rayward.data.templates.template import Encoded, encode_all, truncate
from rayward.pipelines.rows import quality
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.run.stage import Run, read_jsonl


class LeftOut(Counter[str]):
    """Counts of what was left out by rule, and each one with what would keep it in."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, str]] = []

    def add(self, where: str, rule: str, found: str, expected: str) -> None:
        self[rule] += 1
        self.rows.append({"where": where, "reason": rule, "found": found, "expected": expected})


def set_aside(
    dropped: Counter[str], record: Conversation | Prompt | Ranking, error: RowError
) -> None:
    """Count a row that the chat template cannot render as it is trained, and list it where the
    counts are a LeftOut.
    """
    if not isinstance(dropped, LeftOut):
        dropped[error.reason] += 1
        return
    asked = next((turn.content for turn in record.turns if turn.role == "user"), "")
    where = f"{record.source or 'a row'} {record.id or describe(asked)}"
    dropped.add(where, error.reason, f"{error.field}: {error.found}", error.expected)


NO_ANSWER = "no answer token within the context"
FURTHER = "kept, further segments"
AT_ONCE = 256  # conversations in one call of the tokenizer
IN_PIECES = (
    "kept, encoded in pieces: a token would lie across the end of a prompt, or a text has "
    "special tokens"
)


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
        number = 0
        for part, all_of_it in parts:
            row = truncate(all_of_it, renderer.context_tokens) if all_of_it else None
            if all_of_it is None or row is None:
                continue
            dropped["kept, cut to the context"] += len(row.ids) < len(all_of_it.ids)
            dropped[IN_PIECES] += all_of_it.apart
            kept.append(part)
            rows.append(row)
            number += 1
        if not number:
            dropped[NO_ANSWER] += 1
        elif len(parts) > 1:
            dropped["kept, divided into segments"] += 1
            dropped[FURTHER] += number - 1
            dropped["kept, without segments that have " + NO_ANSWER] += number < len(parts)
    for rule in [rule for rule, count in dropped.items() if not count]:
        del dropped[rule]
    return kept, rows


def _encoded(
    records: Iterable[Conversation], renderer: Renderer, sft: Sft | None
) -> Iterator[tuple[Conversation, list[tuple[Conversation, Encoded | None]] | RowError]]:
    """Each record with its segments, or itself, and their whole rows, None where the weights of all
    turns are 0; or with why the chat template cannot render it. Many are encoded at once."""
    waiting = iter(records)
    while chunk := list(islice(waiting, AT_ONCE)):
        divided = [_divided(record, renderer, sft) for record in chunk]
        parts = [part for found in divided if not isinstance(found, RowError) for part in found]
        turns = [quality.weighed(sft.quality, part) if sft else part.turns for part in parts]
        weighs = [any(turn.loss_weight for turn in part_turns) for part_turns in turns]
        given = [
            (renderer.of_class(part, sft).template, part_turns)
            for part, part_turns, some_weight in zip(parts, turns, weighs, strict=True)
            if some_weight
        ]
        encoded = iter(encode_all(given, renderer.tokenizer))
        rows = iter([next(encoded) if some_weight else None for some_weight in weighs])
        for record, found in zip(chunk, divided, strict=True):
            if isinstance(found, RowError):
                yield record, found
                continue
            own = [(part, next(rows)) for part in found]
            yield record, next((row for _, row in own if isinstance(row, RowError)), own)


def _divided(
    record: Conversation, renderer: Renderer, sft: Sft | None
) -> list[Conversation] | RowError:
    """Its segments where `sft` asks for them, or itself; or why the chat template cannot render
    it.
    """
    try:
        segmented = sft and sft.long_conversations == "segment"
        return list(_segments(record, renderer.of_class(record, sft))) if segmented else [record]
    except RowError as error:
        return error


def _segments(record: Conversation, renderer: Renderer) -> Iterable[Conversation]:
    def fits(turns: Sequence[Turn]) -> bool:
        return len(renderer.conversation(turns).ids) <= renderer.context_tokens

    weightless = tuple(replace(turn, weight=None) for turn in record.turns)
    if fits(weightless):
        return [record]
    found = segments(weightless, fits)
    if len(found) == 1:
        return [record]
    name = record.id or record.source
    ends = [start for start, _ in found[1:]] + [len(record.turns)]
    system = record.turns[:1] if record.turns[0].role == "system" else ()
    return [
        replace(
            record,
            turns=(*(system if start else ()), *record.turns[start:end]),
            id=f"{name}_{start}",
        )
        for (start, _), end in zip(found, ends, strict=True)
    ]


def fit_rankings(
    records: Iterable[Ranking], renderer: Renderer, dropped: Counter[str]
) -> tuple[list[Ranking], list[list[Encoded]]]:
    """Rankings and the rows of their answers, weight 1 at the answer. What does not fit is left
    out; two must stay.
    """
    kept: list[Ranking] = []
    rows: list[list[Encoded]] = []
    limit = renderer.context_tokens
    for record in records:
        turns = [replace(turn, weight=0.0) for turn in record.turns]
        try:
            encoded = [
                renderer.scored((*turns, Turn("assistant", answer))) for answer in record.answers
            ]
        except RowError as error:
            set_aside(dropped, record, error)
            continue
        pick = [index for index, row in enumerate(encoded) if len(row.ids) <= limit]
        ranks = None if record.ranks is None else tuple(record.ranks[index] for index in pick)
        fault = ("", "")
        if len(pick) < 2:
            lengths = ", ".join(str(len(row.ids)) for row in encoded)
            fault = ("fewer than two answers fit the context", f"conversations of {lengths} tokens")
        elif ranks is not None and len(set(ranks)) == 1:
            fault = ("all answers that fit are tied", f"{len(pick)} answers of rank {ranks[0]:g}")
        if fault[0]:
            if isinstance(dropped, LeftOut):
                expected = (
                    f"two answers of different rank, each at most {limit} tokens with its prompt"
                )
                dropped.add(record.id or record.source or "a ranking", *fault, expected)
            else:
                dropped[fault[0]] += 1
            continue
        if len(pick) < len(encoded):
            dropped["kept, without answers longer than the context"] += 1
        if any(encoded[index].apart for index in pick):
            dropped[IN_PIECES] += 1
        kept.append(
            replace(record, answers=tuple(record.answers[index] for index in pick), ranks=ranks)
        )
        rows.append([encoded[index] for index in pick])
    return kept, rows


def fit_prompts(
    records: Iterable[Prompt], renderer: Renderer, max_new_tokens: int, dropped: Counter[str]
) -> tuple[list[Prompt], Ragged]:
    """Distinct prompts that leave room for an answer, with their rows.

    One is left out where the template would refuse the conversation that an answer makes of it.
    """
    kept: list[Prompt] = []
    rows: list[list[int]] = []
    seen: set[str] = set()
    for record in records:
        key = prompt_key(record.turns)
        try:
            row = renderer.asked(record.turns)
        except RowError as error:
            set_aside(dropped, record, error)
            continue
        if key in seen:
            dropped["duplicate prompt"] += 1
        elif len(row.ids) + max_new_tokens > renderer.context_tokens:
            dropped["prompt leaves no room for an answer"] += 1
        else:
            seen.add(key)
            dropped.update([IN_PIECES] * row.apart)
            kept.append(record)
            rows.append(row.ids)
    return kept, Ragged.of(rows)


def prompt_key(turns: Sequence[Turn]) -> str:
    """The text that makes two prompts the same."""
    return "\x00".join(f"{turn.role}\x01{turn.content.strip()}" for turn in turns)


def sft_rows(encoded: Sequence[Encoded]) -> tuple[Ragged, Ragged]:
    """(ids, loss weights) of encoded conversations."""
    return Ragged.of([row.ids for row in encoded]), Ragged.of(
        [row.weights for row in encoded], np.float32
    )


def some(records: Sequence[Any], count: int, seed: int) -> list[Any]:
    """At most `count` of the records, drawn by the seed, in their order: files are often sorted by
    kind.
    """
    return [records[row] for row in sorted(epoch_order(len(records), seed, 0)[:count])]


def load_records(path: Path) -> list[Any]:
    """Records of a file that the prepare stage wrote."""
    return [from_json(row) for row in read_jsonl(path)]


def prepared(run: Run, name: str) -> list[Any]:
    """The records that the run's prepare stage left in `name`.jsonl."""
    return load_records(run.folder / "prepare" / f"{name}.jsonl")
