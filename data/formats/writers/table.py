"""Records as rows of the formats people use, and the table of what each format can hold.

The inverse of the readers (readers/chat.py and so on), with the same field names. What a format
cannot express is never changed in silence. Texts, roles, order, ties, loss weights, margins,
verdicts, references, follow-up questions, tools, their calls and results and reasoning are kept, or
the record is refused with a RowError. What a reader of the format would not see again (white space
around framed turns, an id or label without a field) is left out and named in `repairs`; only
`source`, which every reader gives anew, is left out unnamed where there is no field for it.

A ranking becomes pairs in the formats of pairs: one row for every two answers of different rank,
best first. All other records become one row. UltraFeedback has no writer: its rows are made of
ratings of aspects by a judge, which ranks cannot give.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rayward.data.formats.files.outputs import Column
from rayward.data.formats.writers import chat, ranked
from rayward.data.records import (
    Conversation,
    Labelled,
    Preference,
    Prompt,
    Ranking,
    Record,
    RowError,
    describe,
    parts_of,
)

LABELS = ("id", "quality")
"""What a record may say of where it comes from; left out and named where there is no field."""
MEANT = ("margin", "reference", "follow_ups")
"""What a record may say beside its turns for training and measuring; refused without a field."""

WITH_PARTS = ("rayward", "openai", "kto")
"""Formats whose turns hold calls of tools, results and reasoning, and whose rows hold tools."""

# Each takes the kinds of its entry in WRITERS only, which `Writer.rows` checks.
Write = Callable[[Any, list[str]], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Writer:
    """How records of some kinds are written.

    `labels`: those of LABELS and MEANT that have a field. `columns`: the fields of a row,
    which are the columns of a parquet file.
    """

    name: str
    kinds: tuple[type[Record], ...]
    labels: frozenset[str]
    columns: dict[str, Column]
    write: Write

    def rows(self, record: Record, repairs: list[str]) -> list[dict[str, Any]]:
        """The rows of a record; at least one. RowError if the format cannot express it."""
        if not isinstance(record, self.kinds):
            expected = " or ".join(kind.__name__.lower() for kind in self.kinds)
            kind = type(record).__name__.lower()
            raise RowError("record", kind, expected, f"{self.name} has no place for its kind")
        for field in MEANT:
            value = getattr(record, field, None)
            if value not in (None, ()) and field not in self.labels:
                reason = f"{self.name} has no place for its {field.replace('_', '-')}"
                raise RowError(field, describe(value), f"no {field}", reason)
        if self.name not in WITH_PARTS:
            for field, found, what in parts_of(record.turns, record.tools):
                raise RowError(field, found, "none", f"{self.name} has no place for {what}")
        rows = self.write(record, repairs)
        # After the writer, so that a record which is refused names nothing.
        for label in LABELS:
            if getattr(record, label, None) not in (None, "") and label not in self.labels:
                repairs.append(f"left out {label}")
        return rows


# A parquet file has the columns of an entry and no others: a field that a writer gives and the
# entry lacks is lost there without an error.
TEXTS: dict[str, Column] = {"role": "text", "content": "text", "weight": "number"}
RESULT: dict[str, Column] = {"tool_call_id": "text", "name": "text"}
MESSAGES: Column = [TEXTS]
OUR_CALL: Column = {"name": "text", "arguments": "text", "id": "text"}
TURNS: Column = [{**TEXTS, "reasoning": "text", "tool_calls": [OUR_CALL], **RESULT}]
CALL: Column = {"id": "text", "type": "text", "function": {"name": "text", "arguments": "text"}}
OPENAI_MESSAGES: Column = [{**TEXTS, "reasoning_content": "text", "tool_calls": [CALL], **RESULT}]
ANSWER: Column = [{"role": "text", "content": "text"}]


def _writer(
    write: Write, kinds: tuple[type[Record], ...], labels: str, **columns: Column
) -> Writer:
    return Writer(write.__name__, kinds, frozenset(labels.split()), columns, write)


WRITERS: dict[str, Writer] = {
    writer.name: writer
    for writer in (
        _writer(
            chat.rayward,
            (Conversation, Prompt, Ranking, Preference, Labelled),
            "id quality margin reference follow_ups",
            kind="text",
            turns=TURNS,
            source="text",
            id="text",
            quality="text",
            follow_ups=["text"],
            reference="text",
            answers=["text"],
            ranks=["number"],
            chosen="text",
            rejected="text",
            margin="number",
            answer="text",
            good="boolean",
            tools="text",
        ),
        _writer(
            chat.sharegpt,
            (Conversation,),
            "id quality",
            id="text",
            model="text",
            conversations=[{"from": "text", "value": "text"}],
        ),
        _writer(
            chat.alpaca,
            (Conversation,),
            "id",
            id="text",
            instruction="text",
            input="text",
            output="text",
        ),
        _writer(chat.ultrachat, (Conversation,), "id", id="text", data=["text"]),
        _writer(
            chat.crlft,
            (Conversation,),
            "id quality",
            id="text",
            items=MESSAGES,
            condition="text",
            system="text",
        ),
        _writer(
            chat.alpaca_eval,
            (Conversation, Prompt),
            "id quality",
            id="text",
            instruction="text",
            output="text",
            generator="text",
        ),
        _writer(
            ranked.openai,
            (Conversation, Prompt, Preference, Ranking),
            "id margin reference",
            id="text",
            messages=OPENAI_MESSAGES,
            ground_truth="text",
            margin="number",
            prompt=OPENAI_MESSAGES,
            chosen=ANSWER,
            rejected=ANSWER,
            tools="json",
        ),
        _writer(
            chat.kto,
            (Labelled,),
            "id",
            id="text",
            prompt=OPENAI_MESSAGES,
            completion=ANSWER,
            label="boolean",
            tools="json",
        ),
        _writer(
            ranked.hh_rlhf, (Preference, Ranking), "id", id="text", chosen="text", rejected="text"
        ),
        _writer(
            ranked.nectar,
            (Preference, Ranking),
            "id margin",  # as the distance of ranks
            id="text",
            source=["text"],
            prompt="text",
            answers=[{"answer": "text", "rank": "number"}],
            turns="integer",
            num_responses="integer",
        ),
        _writer(
            ranked.rewardbench,
            (Preference, Ranking),
            "id",
            id="text",
            prompt="text",
            chosen="text",
            rejected="text",
            subset="text",
        ),
        _writer(
            chat.mt_bench_questions,
            (Prompt,),
            "id reference follow_ups",
            question_id="integer",
            category="text",
            turns=["text"],
            reference=["text"],
        ),
        _writer(
            chat.mt_bench_answers,
            (Conversation,),
            "id quality",
            question_id="integer",
            answer_id="text",
            model_id="text",
            choices=[{"index": "integer", "turns": ["text"]}],
            tstamp="number",
        ),
    )
}
