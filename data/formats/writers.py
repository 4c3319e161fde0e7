"""Records as rows of the formats people use: one function a format, `(record, repairs) -> rows`.

The inverse of data/formats/readers_chat.py and data/formats/readers_ranked.py, with the same field
names. What a format cannot express is never changed in silence. Texts, roles, order, ties and loss
weights are kept, or the record is refused with a RowError. What a reader of the format would not
see again (white space around framed turns, a margin, an id or label without a field) is left out
and named in `repairs`; only `source`, which every reader gives anew, is left out unnamed where
there is no field for it.

A ranking becomes pairs in the formats of pairs: one row for every two answers of different rank,
best first. All other records become one row. UltraFeedback has no writer: its rows are made of
ratings of aspects by a judge, which ranks cannot give.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from rayward.data.records import (
    Conversation,
    Preference,
    Prompt,
    Ranking,
    Record,
    RowError,
    Turn,
    describe,
    to_json,
)
from rayward.data.templates.table import INPUT

Write = Callable[[Any, list[str]], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Writer:
    """How records of some kinds are written.

    `labels`: those of id, quality and margin that have a field. `columns`: the fields of a row and
    their types, "text", "number" or "integer", [one of these] or a list of one object: what a
    parquet file has for columns.
    """

    name: str
    kinds: tuple[type[Record], ...]
    labels: frozenset[str]
    columns: dict[str, Any]
    write: Write

    def rows(self, record: Record, repairs: list[str]) -> list[dict[str, Any]]:
        """The rows of a record; at least one. RowError if the format cannot express it."""
        if not isinstance(record, self.kinds):
            expected = " or ".join(kind.__name__.lower() for kind in self.kinds)
            raise RowError(
                "record",
                type(record).__name__.lower(),
                expected,
                f"{self.name} has no place for its kind",
            )
        if (
            isinstance(record, Prompt)
            and record.follow_ups
            and self.name not in ("rayward", "mt_bench_questions")
        ):
            raise RowError(
                "follow_ups", f"{len(record.follow_ups)} texts", "none", "follow-up questions"
            )
        found = self.write(record, repairs)
        for label in ("id", "quality", "margin"):
            if getattr(record, label, None) not in (None, "") and label not in self.labels:
                repairs.append(f"left out {label}")
        return found


def _kept(**fields: Any) -> dict[str, Any]:
    """The fields that have a value."""
    return {name: value for name, value in fields.items() if value not in (None, "")}


def _plain(turns: tuple[Turn, ...]) -> None:
    """RowError: a turn with a loss weight other than that of its role, which needs a field of its
    own.
    """
    for index, turn in enumerate(turns):
        if turn.loss_weight != Turn(turn.role, "").loss_weight:
            raise RowError(
                f"turns[{index}].weight",
                str(turn.weight),
                "no weight of its own",
                "loss weight of a turn",
            )


def _plain_pairs(turns: tuple[Turn, ...]) -> None:
    """RowError: a system turn, or weights as in `_plain`."""
    if turns[0].role == "system":
        raise RowError("turns[0].role", "system", "no system turn", "system turn")
    _plain(turns)


def _one_question(turns: tuple[Turn, ...]) -> str:
    """The text of the only user turn. RowError: a system turn, or more turns, or weights."""
    _plain_pairs(turns)
    if len([turn for turn in turns if turn.role == "user"]) > 1:
        raise RowError("turns", f"{len(turns)} turns", "one question", "several turns")
    return turns[0].content


def _messages(turns: tuple[Turn, ...]) -> list[dict[str, Any]]:
    return [
        {"role": turn.role, "content": turn.content}
        | ({} if turn.weight is None else {"weight": turn.weight})
        for turn in turns
    ]


# ---- conversations and prompts
# -----------------------------------------------------------------------------


def _rayward(record: Record, repairs: list[str]) -> list[dict[str, Any]]:
    return [to_json(record)]


def _sharegpt(record: Conversation, repairs: list[str]) -> list[dict[str, Any]]:
    _plain(record.turns)
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    turns = [{"from": names[turn.role], "value": turn.content} for turn in record.turns]
    return [_kept(id=record.id, model=record.quality) | {"conversations": turns}]


def _alpaca(record: Conversation, repairs: list[str]) -> list[dict[str, Any]]:
    """A question is split at `INPUT` where both parts say something, so that the reader joins the
    same again.
    """
    question = _one_question(record.turns)
    instruction, _, context = question.partition(INPUT)
    if not instruction.strip() or not context.strip():
        instruction, context = question, ""
    return [
        _kept(id=record.id)
        | {"instruction": instruction, "input": context, "output": record.turns[1].content}
    ]


def _ultrachat(record: Conversation, repairs: list[str]) -> list[dict[str, Any]]:
    _plain_pairs(record.turns)
    return [_kept(id=record.id) | {"data": [turn.content for turn in record.turns]}]


def _crlft(record: Conversation, repairs: list[str]) -> list[dict[str, Any]]:
    """Weights are written out, since OpenChat's trainer wants one at every turn."""
    system, *turns = record.turns
    if system.role != "system":
        system, turns = Turn("system", ""), list(record.turns)
    _plain((system,))
    items = [
        {"role": turn.role, "content": turn.content, "weight": turn.loss_weight} for turn in turns
    ]
    return [
        _kept(id=record.id)
        | {"items": items, "condition": record.quality or "", "system": system.content}
    ]


