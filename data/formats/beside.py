"""A row as records: what its format's reader makes of it, with what stands beside the turns.

A system text, earlier turns, a verdict and a reference answer are read here for all formats, where
the format's own reader has no use for the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any, TypeGuard

from rayward.data.formats.known.format import Format
from rayward.data.formats.readers.chat import is_blank, messages_of
from rayward.data.formats.readers.labelled import labelled
from rayward.data.formats.rows.fields import (
    ReadOptions,
    decoded,
    json_or_none,
    left,
    without_fields,
)
from rayward.data.formats.rows.meaning import (
    CALLS,
    HISTORY,
    MEANING_OF,
    NAMES,
    REASONING,
    REFERENCE,
    SPELLED,
    SYSTEM,
    TOOLS,
    VERDICT,
    Meaning,
    no_place,
)
from rayward.data.formats.rows.message_parts import reasoning_of
from rayward.data.formats.rows.turns import EMPTY_SYSTEM
from rayward.data.formats.unread import check_alternatives, check_texts
from rayward.data.formats.words import words_only
from rayward.data.parts import tools_of
from rayward.data.records import (
    Conversation,
    Labelled,
    Prompt,
    Record,
    RowError,
    Turn,
    check_turns,
    describe,
    list_of,
    number_of,
    text_of,
    without,
)

Fields = dict[str, Any]


def read_row(
    form: Format, row: Mapping[str, Any], repairs: list[str], options: ReadOptions
) -> tuple[list[Record], list[str]]:
    """The records of a row, and the paths of the fields that are passed over.

    RowError for a row that cannot be used, or that says what no record can. Repairs made, and what
    is ignored, are added to `repairs`.
    """
    row = decoded(row, form.tree)
    if options.words_only:
        row = words_only(form, row)
    if options.ignore:
        gone: set[str] = set()
        row = without_fields(row, form.tree, options.ignore, gone, met=options.met)
        repairs += [f"ignored {name}" for name in sorted(gone)]
    beside: dict[Meaning, Fields] = {}
    passed_over = []
    for place, path, name, value in left(row, form.tree):
        meaning = MEANING_OF.get(name)
        if meaning is not None and meaning.beside and path == name:
            beside.setdefault(meaning, {})[name] = value
        elif meaning is not None and meaning.elsewhere and not options.words_only:
            raise no_place(place, name, value, meaning)
        else:
            passed_over.append(path)
    records = form.convert(row, repairs)
    check_alternatives(form, row, records)
    check_texts(form, row)
    if beside:
        passed_over += _unused(beside.get(REFERENCE, {}), records)
        records = [_with(record, beside, repairs, options.ignore) for record in records]
    if options.ignore:
        records = [_without_parts(record, options.ignore, repairs) for record in records]
    if options.imitate_good:
        records = [_imitated(record) for record in records]
    return records, list(dict.fromkeys(passed_over))


def _with(
    record: Record, beside: dict[Meaning, Fields], repairs: list[str], ignore: frozenset[str]
) -> Record:
    for name, value in beside.get(HISTORY, {}).items():
        record = _put(record, _history(value, name))
    record = _with_system(record, beside.get(SYSTEM, {}), repairs)
    if REFERENCE in beside and _wants_reference(record):
        name = _first_reference(beside[REFERENCE])
        record = replace(record, reference=reference_of(beside[REFERENCE][name], name))
    for name, value in beside.get(TOOLS, {}).items():
        tools = tools_of(value, name)
        if record.tools is not None and tools not in (None, record.tools):
            raise RowError(name, describe(value), "one list of tools", "two lists of tools")
        record = replace(record, tools=tools or record.tools)
    if REASONING in beside:
        record = _with_reasoning(record, beside[REASONING])
    for name, value in beside.get(VERDICT, {}).items():
        if name in ignore and not isinstance(record, Conversation):
            repairs.append(f"ignored {name}")  # of no answer that could be imitated
            continue
        if getattr(record, "quality", None):
            repairs.append("left out quality")
        record = labelled(record, value, name)
    return record


def _put(record: Record, turns: tuple[Turn, ...]) -> Record:
    """The record with turns before its first one, behind a system turn."""
    first = 1 if record.turns and record.turns[0].role == "system" else 0
    return replace(record, turns=(*record.turns[:first], *turns, *record.turns[first:]))


# ---- tools, reasoning

IGNORED_PARTS = {TOOLS: "tools", CALLS: "tool_calls", REASONING: "reasoning"}


def _with_reasoning(record: Record, fields: Fields) -> Record:
    """The record with what was thought before its one answer. RowError where that is not told."""
    text = reasoning_of(fields)
    name = next(iter(fields))
    answers = [turn for turn in record.turns if turn.role == "assistant"]
    if text is None:
        return record
    if not isinstance(record, Conversation) or len(answers) != 1 or answers[0].reasoning:
        raise no_place(name, name, text, REASONING)
    return replace(record, turns=(*record.turns[:-1], replace(record.turns[-1], reasoning=text)))


def _without_parts(record: Record, ignore: frozenset[str], repairs: list[str]) -> Record:
    """The record without the parts that the user ignores, under whatever name they came."""
    for name in sorted(ignore):
        meaning = MEANING_OF.get(name)
        if meaning not in IGNORED_PARTS:
            continue
        rest = without(record, IGNORED_PARTS[meaning])
        if rest != record:
            repairs.append(f"ignored {name}")
        record = rest
    return record


# ---- system texts, earlier turns


def _with_system(record: Record, fields: Fields, repairs: list[str]) -> Record:
    for name, value in fields.items():
        if is_blank(value):
            repairs.append(EMPTY_SYSTEM)
            continue
        text = text_of(value, name)
        if record.turns and record.turns[0].role == "system":
            if record.turns[0].content != text:
                expected = "one system text only"
                raise RowError(name, describe(text), expected, "two system texts")
            continue
        record = replace(record, turns=(Turn("system", text), *record.turns))
    return record


def _history(value: object, name: str) -> tuple[Turn, ...]:
    """Earlier turns: [[question, answer], ...] as in ChatGLM's and LLaMA-Factory's files, or turns.

    Also where they are JSON text.
    """
    items = list_of(json_or_none(value) if isinstance(value, str) else value, name)
    if any(isinstance(item, dict) for item in items):
        turns = messages_of(items, name)
    else:
        turns = ()
        for index, pair in enumerate(items):
            texts = list_of(pair, f"{name}[{index}]")
            if len(texts) != 2:
                expected = "two, a question and its answer"
                found = f"{len(texts)} texts"
                raise RowError(f"{name}[{index}]", found, expected, "history is not in pairs")
            asked, said = (text_of(text, f"{name}[{index}]") for text in texts)
            turns += (Turn("user", asked), Turn("assistant", said))
    check_turns(turns, "assistant", name)
    return turns


# ---- reference answers


def _wants_reference(record: Record) -> TypeGuard[Prompt]:
    """Whether a record has a place for a reference, which its reader has not filled."""
    return isinstance(record, Prompt) and record.reference is None


def _first_reference(fields: Fields) -> str:
    order = NAMES[REFERENCE].split()
    return min(fields, key=lambda name: order.index(SPELLED[name]))


def reference_of(value: object, name: str) -> str:
    """A reference answer: text, a number, the only one of a list, or verl's reward_model's.

    RowError for several, of which a prompt holds one.
    """
    if name == "reward_model" and isinstance(value, dict):
        name, value = "reward_model.ground_truth", value.get("ground_truth")
    if isinstance(value, list | tuple):
        if len(value) != 1:
            found = f"{len(value)} answers"
            raise RowError(name, found, "one reference answer", "several reference answers")
        value = value[0]
    if isinstance(value, int | float) and not isinstance(value, bool):
        number_of(value, name)
        # pandas makes floats of whole numbers where some are missing: 42.0. Never with an exponent.
        return str(int(value)) if value == int(value) else f"{Decimal(repr(value)):f}"
    return text_of(value, name)


def _unused(references: Fields, records: list[Record]) -> list[str]:
    """Paths of reference answers that are of no record: beside an answer, or a second one.

    `records`: as their reader made them.
    """
    if not references:
        return []
    if not any(map(_wants_reference, records)):
        return list(references)
    used = _first_reference(references)
    unused = [name for name in references if name != used]
    if used == "reward_model" and isinstance(references[used], dict):
        unused += [f"{used}.{name}" for name in references[used] if name != "ground_truth"]
    return unused


# ---- verdicts


def _imitated(record: Record) -> Record:
    """A good answer as a conversation. RowError for a bad one."""
    if not isinstance(record, Labelled):
        return record
    if not record.good:
        raise RowError("good", "false", "true, for an answer to imitate", "bad answer")
    turns = (*record.turns, Turn("assistant", record.answer))
    return Conversation(turns, record.source, record.id, tools=record.tools)
