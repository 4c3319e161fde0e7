"""What a row says is in its record, is counted as passed over, or sets the row aside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rayward.data.formats.beside import read_row
from rayward.data.formats.known.formats import FORMATS
from rayward.data.formats.rows.fields import ReadOptions
from rayward.data.records import (
    Conversation,
    Labelled,
    Preference,
    Prompt,
    Record,
    ToolCall,
    Turn,
)
from tests.data.examples import detect, write_lines
from tests.data.test_cases import read_all, tools_of_name

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


def test_an_answer_in_a_column_is_not_passed_over(tmp_path: Path) -> None:
    rows = [{"messages": SPOKEN, "response": None}, {"messages": SPOKEN, "response": "b"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read_all(tmp_path / "a.parquet")[0] == [CHAT, "response"]


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


@pytest.mark.parametrize(
    "more, weight",
    [
        ({"masked": True}, 0.0),
        ({"masked": False}, 1.0),
        ({"training": False}, 0.0),
        ({"trainable": True}, 1.0),
        ({"weight": float("nan")}, None),
    ],
)
def test_masks_of_turns(more: dict[str, Any], weight: float | None) -> None:
    row = {"messages": [SPOKEN[0], SPOKEN[1] | more]}
    told = Conversation((*Q, Turn("assistant", "a", weight)), "openai")
    assert read_row(FORMATS["openai"], row, [], ReadOptions())[0] == [told]


@pytest.mark.parametrize("more", [{"mask": 1}, {"train_detail": [{"train": False}]}])
def test_masks_that_are_not_read(more: dict[str, Any], tmp_path: Path) -> None:
    row = {"messages": [SPOKEN[0], SPOKEN[1] | more]}
    assert found_in(row, tmp_path) == [f"messages[1].{next(iter(more))}"]


# ---- reference answers


@pytest.mark.parametrize(
    "answer, text",
    [
        ("[]", "[]"),
        ("{}", "{}"),
        ("null", "null"),
        (42.0, "42"),
        (0.5, "0.5"),
        (1e22, "1" + "0" * 22),
        (-3, "-3"),
        (1e-7, "0.0000001"),
        (["[]"], "[]"),
    ],
)
def test_a_reference_as_it_is_written(answer: Any, text: str, tmp_path: Path) -> None:
    row = {"prompt": "q", "ground_truth": answer}
    assert found_in(row, tmp_path) == [Prompt(Q, reference=text)]


@pytest.mark.parametrize("quoted", [json.dumps, str])
def test_a_reward_model_in_text(quoted: Callable[[Any], str], tmp_path: Path) -> None:
    row = {"prompt": "q", "reward_model": quoted({"style": "rule", "ground_truth": "2"})}
    assert found_in(row, tmp_path) == [Prompt(Q, reference="2")]


# ---- turns in text

ASK, SAY = (json.dumps(turn) for turn in SPOKEN)
BAD = json.dumps(SPOKEN[1] | {"content": "b"})
IN_WORDS = {"prompt": '{"role": "admin"} is what?'}
TURNS = json.dumps(SPOKEN)


@pytest.mark.parametrize(
    "row, record",
    [
        ({"prompt": ASK, "completion": SAY}, CHAT),
        ({"prompt": str(SPOKEN[0]), "completion": str(SPOKEN[1])}, CHAT),
        ({"prompt": ASK, "chosen": SAY, "rejected": BAD}, Preference(Q, "a", "b")),
        (IN_WORDS, Prompt((Turn("user", IN_WORDS["prompt"]),))),
        ({"question": TURNS, "answer": "a"}, "question"),
        ({"question": ASK, "response": "a"}, "question"),
        ({"instruction": "q", "output": TURNS}, "output"),
        ({"instruction": TURNS, "output": "a"}, "instruction"),
    ],
)
def test_turns_in_text_are_no_words(
    row: dict[str, Any], record: Record | str, tmp_path: Path
) -> None:
    assert found_in(row, tmp_path) == [record]


def test_a_prompt_in_a_frame(tmp_path: Path) -> None:
    row = {"prompt": "Human: q\n\nAssistant: a\n\nHuman: r"}
    assert found_in(row, tmp_path) == [Prompt((*QA, Turn("user", "r")))]


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>user\nq<|im_end|>",
        "[INST] q [/INST]",
        "<s>[INST] q [/INST]",
        "### Human: q\n### Assistant:",
        "USER: q ASSISTANT:",
        "<|start_header_id|>user",
    ],
)
def test_a_prompt_in_the_frame_of_another_template(text: str, tmp_path: Path) -> None:
    assert found_in({"prompt": text}, tmp_path) == ["prompt"]
    assert found_in({"prompt": text, "chosen": "a", "rejected": "b"}, tmp_path) == ["prompt"]
    assert found_in({"prompt": f"What is {text}?"}, tmp_path) != ["prompt"]


# ---- names

SYSTEM = Turn("system", "Be brief.")


@pytest.mark.parametrize(
    "more, record",
    [
        ({"System": "Be brief."}, Conversation((SYSTEM, *QA))),
        ({"systemPrompt": "Be brief."}, Conversation((SYSTEM, *QA))),
        ({"sys-prompt": "Be brief."}, Conversation((SYSTEM, *QA))),
        ({"KTO_tag": False}, Labelled(Q, "a", False)),
        ({"is_correct": False}, Labelled(Q, "a", False)),
        ({"isChosen": 1}, Labelled(Q, "a", True)),
        ({"thumbs_up": "true"}, Labelled(Q, "a", True)),
        ({"Tools": [{"name": "f"}]}, Conversation(QA, tools=tools_of_name("f"))),
        ({"Reasoning": "Hm."}, Conversation((*Q, Turn("assistant", "a", None, "Hm.")))),
        ({"image_path": "x.png"}, "image_path"),
        ({"audioPath": "x.wav"}, "audioPath"),
    ],
)
def test_names_in_other_spellings(
    more: dict[str, Any], record: Record | str, tmp_path: Path
) -> None:
    assert found_in({"messages": SPOKEN, **more}, tmp_path) == [record]


def test_a_reference_of_another_spelling(tmp_path: Path) -> None:
    row = {"prompt": "q", "Solution": "1 + 1", "groundTruth": "2"}
    assert found_in(row, tmp_path) == [Prompt(Q, reference="2")]


# ---- parts, verdicts


def test_parts_that_are_ignored(tmp_path: Path) -> None:
    parts = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "a"}]
    row = {"messages": [SPOKEN[0], SPOKEN[1] | {"content": parts}]}
    assert found_in(row, tmp_path) == ["messages[1].content[0].type"]
    assert found_in(row, tmp_path, ignore=frozenset(["thinking"])) == [CHAT]


@pytest.mark.parametrize("winner", ["A", "Model_A", "model_a", "tie (bothbad)", "Tie", "c"])
def test_winners(winner: str, tmp_path: Path) -> None:
    row = {"prompt": "q", "response_a": "a", "response_b": "b", "winner": winner}
    pair = Preference(Q, "a", "b") if winner.endswith(("A", "a")) else "winner"
    assert found_in(row, tmp_path) == [pair]
    talks = {f"conversation_{side}": [SPOKEN[0], SPOKEN[1] | {"content": side}] for side in "ab"}
    assert found_in(talks | {"winner": winner}, tmp_path) == [pair]


def test_the_margin_of_framed_pairs(tmp_path: Path) -> None:
    row = {side: f"\n\nHuman: q\n\nAssistant: {side}" for side in ("chosen", "rejected")}
    pair = Preference(Q, "chosen", "rejected", 2.0)
    assert found_in(row | {"margin": 2}, tmp_path) == [pair]
