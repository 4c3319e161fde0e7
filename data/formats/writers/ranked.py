"""Rankings and preferences as rows of formats with several answers, and OpenAI's files.

One function a format, `(record, repairs) -> rows`; see data/formats/writers/table.py.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

from rayward.data.formats.rows.message_parts import message, tools_row
from rayward.data.formats.writers.chat import (
    kept,
    label_in_source,
    one_question,
    plain_pairs,
    plain_text,
)
from rayward.data.records import Conversation, Preference, Prompt, Ranking, RowError, Turn


def _pairs(record: Preference | Ranking) -> list[tuple[str, str]]:
    """(chosen, rejected) of every two answers of different rank. RowError if all are tied."""
    if isinstance(record, Preference):
        return [(record.chosen, record.rejected)]
    ranks = record.ranks or range(len(record.answers))
    # `combinations` keeps the order, which is best first; of tied answers neither is chosen.
    pairs = [
        (better, worse)
        for (rank, better), (other_rank, worse) in combinations(
            zip(ranks, record.answers, strict=True), 2
        )
        if rank < other_rank
    ]
    if not pairs:
        raise RowError("ranks", "one rank for all", "different ranks", "all answers are tied")
    return pairs


def _framed(turns: tuple[Turn, ...], repairs: list[str]) -> str:
    plain_pairs(turns)
    names = {"user": "Human", "assistant": "Assistant"}
    texts = [
        _in_frame(turn.content, f"turns[{index}].content", repairs)
        for index, turn in enumerate(turns)
    ]
    return "".join(
        f"\n\n{names[turn.role]}: {text}" for turn, text in zip(turns, texts, strict=True)
    )


def _in_frame(text: str, field: str, repairs: list[str]) -> str:
    """Text that survives in the frame: without its words, and stripped."""
    # The reader splits at these words wherever they stand.
    for word in ("\n\nHuman:", "\n\nAssistant:"):
        if word in text:
            raise RowError(field, repr(word), "text without it", "text contains the frame")
    if text != text.strip():
        repairs.append("left out white space around turns")
    return text.strip()


def hh_rlhf(record: Preference | Ranking, repairs: list[str]) -> list[dict[str, Any]]:
    prompt, pairs = _framed(record.turns, repairs), _pairs(record)
    # Each answer is framed once, though it is in several pairs: its repairs are named once.
    framed = {
        text: f"{prompt}\n\nAssistant: {_in_frame(text, 'answers', repairs)}"
        for text in dict.fromkeys(text for pair in pairs for text in pair)
    }
    row = kept(id=record.id)
    return [
        row | {"chosen": framed[chosen], "rejected": framed[rejected]} for chosen, rejected in pairs
    ]


def nectar(record: Preference | Ranking, repairs: list[str]) -> list[dict[str, Any]]:
    prompt = _framed(record.turns, repairs) + "\n\nAssistant: "
    ranking = record.as_ranking() if isinstance(record, Preference) else record
    ranks = ranking.ranks or tuple(float(rank) for rank in range(1, len(ranking.answers) + 1))
    answers = [
        {"answer": text, "rank": rank} for text, rank in zip(ranking.answers, ranks, strict=True)
    ]
    turns = sum(turn.role == "user" for turn in record.turns)
    row = {"prompt": prompt, "answers": answers, "turns": turns, "num_responses": len(answers)}
    return [kept(id=record.id, source=[record.source] if record.source else None) | row]


def rewardbench(record: Preference | Ranking, repairs: list[str]) -> list[dict[str, Any]]:
    subset = label_in_source(record, "rewardbench")
    question = plain_text(one_question(record.turns), "turns[0].content")
    return [
        kept(id=record.id)
        | {
            "prompt": question,
            "chosen": plain_text(chosen, "chosen"),
            "rejected": plain_text(rejected, "rejected"),
            "subset": subset,
        }
        for chosen, rejected in _pairs(record)
    ]


def openai(
    record: Conversation | Prompt | Preference | Ranking, repairs: list[str]
) -> list[dict[str, Any]]:
    messages = [message(turn) for turn in record.turns]
    tools = tools_row(record.tools)
    if isinstance(record, Conversation | Prompt):
        reference = record.reference if isinstance(record, Prompt) else None
        return [kept(id=record.id, ground_truth=reference) | {"messages": messages} | tools]

    def answer(text: str) -> list[dict[str, Any]]:
        return [message(Turn("assistant", text))]

    margin = record.margin if isinstance(record, Preference) else None
    row = kept(id=record.id, margin=margin) | {"prompt": messages} | tools
    return [
        row | {"chosen": answer(chosen), "rejected": answer(rejected)}
        for chosen, rejected in _pairs(record)
    ]
