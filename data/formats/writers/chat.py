"""Conversations and prompts as rows of chat formats, and what all writers share.

One function a format, `(record, repairs) -> rows`; see data/formats/writers/table.py.
"""

from __future__ import annotations

import hashlib
from typing import Any

from rayward.data.formats.rows.fields import decoded
from rayward.data.formats.rows.message_parts import message, tools_row
from rayward.data.formats.rows.turns import in_other_frame, is_framed
from rayward.data.record_json import to_json
from rayward.data.records import Conversation, Labelled, Prompt, Record, RowError, Turn, describe
from rayward.data.templates.table import INPUT


def kept(**fields: Any) -> dict[str, Any]:
    """The fields that have a value."""
    return {name: value for name, value in fields.items() if value not in (None, "")}


def plain(turns: tuple[Turn, ...]) -> None:
    """RowError: a turn whose loss weight is not that of its role, and so needs a field."""
    for index, turn in enumerate(turns):
        # A weight that is given and is the role's own is no loss: a reader gets the same.
        if turn.loss_weight != Turn(turn.role, "").loss_weight:
            field, weight = f"turns[{index}].weight", str(turn.weight)
            raise RowError(field, weight, "no weight of its own", "loss weight of a turn")


def plain_pairs(turns: tuple[Turn, ...]) -> None:
    """RowError: a system turn, or weights as in `plain`."""
    if turns[0].role == "system":
        raise RowError("turns[0].role", "system", "no system turn", "system turn")
    plain(turns)


def one_question(turns: tuple[Turn, ...]) -> str:
    """The text of the only user turn. RowError: a system turn, or more turns, or weights."""
    plain_pairs(turns)
    if len([turn for turn in turns if turn.role == "user"]) > 1:
        raise RowError("turns", f"{len(turns)} turns", "one question", "several turns")
    return turns[0].content


def plain_text(text: str, field: str) -> str:
    """Text where a reader also takes turns. RowError: text that it would take for such."""
    # Read as a field of turns: JSON is decoded, and what only begins so is refused there.
    framed = is_framed(text) or in_other_frame(text)
    if framed or decoded({field: text}, {field: {"role": {}}})[field] != text:
        raise RowError(field, describe(text), "text that is not turns", "text contains the frame")
    return text


def label_in_source(record: Record, name: str) -> str:
    """What the reader of a format put after its name in `source`; another source as it is."""
    return "" if record.source == name else record.source.removeprefix(f"{name}/")


# ---- formats


def rayward(record: Record, repairs: list[str]) -> list[dict[str, Any]]:
    return [to_json(record)]


def sharegpt(record: Conversation, repairs: list[str]) -> list[dict[str, Any]]:
    plain(record.turns)
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    turns = [{"from": names[turn.role], "value": turn.content} for turn in record.turns]
    return [kept(id=record.id, model=record.quality) | {"conversations": turns}]


def alpaca(record: Conversation, repairs: list[str]) -> list[dict[str, Any]]:
    """A question is split at `INPUT` where both parts say something."""
    question = one_question(record.turns)
    instruction, _, context = question.partition(INPUT)
    # The reader joins the parts again, and refuses a blank instruction or drops a blank input.
    if not instruction.strip() or not context.strip():
        instruction, context = question, ""
    return [
        kept(id=record.id)
        | {"instruction": instruction, "input": context, "output": record.turns[1].content}
    ]


def ultrachat(record: Conversation, repairs: list[str]) -> list[dict[str, Any]]:
    plain_pairs(record.turns)
    return [kept(id=record.id) | {"data": [turn.content for turn in record.turns]}]


def crlft(record: Conversation, repairs: list[str]) -> list[dict[str, Any]]:
    """Weights are written out, since OpenChat's trainer wants one at every turn."""
    system, *turns = record.turns
    if system.role != "system":
        system, turns = Turn("system", ""), list(record.turns)
    plain((system,))  # the only turn without a place for a weight
    items = [
        {"role": turn.role, "content": turn.content, "weight": turn.loss_weight} for turn in turns
    ]
    return [
        kept(id=record.id)
        | {"items": items, "condition": record.quality or "", "system": system.content}
    ]


def alpaca_eval(record: Conversation | Prompt, repairs: list[str]) -> list[dict[str, Any]]:
    question = one_question(record.turns)
    if isinstance(record, Prompt):
        return [kept(id=record.id, instruction=question)]
    answer = record.turns[1].content
    return [kept(id=record.id, instruction=question, output=answer, generator=record.quality)]


def kto(record: Labelled, repairs: list[str]) -> list[dict[str, Any]]:
    """As TRL's KTO trainer takes it."""
    answer = [message(Turn("assistant", record.answer))]
    row = {"prompt": [message(turn) for turn in record.turns], "completion": answer}
    return [kept(id=record.id) | row | {"label": record.good} | tools_row(record.tools)]


def _question_id(record: Record) -> int:
    # "007" would come back as "7". An int64, which parquet has, holds every number of 18 digits.
    if not record.id.isdecimal() or len(record.id) > 18 or str(int(record.id)) != record.id:
        raise RowError("id", describe(record.id), "a whole number", "id is not a whole number")
    return int(record.id)


def mt_bench_questions(record: Prompt, repairs: list[str]) -> list[dict[str, Any]]:
    """`source` "mt_bench/CATEGORY" gives the category; another source is its own."""
    question = one_question(record.turns)
    if record.reference is not None and record.follow_ups:
        found, expected = "one of several questions", "one question, or no reference"
        raise RowError("reference", found, expected, "reference to one of several questions")
    category = label_in_source(record, "mt_bench") or "general"
    return [
        {
            "question_id": _question_id(record),
            "category": category,
            "turns": [question, *record.follow_ups],
        }
        | ({} if record.reference is None else {"reference": [record.reference]})
    ]


def mt_bench_answers(record: Conversation, repairs: list[str]) -> list[dict[str, Any]]:
    """The questions stay behind: readers take them from the question file."""
    plain_pairs(record.turns)
    answers = [turn.content for turn in record.turns if turn.role == "assistant"]
    if record.quality is None:
        raise RowError("quality", "nothing", "the name of the model", "no model name")
    repairs.append("left out questions, which are in the question file")
    # FastChat draws ids of 22 characters and stamps the time. A hash and 0 make equal records equal
    # rows.
    text = "\0".join((record.quality, record.id, *answers))
    answer_id = hashlib.sha256(text.encode()).hexdigest()[:22]
    choices = [{"index": 0, "turns": answers}]
    number = _question_id(record)
    return [
        {
            "question_id": number,
            "answer_id": answer_id,
            "model_id": record.quality,
            "choices": choices,
            "tstamp": 0.0,
        }
    ]
