"""Answers with a verdict, good or bad, as KTO learns from them (Ethayarajh et al. 2024).

TRL and LLaMA-Factory give the verdict as "label" or "kto_tag", true or false, 1 or 0.
"""

from __future__ import annotations

from rayward.data.formats.readers.chat import Row, label_of, messages_of
from rayward.data.formats.readers.questions import prompt_and_completion
from rayward.data.formats.rows.fields import verdict_of
from rayward.data.formats.rows.meaning import VERDICT, no_place
from rayward.data.records import (
    Conversation,
    Labelled,
    Record,
    RowError,
    check_turns,
    describe,
    parts_of,
)


def kto(row: Row, repairs: list[str]) -> list[Record]:
    """{"messages", "label"}, or {"prompt", "completion", "label"} of text or turns."""
    if row.get("messages") is not None:
        turns = messages_of(row["messages"], "messages", repairs)
        check_turns(turns, "assistant", "messages")
    else:
        turns = prompt_and_completion(row, "completion", repairs)
    return [labelled(Conversation(turns, "kto", label_of(row, "id")), row.get("label"), "label")]


def labelled(record: Record, value: object, name: str) -> Labelled:
    """A conversation's last answer with its verdict. RowError: no verdict, or of another record."""
    verdict = verdict_of(value)
    if verdict is None:
        raise RowError(name, describe(value), "true or false", "no verdict on the answer")
    if not isinstance(record, Conversation):
        raise no_place(name, name, value, VERDICT)
    *turns, answer = record.turns
    # Its one answer is all that a labelled record teaches.
    if answer.role != "assistant" or answer.loss_weight != 1:
        found, expected = str(answer.weight), "1 or none: the verdict is on the whole answer"
        raise RowError("turns", found, expected, "loss weight beside a verdict")
    for field, found, what in parts_of([answer]):
        field = field.replace("turns[0]", f"turns[{len(turns)}]")
        raise RowError(field, found, "text alone", f"labelled answer with {what}")
    return Labelled(tuple(turns), answer.content, verdict, record.source, record.id, record.tools)
