"""Tools, calls of tools, their results and reasoning: in records, as JSON, and in files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayward.data.formats.files.outputs import open_output
from rayward.data.formats.registry import read
from rayward.data.formats.writers.table import WITH_PARTS, WRITERS
from rayward.data.parts import arguments_text, tools_of
from rayward.data.record_json import from_json, to_json
from rayward.data.records import (
    Conversation,
    Preference,
    Prompt,
    Ranking,
    Record,
    RowError,
    ToolCall,
    Turn,
    parts_of,
    validate,
    without,
)
from tests.data.examples import run, write_lines

SCHEMA = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
TOOLS = '[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]'
ASK, ANSWER = Turn("user", "How warm is it?"), Turn("assistant", "12 degrees.")
CALLING = Turn("assistant", "", tool_calls=(ToolCall("weather", '{"town": "Köln"}', "c1"),))
RESULT = Turn("tool", '{"degrees": 12}', tool_call_id="c1", name="weather")
THOUGHT = Turn("assistant", "12.", 0.5, "The tool says 12.")
CHAT = Conversation((ASK, CALLING, RESULT, ANSWER, ASK, THOUGHT), "openai", "7", None, TOOLS)
PROMPT = Prompt((ASK, CALLING, RESULT), "openai", "7", tools=TOOLS)
PAIR = Preference((ASK, CALLING, RESULT), "12.", "13.", 0.5, "openai", "7", TOOLS)
RANKING = Ranking((ASK,), ("a", "b", "c"), "s", "7", None, TOOLS)

MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "How warm is it?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"town":"K\\u00f6ln"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": '{"degrees": 12}'},
    {"role": "assistant", "content": "12 degrees."},
    {"role": "user", "content": "How warm is it?"},
    {"role": "assistant", "content": "12.", "weight": 0.5, "reasoning_content": THOUGHT.reasoning},
]


def call(**more: Any) -> Turn:
    return replace(CALLING, tool_calls=(replace(CALLING.tool_calls[0], **more),))


@pytest.mark.parametrize("turns, field, reason", [
    ((ASK, RESULT, ANSWER), "turns[1].role", "a tool's result without a call"),
    ((ASK, ANSWER, RESULT, ANSWER), "turns[2].role", "a tool's result without a call"),
    ((ASK, CALLING, RESULT, ASK, ANSWER), "turns[3].role", "roles do not alternate"),
    ((ASK, CALLING, ANSWER), "turns[2].role", "roles do not alternate"),
    ((ASK, CALLING, RESULT), "turns[2].role", "does not end with the assistant"),
    ((ASK, Turn("assistant", " ")), "turns[1].content", "empty text"),
    ((ASK, Turn("assistant", " ", None, "thought")), "turns[1].content", "empty text"),
    ((ASK, Turn("assistant", "a", None, " ")), "turns[1].reasoning", "empty text"),
    ((replace(ASK, reasoning="x"), ANSWER), "turns[0].reasoning", "wrong role"),
    ((replace(ASK, tool_calls=CALLING.tool_calls), ANSWER), "turns[0].tool_calls", "wrong role"),
    ((ASK, replace(ANSWER, name="x")), "turns[1].name", "wrong role"),
    ((ASK, CALLING, replace(RESULT, content=""), ANSWER), "turns[2].content", "empty text"),
    ((ASK, call(name="")), "turns[1].tool_calls[0].name", "empty text"),
    ((ASK, call(arguments="{")), "turns[1].tool_calls[0].arguments", "text that is no JSON"),
    ((ASK, call(arguments="[1]")), "turns[1].tool_calls[0].arguments", "wrong type"),
    ((ASK, call(arguments='{"a": NaN}')), "turns[1].tool_calls[0].arguments",
     "text that is no JSON"),
    ((ASK, call(arguments='{"a": "\\ud800"}')), "turns[1].tool_calls[0].arguments",
     "invalid Unicode"),
])  # fmt: skip
def test_what_is_wrong_with_a_part_is_named(
    turns: tuple[Turn, ...], field: str, reason: str
) -> None:
    with pytest.raises(RowError) as caught:
        validate(Conversation(turns))
    assert (caught.value.field, caught.value.reason) == (field, reason)
    assert caught.value.found and caught.value.expected


@pytest.mark.parametrize("tools, field", [
    ("x", "tools"), ("{}", "tools"), ("[]", "tools"), ("[1]", "tools[0]"),
    ('[{"type": "function"}]', "tools[0].function.name"),
    ('[{"function": 1}]', "tools[0].function"),
])  # fmt: skip
def test_tools_that_are_none_are_named(tools: str, field: str) -> None:
    with pytest.raises(RowError) as caught:
        validate(replace(CHAT, tools=tools))
    assert caught.value.field == field


@pytest.mark.parametrize("record", [CHAT, PROMPT, PAIR, RANKING, PAIR.as_ranking()])
def test_json_gives_back_what_it_was_given(record: Record) -> None:
    validate(record)
    assert hash(record) == hash(from_json(json.loads(json.dumps(to_json(record)))))
    assert from_json(json.loads(json.dumps(to_json(record)))) == record


def test_records_without_parts_are_written_as_ever() -> None:
    turns = (Turn("system", "s"), Turn("user", "q", 0.0), Turn("assistant", "a"))
    assert json.dumps(to_json(Conversation(turns, "x", "", "gold"))) == (
        '{"kind": "conversation", "turns": [{"role": "system", "content": "s"}, {"role": "user", '
        '"content": "q", "weight": 0.0}, {"role": "assistant", "content": "a"}], "source": "x", '
        '"quality": "gold"}'
    )
    assert json.dumps(to_json(Preference(turns[1:2], "a", "b", 0.5))) == (
        '{"kind": "preference", "turns": [{"role": "user", "content": "q", "weight": 0.0}], '
        '"chosen": "a", "rejected": "b", "margin": 0.5}'
    )


def test_a_turn_without_parts_is_shown_as_ever() -> None:
    assert repr(ASK) == "Turn(role='user', content='How warm is it?', weight=None)"
    assert repr(RESULT).endswith(", tool_call_id='c1', name='weather')")


def test_openai_s_messages_are_read_with_their_parts(tmp_path: Path) -> None:
    rows = [
        {"messages": MESSAGES, "tools": [SCHEMA], "id": 7},
        {"messages": MESSAGES[:3], "tools": TOOLS, "id": 7},
        # The names of before: one call without an id, and the role "function".
        {
            "messages": [
                MESSAGES[0],
                {"role": "assistant", "function_call": {"name": "weather", "arguments": ""}},
                {"role": "function", "name": "weather", "content": "12"},
                MESSAGES[3],
            ],
            "functions": [SCHEMA["function"]],
        },
    ]
    records, report = run(write_lines(tmp_path / "rows.jsonl", rows))
    assert not report.rejected and records[:2] == [CHAT, PROMPT]
    old = (Turn("assistant", "", tool_calls=(ToolCall("weather", "{}"),)),)
    old += (Turn("tool", "12", name="weather"),)
    assert records[2] == Conversation((ASK, *old, ANSWER), "openai", tools=TOOLS)


@pytest.mark.parametrize("bad, field", [
    ({"tool_calls": [{"function": {}}]}, "messages[1].tool_calls[0].function.name"),
    ({"tool_calls": [{"type": "custom"}]}, "messages[1].tool_calls[0].type"),
    ({"tool_calls": "x"}, "messages[1].tool_calls"),
    ({"content": "x", "reasoning": 3}, "messages[1].reasoning"),
    ({"content": "x", "reasoning": "a", "thinking": "b"}, "messages[1].thinking"),
    ({"content": None}, "messages[1].content"),
])  # fmt: skip
def test_a_bad_part_of_a_message_is_named(bad: dict[str, Any], field: str, tmp_path: Path) -> None:
    row = {"messages": [MESSAGES[0], {"role": "assistant", **bad}]}
    _, report = run(write_lines(tmp_path / "rows.jsonl", [row]))
    assert [rejected.field for rejected in report.rejected_rows] == [field]


def test_an_answer_of_a_pair_that_calls_is_refused_and_not_cut(tmp_path: Path) -> None:
    chosen = MESSAGES[1] | {"content": "I look."}
    row = {"prompt": "How warm is it?", "chosen": [chosen], "rejected": "13."}
    _, report = run(write_lines(tmp_path / "rows.jsonl", [row]))
    assert report.rejected == {"answer with tool calls": 1}
    assert report.rejected_rows[0].field == "chosen.tool_calls"


def test_sharegpt_s_calls_and_observations_are_read(tmp_path: Path) -> None:
    said = [
        ("human", "How warm is it?"),
        ("function_call", '[{"name": "weather", "arguments": {"town": "Köln"}}]'),
        ("observation", '{"degrees": 12}'),
        ("gpt", "12 degrees."),
    ]
    row = {
        "conversations": [{"from": who, "value": text} for who, text in said],
        "tools": json.dumps([SCHEMA["function"]]),
    }
    records, _ = run(write_lines(tmp_path / "rows.jsonl", [row, row | {"tools": ""}]))
    turns = (ASK, call(id=""), Turn("tool", RESULT.content), ANSWER)
    assert records == [
        Conversation(turns, "sharegpt", tools=TOOLS),
        Conversation(turns, "sharegpt"),
    ]


@pytest.mark.parametrize("suffix", ["jsonl", "json.gz", "parquet"])
@pytest.mark.parametrize("name", ["openai", "rayward"])
def test_round_trip(name: str, suffix: str, tmp_path: Path) -> None:
    path, plain = tmp_path / f"rows.{suffix}", Conversation((ASK, ANSWER), "openai")
    # Nested tools, whose fields are not those of others.
    nested = tools_of(
        [SCHEMA, {"name": "other", "parameters": {"properties": {"a": {"enum": [1]}}}}]
    )
    records = [CHAT, PROMPT, PAIR, plain, replace(CHAT, tools=nested)]
    with open_output(path, WRITERS[name].columns) as output:
        for record in records:
            for row in WRITERS[name].rows(record, []):
                output.write(row)
    assert list(read(path, name)) == records
    (first, *_) = read(path)
    assert first == CHAT, "its format can be told"


def test_openai_s_rows_are_those_that_a_server_takes() -> None:
    (row,) = WRITERS["openai"].rows(CHAT, [])
    assert row["tools"] == [SCHEMA]
    written = json.loads(json.dumps(row["messages"]))
    expected = [dict(message) for message in MESSAGES]
    function = {"name": "weather", "arguments": '{"town": "Köln"}'}
    calls = [{"id": "c1", "type": "function", "function": function}]
    expected[1] = {"role": "assistant", "content": "", "tool_calls": calls}
    assert written == expected


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in WITH_PARTS])
def test_every_other_writer_refuses_by_the_field(name: str) -> None:
    answers = (ASK, replace(ANSWER, reasoning="Hm."))
    for chat, field in (
        (Conversation((ASK, ANSWER), "s", "7", "m", TOOLS), "tools"),
        (Conversation((ASK, CALLING), "s", "7", "m"), "turns[1].tool_calls"),
        (Conversation(answers, "s", "7", "m"), "turns[1].reasoning"),
    ):
        pair = Preference((*chat.turns, ASK), "a", "b", None, "s", "7", chat.tools)
        prompt = Prompt((*chat.turns, ASK), "s", "7", tools=chat.tools)
        taken = [kept for kept in (chat, pair, prompt) if isinstance(kept, WRITERS[name].kinds)]
        assert taken
        for record in taken:
            with pytest.raises(RowError) as caught:
                WRITERS[name].rows(record, [])
            assert caught.value.field == field and name in caught.value.reason


def test_a_part_can_be_taken_out() -> None:
    assert without(CHAT, "tools") == replace(CHAT, tools=None)
    assert without(CHAT, "reasoning").turns[-1] == Turn("assistant", "12.", 0.5)
    bare = without(without(without(CHAT, "tools"), "tool_calls"), "reasoning")
    assert bare.turns == (ASK, ANSWER, ASK, Turn("assistant", "12.", 0.5))
    assert not list(parts_of(bare.turns, bare.tools))
    validate(bare)
    for part in ("tools", "tool_calls", "reasoning"):
        assert without(bare, part) is bare
    with pytest.raises(ValueError, match="parts are tools, tool_calls, reasoning"):
        without(CHAT, "weight")


def test_a_null_is_lost_only_where_a_column_file_made_it(tmp_path: Path) -> None:
    def row(name: str, properties: dict[str, Any], arguments: Any) -> dict[str, Any]:
        called = {"function": {"name": name, "arguments": arguments}}
        function = {"name": name, "parameters": {"type": "object", "properties": properties}}
        turns = [MESSAGES[0], {"role": "assistant", "content": None, "tool_calls": [called]}]
        return {"messages": turns, "tools": [{"type": "function", "function": function}]}

    first = row("f", {"unit": {"type": "string", "default": None}}, {"unit": None, "b": 1})
    (record,), _ = run(write_lines(tmp_path / "rows.jsonl", [first]))
    assert record.turns[1].tool_calls[0].arguments == '{"unit": null, "b": 1}'
    assert json.loads(record.tools) == first["tools"]
    text = '{"name": "f", "arguments": {"unit": null, "b": 1}}'
    said = [{"from": "human", "value": "q"}, {"from": "function_call", "value": text}]
    (record,), _ = run(write_lines(tmp_path / "said.jsonl", [{"conversations": said}]))
    assert record.turns[1].tool_calls[0].arguments == '{"unit": null, "b": 1}'

    import pyarrow
    import pyarrow.parquet

    number = {"b": {"type": "number"}}
    rows = [row("f", {"a": {"type": "string"}}, {"a": "x"}), row("g", number, {"b": 2})]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    found, _ = run(tmp_path / "rows.parquet")
    assert [record.turns[1].tool_calls[0].arguments for record in found] == [
        '{"a": "x"}',
        '{"b": 2}',
    ]
    assert "null" not in found[0].tools + found[1].tools


def test_arguments_are_text_and_keep_what_text_says() -> None:
    assert arguments_text({"a": 1, "b": None}, "x") == '{"a": 1, "b": null}'
    assert arguments_text('{"b": null,"a":1}', "x") == '{"b": null, "a": 1}'
    assert arguments_text(None, "x") == arguments_text("", "x") == "{}"