def _alpaca_eval(record: Conversation | Prompt, repairs: list[str]) -> list[dict[str, Any]]:
    question = _one_question(record.turns)
    if isinstance(record, Prompt):
        return [_kept(id=record.id, instruction=question)]
    return [
        _kept(
            id=record.id,
            instruction=question,
            output=record.turns[1].content,
            generator=record.quality,
        )
    ]


def _openai(
    record: Conversation | Prompt | Preference | Ranking, repairs: list[str]
) -> list[dict[str, Any]]:
    messages = _messages(record.turns)
    if isinstance(record, Conversation | Prompt):
        return [_kept(id=record.id) | {"messages": messages}]

    def said(text: str) -> list[dict[str, Any]]:
        return _messages((Turn("assistant", text),))

    margin = record.margin if isinstance(record, Preference) else None
    row = _kept(id=record.id, margin=margin) | {"prompt": messages}
    return [
        row | {"chosen": said(chosen), "rejected": said(rejected)}
        for chosen, rejected in _pairs(record)
    ]


def _own_label(record: Record, name: str) -> str:
    """What the reader of a format put after its name in `source`; another source as it is."""
    return "" if record.source == name else record.source.removeprefix(f"{name}/")


def _question_id(record: Record) -> int:
    if not record.id.isdecimal() or len(record.id) > 18 or str(int(record.id)) != record.id:
        raise RowError("id", describe(record.id), "a whole number", "id is not a whole number")
    return int(record.id)


def _mt_bench_questions(record: Prompt, repairs: list[str]) -> list[dict[str, Any]]:
    """`source` "mt_bench/CATEGORY" gives the category; another source is its own."""
    question = _one_question(record.turns)
    category = _own_label(record, "mt_bench") or "general"
    return [
        {
            "question_id": _question_id(record),
            "category": category,
            "turns": [question, *record.follow_ups],
        }
    ]


def _mt_bench_answers(record: Conversation, repairs: list[str]) -> list[dict[str, Any]]:
    """The questions stay behind: readers take them from the question file. `answer_id` is a hash of
    the answers.
    """
    _plain_pairs(record.turns)
    answers = [turn.content for turn in record.turns if turn.role == "assistant"]
    if record.quality is None:
        raise RowError("quality", "nothing", "the name of the model", "no model name")
    repairs.append("left out questions, which are in the question file")
    answer_id = hashlib.sha256(
        "\0".join((record.quality, record.id, *answers)).encode()
    ).hexdigest()[:22]
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


# ---- rankings and preferences
# ------------------------------------------------------------------------------


def _pairs(record: Preference | Ranking) -> list[tuple[str, str]]:
    """(chosen, rejected) of every two answers of different rank. RowError if all are tied."""
    if isinstance(record, Preference):
        return [(record.chosen, record.rejected)]
    ranks = record.ranks or range(len(record.answers))
    found = [
        (better[1], worse[1])
        for better, worse in combinations(zip(ranks, record.answers, strict=True), 2)
        if better[0] < worse[0]
    ]
    if not found:
        raise RowError("ranks", "one rank for all", "different ranks", "all answers are tied")
    return found


def _framed(turns: tuple[Turn, ...], repairs: list[str]) -> str:
    _plain_pairs(turns)
    names = {"user": "Human", "assistant": "Assistant"}
    texts = [
        _in_frame(turn.content, f"turns[{index}].content", repairs)
        for index, turn in enumerate(turns)
    ]
    return "".join(
        f"\n\n{names[turn.role]}: {text}" for turn, text in zip(turns, texts, strict=True)
    )


