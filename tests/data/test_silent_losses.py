"""What a row says is in its record, is counted as passed over, or sets the row aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rayward.data.records import Conversation, Record, ToolCall, Turn
from tests.data.examples import detect, write_lines
from tests.data.test_cases import read_all

Q, QA = (Turn("user", "q"),), (Turn("user", "q"), Turn("assistant", "a"))
CHAT = Conversation(QA)
SPOKEN = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
OTHER_CALL = {"function_call": {"name": "g", "arguments": {}}}


def found_in(row: dict[str, Any], folder: Path, **asked: Any) -> list[Record | str]:
    return read_all(write_lines(folder / "a.jsonl", [row]), **asked)[0]


# ---- the format of a file


@pytest.mark.parametrize(
    "rows, form",
    [
        (
            [{"prompt": "q", "completion": None}, {"prompt": "q", "completion": "a"}],
            "prompt_completion",
        ),
        ([{"prompt": "q"}, {"prompt": "q", "chosen": "a", "rejected": "b"}], "openai"),
        ([{"instruction": "q"}, {"instruction": "q", "input": "x", "output": "a"}], "alpaca"),
        # Null for longer than the first rows are looked at.
        (
            [{"prompt": "q", "completion": None}] * 30 + [{"prompt": "q", "completion": "a"}],
            "prompt_completion",
        ),
        # A column that is always empty is none.
        ([{"prompt": "q", "completion": None}] * 30, "prompts"),
        # Other rows than the first are no wider ones.
        ([{"messages": []}, {"prompt": "q", "completion": "a"}], "openai"),
        ([{"prompt": "q", "completion": "a"}, {"messages": []}], "prompt_completion"),
    ],
)
def test_a_null_in_the_first_row_hides_no_format(
    rows: list[dict[str, Any]], form: str, tmp_path: Path
) -> None:
    assert detect(write_lines(tmp_path / "a.jsonl", rows)) == form


def test_a_null_in_the_first_row_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("instruction,input,output\nWrite,,\nq,,a\n")
    assert read_all(tmp_path / "a.csv")[0] == ["output", CHAT]
    table = pyarrow.table({"prompt": ["q", "q"], "completion": [None, "a"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert read_all(tmp_path / "a.parquet")[0] == ["completion", CHAT]


# ---- rows of another format than their file's


@pytest.mark.parametrize(
    "rows, field",
    [
        ([{"messages": SPOKEN}, {"prompt": "q", "completion": "a"}], "completion"),
        ([{"messages": SPOKEN}, {"prompt": "q", "response": "a"}], "response"),
        ([{"instruction": "q", "output": "a"}, {"instruction": "q", "chosen": "b"}], "output"),
        ([{"messages": SPOKEN}, {"messages": SPOKEN, "output": "b"}], "output"),
    ],
)
def test_an_answer_is_not_passed_over(
    rows: list[dict[str, Any]], field: str, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "a.jsonl", rows)
    assert read_all(path)[0] == [CHAT, field]


def test_an_answer_that_is_in_the_record_or_ignored(tmp_path: Path) -> None:
    row = {"messages": SPOKEN, "response": "a", "answer": "42"}
    assert found_in(row, tmp_path) == [CHAT]
    assert found_in(row | {"response": "b"}, tmp_path, ignore=frozenset(["response"])) == [CHAT]


# ---- two fields for one thing

ASKED = {"question": "q", "chosen": "a", "rejected": "b"}
TOLD = {"name": "f", "arguments": {}}


@pytest.mark.parametrize(
    "row, field",
    [
        ({"prompt": "You are a pirate.", "messages": SPOKEN}, "prompt"),
        ({"messages": SPOKEN, "prompt": "r", "chosen": "x", "rejected": "y"}, "messages"),
        ({"instruction": "q", "input": "x", "context": "LONG", "output": "a"}, "context"),
        ({"instruction": "q", "output": "a", "response": "b"}, "response"),
        (ASKED | {"input": "x"}, "input"),
        (ASKED | {"instruction": "x"}, "instruction"),
        ({"prompt": "q", "completion": "a", "response": "b"}, "response"),
        ({"conversations": SPOKEN, "items": [{"from": "human", "value": "x"}]}, "items"),
        ({"human": "q", "gpt": "a", "bot": "b"}, "bot"),
        ({"prompt": "q", "completion": "42", "response": "4"}, "response"),
        ({"messages": [SPOKEN[0], SPOKEN[1] | {"value": "b"}]}, "messages[1].value"),
        (
            {"messages": [SPOKEN[0], SPOKEN[1] | {"tool_calls": [TOLD]} | OTHER_CALL]},
            "messages[1].function_call",
        ),
    ],
)
def test_of_two_fields_for_one_text_none_is_lost(
    row: dict[str, Any], field: str, tmp_path: Path
) -> None:
    assert found_in(row, tmp_path) == [field]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "messages": SPOKEN},
        {"prompt": "\n\nHuman: q\n\nAssistant:", "messages": SPOKEN},
        {"instruction": "q", "output": "a", "response": "a"},
        {"prompt": "q", "completion": "a", "response": " a"},
        {"conversations": SPOKEN, "items": SPOKEN},
        {"messages": [SPOKEN[0] | {"value": "q"}, SPOKEN[1] | {"value": ""}]},
    ],
)
def test_the_same_text_twice(row: dict[str, Any], tmp_path: Path) -> None:
    assert found_in(row, tmp_path) == [CHAT]


def test_the_context_is_the_input_where_that_is_empty(tmp_path: Path) -> None:
    row = {"instruction": "q", "input": "", "context": "LONG", "output": "a"}
    asked = Turn("user", "q\n\n### Input:\nLONG")
    assert found_in(row, tmp_path) == [Conversation((asked, QA[1]))]


# ---- beside the text of a turn


def test_what_stands_beside_an_exchange_is_of_its_answer(tmp_path: Path) -> None:
    call = {"tool_calls": [TOLD]}
    more = {"weight": 0.5, "reasoning": "Hm."}
    for names in (("input", "output"), ("human", "assistant")):
        pair = dict(zip(names, ("q", "a"), strict=True)) | more | call
        told = Turn("assistant", "a", 0.5, "Hm.", (ToolCall("f", "{}"),))
        row = {"conversation": [pair]}
        assert found_in(row, tmp_path) == [Conversation((*Q, told))]


def test_the_reasoning_before_a_call(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "q"}]
    call = {"from": "function_call", "value": '{"name": "f"}', "reasoning_content": "Hm."}
    row = {"conversations": [*turns, call]}
    told = Turn("assistant", "", None, "Hm.", (ToolCall("f", "{}"),))
    assert found_in(row, tmp_path) == [Conversation((*Q, told))]
    other = call | {"tool_calls": [{"name": "g"}]}
    assert found_in({"conversations": [*turns, other]}, tmp_path) == ["conversations[1].tool_calls"]
