"""A random record of any kind comes back from every format unchanged, or its writer refuses it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayward.data.formats.beside import read_row
from rayward.data.formats.known.formats import FORMATS
from rayward.data.formats.readers.ranked import distinct
from rayward.data.formats.rows.fields import ReadOptions
from rayward.data.formats.writers.table import WRITERS
from rayward.data.parts import json_text
from rayward.data.records import (
    Conversation,
    Labelled,
    Preference,
    Prompt,
    Ranking,
    Record,
    RowError,
    ToolCall,
    Turn,
    validate,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).map(lambda text: f"x{text}y")
SPOKEN = st.one_of(
    TEXTS, st.sampled_from(["\n\nHuman: a", " b ", "[1]", '[{"role": "user"}]', "1"])
)
WEIGHTS = st.sampled_from([None, None, None, 0.0, 1.0, 0.25])
LABELS = st.sampled_from(["", "7", "a b"])
REFERENCES = st.one_of(st.none(), TEXTS)


SAID_RARELY = st.one_of(st.none(), st.none(), SPOKEN)
JSON_VALUES = st.one_of(st.none(), st.integers(-9, 9), SPOKEN, st.just({"unit": None, "b": [None]}))
OBJECTS = st.dictionaries(st.sampled_from(["a", "b", "null"]), JSON_VALUES, max_size=2)
CALLS = st.builds(ToolCall, st.sampled_from(["f", "g"]), OBJECTS.map(json_text), LABELS)


def schemas(parameters: dict[str, object]) -> str:
    return json_text(
        [{"type": "function", "function": {"name": "f", "parameters": parameters, "default": None}}]
    )


TOOLS = st.one_of(st.none(), st.none(), OBJECTS.map(schemas))


@st.composite
def answers(draw: st.DrawFn) -> list[Turn]:
    """An answer, mostly of text alone; also a call, its result and what is said then."""
    said = [Turn("assistant", draw(SPOKEN), draw(WEIGHTS), draw(SAID_RARELY))]
    if draw(st.integers(0, 3)):
        return said
    calls = tuple(draw(st.lists(CALLS, min_size=1, max_size=2)))
    calling = Turn("assistant", draw(st.one_of(st.just(""), SPOKEN)), None, None, calls)
    result = Turn("tool", draw(SPOKEN), tool_call_id=draw(LABELS), name=draw(LABELS))
    return [calling, result, *said]


@st.composite
def turns(draw: st.DrawFn, last: str) -> tuple[Turn, ...]:
    found = [Turn("system", draw(SPOKEN))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        found += [Turn("user", draw(SPOKEN)), *draw(answers())]
    found.append(Turn("user", draw(SPOKEN), draw(WEIGHTS)))
    if last == "assistant":
        found += draw(answers())
    return tuple(found)


ASKED, TOLD = turns("user"), turns("assistant")
PAIRS = st.lists(SPOKEN, min_size=2, max_size=2, unique_by=str.strip)
RECORDS = st.one_of(
    st.builds(Conversation, TOLD, id=LABELS, quality=st.sampled_from([None, "gold"]), tools=TOOLS),
    st.builds(
        Prompt,
        ASKED,
        id=LABELS,
        follow_ups=st.lists(SPOKEN, max_size=1).map(tuple),
        reference=REFERENCES,
        tools=TOOLS,
    ),
    st.builds(
        lambda asked, pair, margin, label, tools: Preference(
            asked, *pair, margin, "", label, tools
        ),
        ASKED,
        PAIRS,
        st.sampled_from([None, 0.5, 2.0]),
        LABELS,
        TOOLS,
    ),
    st.builds(
        lambda asked, answers, label, tools: Ranking(
            asked,
            tuple(answers),
            "",
            label,
            tuple(1.0 + place for place in range(len(answers))),
            tools,
        ),
        ASKED,
        st.lists(SPOKEN, min_size=3, max_size=4, unique_by=str.strip),
        LABELS,
        TOOLS,
    ),
    st.builds(Labelled, ASKED, SPOKEN, st.booleans(), id=LABELS, tools=TOOLS),
)


def as_written(record: Record, name: str, repairs: list[str]) -> Record:
    """What the account says of a record: the labels that were left out and named are gone."""
    for label, nothing in (("id", ""), ("quality", None)):
        if f"left out {label}" in repairs:
            record = replace(record, **{label: nothing})
    if name == "nectar" and isinstance(record, Preference):
        return record.as_ranking()
    return record


def plain(record: Record) -> Record:
    """Without its source, and its own weights and ranks written out or not: they say the same."""
    spoken = tuple(replace(turn, weight=turn.loss_weight) for turn in record.turns)
    if isinstance(record, Ranking) and record.ranks is None:
        ranks = tuple(1.0 + place for place in range(len(record.answers)))
        record = replace(record, ranks=ranks)
    return replace(record, turns=spoken, source="")


@pytest.mark.parametrize("name", sorted({*WRITERS} - {"mt_bench_answers"}))
@settings(max_examples=150, deadline=None)
@given(RECORDS)
def test_a_record_comes_back_or_is_refused_by_a_field(name: str, record: Record) -> None:
    validate(record)
    repairs: list[str] = []
    try:
        rows = WRITERS[name].rows(record, repairs)
    except RowError as error:
        assert error.field and error.found and error.expected and error.reason
        return
    found = []
    for row in rows:
        made, passed_over = read_row(FORMATS[name], json.loads(json.dumps(row)), [], ReadOptions())
        found += [distinct(one, []) for one in made]
        assert {*passed_over} <= {"turns"}  # of Nectar, which counts them
    if len(rows) > 1 or "left out white space around turns" in repairs:
        return  # pairs of a ranking, and frames: tests/data/test_writers.py has their numbers
    assert [plain(one) for one in found] == [plain(as_written(record, name, repairs))]


@settings(max_examples=300, deadline=None)
@given(TOLD, TOOLS, st.sampled_from(["label", "kto_tag"]), st.booleans())
def test_a_part_beside_a_verdict_is_kept_or_refused(
    told: tuple[Turn, ...], tools: str | None, verdict: str, good: bool
) -> None:
    (row,) = WRITERS["openai"].rows(Conversation(told, tools=tools), [])
    form = FORMATS["kto" if verdict == "label" else "openai"]
    try:
        (found,), passed_over = read_row(
            form, json.loads(json.dumps(row | {verdict: good})), [], ReadOptions()
        )
    except RowError as error:
        assert error.field and error.found and error.expected and error.reason
        answer = told[-1]
        assert answer.loss_weight != 1 or answer.reasoning or answer.tool_calls
        return
    expected = Labelled(told[:-1], told[-1].content, good, tools=tools)
    assert plain(found) == plain(expected) and not passed_over
