"""Texts of a row that its format's reader declares or knows as answers, and that no record has.

A reader takes one of several fields where a row has them under one name or the other. Of a row with
both, the other text would be lost without a word; so would an answer in a row of another format
than its file's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rayward.data.formats.became import LEAST, texts_of
from rayward.data.formats.known.format import Format
from rayward.data.formats.rows.fields import ONE_TURN, json_turns
from rayward.data.formats.rows.turns import is_framed, prompt_turns
from rayward.data.records import Record, RowError, describe

ANSWERS = frozenset(
    "completion response output answer chosen rejected messages conversations".split()
)
ALTERNATIVES: dict[str, tuple[tuple[str, ...], ...]] = {
    "sharegpt": (("conversations", "items"),),
    "alpaca": (("input", "context"), ("output", "response")),
    "kto": (("messages", "prompt"), ("messages", "completion")),
    "prompt_completion": (("completion", "response", "output"),),
    "question_pairs": (("question", "instruction"), ("question", "input")),
    "openai": (("messages", "prompt"),),
    "swift_pairs": (
        ("messages", "query"),
        ("messages", "response"),
        ("rejected_response", "rejected_messages"),
    ),
    "response_pairs": (("prompt", "instruction"), ("prompt", "input")),
    "exchange": (("human", "user"), ("assistant", "gpt", "bot")),
    "mt_bench_answers": (("choices", "text"),),
    "arena_hard": (("turns", "prompt"),),
}
"""By format: fields of which a row has one, or the same in each."""


def check_alternatives(form: Format, row: Mapping[str, Any], records: Sequence[Record]) -> None:
    """RowError for a field whose text is in no record, since another one was read in its place."""
    for names in ALTERNATIVES.get(form.name, ()):
        given = [name for name in names if _says(row.get(name))]
        if len(given) < 2 or all(row[name] == row[given[0]] for name in given):
            continue
        for name in given:
            if not is_kept(row[name], records):
                other = given[1] if name == given[0] else given[0]
                expected = (
                    f"the same as in {other}, or one of the two (ignore {name} to do without)"
                )
                raise RowError(name, describe(row[name]), expected, "two fields for one text")


def check_texts(form: Format, row: Mapping[str, Any]) -> None:
    """RowError for a field of text, such as a question, that is JSON text of turns."""
    if not form.keys:
        return  # the fields are mapped, or the format is named
    for name, value in row.items():
        plain = isinstance(value, str) and form.tree.get(name) == {}
        if plain and value.lstrip()[:1] in ("[", "{") and _are_whole_turns(json_turns(value)):
            raise RowError(name, describe(value), "text", "turns in a field of text")


def _are_whole_turns(turns: Any) -> bool:
    return bool(turns) and all(any(names <= turn.keys() for names in ONE_TURN) for turn in turns)


def check_answers(
    form: Format,
    own: Format | None,
    row: Mapping[str, Any],
    passed_over: Sequence[str],
    records: Sequence[Record],
) -> None:
    """RowError for an answer in a field that is passed over. `own`: the format of the row alone."""
    for name in passed_over:
        if name not in ANSWERS or is_kept(row[name], records):
            continue
        if own is not None and own.name != form.name:
            found = f"a row with the fields of {own.name}"
            expected = f"{form.name}, as which this file is read (ignore {name} to do without)"
            raise RowError(name, found, expected, "row of another format than its file")
        # A number or a word to check answers by stands beside them in many sets.
        if name != "answer":
            expected = f"none in {form.name} (ignore {name} to do without)"
            raise RowError(name, describe(row[name]), expected, "answer that is not read")


def is_kept(value: object, records: Sequence[Record]) -> bool:
    """Whether each text of a field is in a record."""
    kept = [text for record in records for text in texts_of(record)]
    return all(any(_is_in(text.strip(), other) for other in kept) for text in _texts(value))


def _is_in(text: str, other: str) -> bool:
    """Whether a text is another one or a part of it, of which a short one is the end."""
    if len(text) < LEAST:
        return text == other.strip() or other.endswith(f"\n{text}")
    return text in other


def _says(value: object) -> bool:
    return next(_texts(value), None) is not None


def _texts(value: object) -> Iterator[str]:
    """The texts of a field: text, turns or lists of either; of turns, what they say."""
    if isinstance(value, str):
        turns = json_turns(value) if value.lstrip()[:1] in ("[", "{") else None
        if turns is not None:
            yield from _texts(turns)
        elif is_framed(value):
            yield from (turn.content for turn in prompt_turns(value, "prompt"))
        elif value.strip():
            yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for name in ("content", "value", "text", "turns"):
            yield from _texts(value.get(name))