def _in_frame(text: str, field: str, repairs: list[str]) -> str:
    """Text that survives between "\\n\\nHuman:" and "\\n\\nAssistant:": without these words, and
    stripped.
    """
    for word in ("\n\nHuman:", "\n\nAssistant:"):
        if word in text:
            raise RowError(field, repr(word), "text without it", "text contains the frame")
    if text != text.strip():
        repairs.append("left out white space around turns")
    return text.strip()


def _hh_rlhf(record: Preference | Ranking, repairs: list[str]) -> list[dict[str, Any]]:
    prompt, pairs = _framed(record.turns, repairs), _pairs(record)
    said = {
        text: f"{prompt}\n\nAssistant: {_in_frame(text, 'answers', repairs)}"
        for text in dict.fromkeys(text for pair in pairs for text in pair)
    }
    row = _kept(id=record.id)
    return [
        row | {"chosen": said[chosen], "rejected": said[rejected]} for chosen, rejected in pairs
    ]


def _nectar(record: Preference | Ranking, repairs: list[str]) -> list[dict[str, Any]]:
    prompt = _framed(record.turns, repairs) + "\n\nAssistant: "
    ranking = record.as_ranking() if isinstance(record, Preference) else record
    ranks = ranking.ranks or tuple(float(rank) for rank in range(1, len(ranking.answers) + 1))
    answers = [
        {"answer": text, "rank": rank} for text, rank in zip(ranking.answers, ranks, strict=True)
    ]
    turns = sum(turn.role == "user" for turn in record.turns)
    row = {"prompt": prompt, "answers": answers, "turns": turns, "num_responses": len(answers)}
    return [_kept(id=record.id, source=[record.source] if record.source else None) | row]


def _rewardbench(record: Preference | Ranking, repairs: list[str]) -> list[dict[str, Any]]:
    question, subset = _one_question(record.turns), _own_label(record, "rewardbench")
    return [
        _kept(id=record.id)
        | {"prompt": question, "chosen": chosen, "rejected": rejected, "subset": subset}
        for chosen, rejected in _pairs(record)
    ]


# ---- all of them
# -------------------------------------------------------------------------------------------

MESSAGES = [{"role": "text", "content": "text", "weight": "number"}]
ANSWER = [{"role": "text", "content": "text"}]


def _writer(write: Write, kinds: tuple[type[Record], ...], labels: str, **columns: Any) -> Writer:
    return Writer(write.__name__.strip("_"), kinds, frozenset(labels.split()), columns, write)


WRITERS: dict[str, Writer] = {
    writer.name: writer
    for writer in (
        _writer(
            _rayward,
            (Conversation, Prompt, Ranking, Preference),
            "id quality margin",
            kind="text",
            turns=MESSAGES,
            source="text",
            id="text",
            quality="text",
            follow_ups=["text"],
            answers=["text"],
            ranks=["number"],
            chosen="text",
            rejected="text",
            margin="number",
        ),
        _writer(
            _sharegpt,
            (Conversation,),
            "id quality",
            id="text",
            model="text",
            conversations=[{"from": "text", "value": "text"}],
        ),
        _writer(
            _alpaca,
            (Conversation,),
            "id",
            id="text",
            instruction="text",
            input="text",
            output="text",
        ),
        _writer(_ultrachat, (Conversation,), "id", id="text", data=["text"]),
        _writer(
            _crlft,
            (Conversation,),
            "id quality",
            id="text",
            items=MESSAGES,
            condition="text",
            system="text",
        ),
        _writer(
            _alpaca_eval,
            (Conversation, Prompt),
            "id quality",
            id="text",
            instruction="text",
            output="text",
            generator="text",
        ),
        _writer(
            _openai,
            (Conversation, Prompt, Preference, Ranking),
            "id margin",
            id="text",
            messages=MESSAGES,
            margin="number",
            prompt=MESSAGES,
            chosen=ANSWER,
            rejected=ANSWER,
        ),
        _writer(_hh_rlhf, (Preference, Ranking), "id", id="text", chosen="text", rejected="text"),
        _writer(
            _nectar,
            (Preference, Ranking),
            "id",
            id="text",
            source=["text"],
            prompt="text",
            answers=[{"answer": "text", "rank": "number"}],
            turns="integer",
            num_responses="integer",
        ),
        _writer(
            _rewardbench,
            (Preference, Ranking),
            "id",
            id="text",
            prompt="text",
            chosen="text",
            rejected="text",
            subset="text",
        ),
        _writer(
            _mt_bench_questions,
            (Prompt,),
            "id",
            question_id="integer",
            category="text",
            turns=["text"],
        ),
        _writer(
            _mt_bench_answers,
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
