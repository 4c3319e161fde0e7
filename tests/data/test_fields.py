"""What becomes of every field of a row: read, ignored, passed over, or its row set aside."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayward.data.formats.beside import read_row
from rayward.data.formats.convert import convert
from rayward.data.formats.files.column_rows import unopened
from rayward.data.formats.known.formats import FORMATS
from rayward.data.formats.registry import Report, outcomes, read
from rayward.data.formats.rows.fields import (
    EVERYTHING,
    TURN,
    ReadOptions,
    is_empty,
    left,
    paths,
    tree,
)
from rayward.data.formats.rows.meaning import MEANING_OF
from rayward.data.records import Conversation, Labelled, RowError
from tests.data.examples import RECORDS, ROWS, write_lines

HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
PAIR = {"chosen": [*HI], "rejected": [HI[0], {"role": "assistant", "content": "No"}]}
# Beside the example of each format: rows that use its other fields.
MORE = {
    "kto": [{"prompt": "q", "completion": "a", "label": 1}],
    "prompt_completion": [
        {"prompt": HI[:1], "completion": HI[1:]},
        {"prompt": "q", "response": "a"},
    ],
    "hh_rlhf": [PAIR | {"margin": 1}],
    "openai": [PAIR | {"prompt": HI[:1]}, PAIR | {"messages": HI[:1]}, {"prompt": "q"}],
    "sharegpt": [{"items": HI}, {"conversations": [{"human": "q", "gpt": "a"}]}],
    "swift_pairs": [
        {"messages": HI, "rejected_messages": HI[1:]},
        {"query": "q", "response": "a", "rejected_response": "b"},
    ],
    "response_pairs": [
        {"prompt": "q", "chosen_response": "a", "rejected_response": "b"},
        {"instruction": "q", "input": "i", "chosen_response": "a", "rejected_response": "b"},
    ],
    "webgpt": [ROWS["webgpt"] | {"id": 1, "question": "q"}],
    "summarize_feedback": [ROWS["summarize_feedback"] | {"info": {"article": "x"}}],
    "arena_conversations": [ROWS["arena_conversations"] | {"question_id": "", "id": 1}],
    "exchange": [{"user": "q", "bot": "a"}],
    "arena_hard": [{"uid": "u", "category": "c", "subcategory": "s", "prompt": "q"}],
    "sharegpt_pairs": [PAIR | {"conversations": HI[:1]}],
    "question_pairs": [{"instruction": "q", "input": "i", "chosen": HI[1:], "rejected": "n"}],
    "rewardbench": [
        {"prompt": HI[:1], **PAIR},
        {"prompt": "q", "chosen": ["a"], "rejected": ["b"], "num_correct": 1, "num_incorrect": 1},
    ],
    "rm_bench": [{"prompt": HI[:1], **PAIR, "domain": "d"}],
    "conversation": [{"conversation": HI}],
    "ultrafeedback": [
        {
            "instruction": "q",
            "completions": [
                {"response": "a", "fine-grained_score": 1, "overall_score": 2},
                {"response": "b", "fine-grained_score": 2, "overall_score": 1},
            ],
        }
    ],
    "alpaca": [{"instruction": "q", "context": "c", "response": "a"}],
    "pandalm": [{"instruction": "q", "response1": "a", "response2": "b", "annotator1": 1}],
    "mt_bench_answers": [{"question_id": 81, "model_id": "m", "text": "a"}],
}


class Watched(dict):
    """An object that notes the paths of the fields that are asked for."""

    def __init__(self, value: dict, asked: set[str], path: str = "") -> None:
        super().__init__(
            {name: watched(inner, asked, f"{path}{name}") for name, inner in value.items()}
        )
        self.asked, self.path = asked, path

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(self.path + name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> Any:
        self.asked.add(self.path + name)
        return super().__getitem__(name)

    def items(self) -> Any:  # as readers walk over fields whose names they do not know
        for name, value in super().items():
            if isinstance(value, Watched):
                value.path = f"{self.path}*."
            yield name, value


def watched(value: Any, asked: set[str], path: str) -> Any:
    if isinstance(value, dict):
        return Watched(value, asked, f"{path}.")
    return [watched(item, asked, path) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", sorted({*FORMATS} - {"rayward"}))
def test_a_format_reads_what_it_declares(name: str) -> None:
    asked: set[str] = set()
    for row in [ROWS[name], *MORE.get(name, [])]:
        try:
            FORMATS[name].convert(Watched(row, asked), [])
        except RowError as error:  # of answers without their question file, after what is read
            assert name == "mt_bench_answers" and error.reason == "no question"
    # Replies to replies, at whatever depth, are one path.
    asked = {re.sub(r"(replies\.)+replies\b", "replies", path) for path in asked}
    # The objects on the way to a field are no fields of their own.
    on_the_way = {path for path in asked if any(other.startswith(f"{path}.") for other in asked)}
    declared = FORMATS[name].reads
    above = {
        ".".join(path.split(".")[:size])
        for path in declared
        for size in range(1, path.count(".") + 1)
    }
    # A path without longer ones below it stands for all that is in the field.
    whole = tuple(f"{path}." for path in declared - above)
    within = {path for path in asked if path.startswith(whole)}
    assert asked - on_the_way - above - within <= declared
    if name != "mt_bench_answers":
        # A turn has one of two pairs of names.
        unread = {path for path in declared - asked if path.rpartition(".")[2] not in TURN}
        assert not unread - on_the_way


def test_what_is_left_of_a_row() -> None:
    node = tree(paths("id @turns notes.*.mark"))
    row = {
        "id": 1,
        "turns": [{"role": "user", "content": "q", "name": "Bo"}, {"role": "x", "mood": [0]}],
        "notes": {"one": {"mark": 2, "by": "Ada"}, "n": 5},
        "empty": [None, "", {"x": []}],
        "nan": float("nan"),
        "zero": 0,
        "no": False,
    }
    assert [(place, path) for place, path, _, _ in left(row, node)] == [
        ("turns[0].name", "turns.name"),
        ("turns[1].mood", "turns.mood"),
        ("notes.one.by", "notes.one.by"),
        ("notes.n", "notes.n"),
        ("zero", "zero"),
        ("no", "no"),
    ]
    assert not list(left(row, tree({EVERYTHING})))


@pytest.mark.parametrize("name", sorted({*FORMATS} - {"rayward", "mt_bench_answers"}))
@settings(max_examples=15, deadline=None)
@given(
    st.text("abcxyz_ é", min_size=1).map(lambda text: f"x{text}"),
    st.one_of(st.integers(), st.text(min_size=1), st.lists(st.integers(), min_size=1)),
)
def test_a_field_of_any_name_is_never_passed_over_in_silence(
    name: str, field: str, value: Any
) -> None:
    found = list(left(ROWS[name] | {field: value}, FORMATS[name].tree))
    # A row's own fields of no use are there, too.
    assert is_empty(value) or field in [path for _, path, _, _ in found]


@pytest.mark.parametrize("name", sorted({*FORMATS} - {"rayward", "mt_bench_answers"}))
def test_a_field_that_carries_meaning_is_read_or_named(name: str) -> None:
    values = {"history": [["q", "a"]], "label": True, "reward_model": {"ground_truth": "t"}}
    form, plain = FORMATS[name], RECORDS[name]
    for field, meaning in MEANING_OF.items():
        if field in ROWS[name] or field in form.tree or "*" in form.tree:  # an object of any name
            continue
        row = ROWS[name] | {field: values.get(field, "t")}
        try:
            records, passed_over = read_row(form, row, [], ReadOptions())
        except RowError as error:
            assert field in error.field or "verdict" in error.reason, field
            continue
        assert records != [plain] or field in passed_over, field
        assert meaning.beside, field


def accounts(path: Path, **asked: Any) -> tuple[list, Report]:
    report, found = Report(), []
    for outcome in outcomes(path, options=ReadOptions(**asked)):
        report.count(outcome)
        found += outcome.records
    return found, report


def test_what_the_user_ignores(tmp_path: Path) -> None:
    said = {"role": "assistant", "content": "Hello", "reasoning_content": "A greeting."}
    rows = [
        {"messages": HI, "tools": [{"name": "f"}], "system": "Be brief."},
        {"messages": [HI[0], said]},
        {"messages": HI, "tools": []},
        {"messages": HI, "images": ["a.png"]},
        {"messages": HI, "label": False},
        {"messages": HI, "label": "harmless"},
    ]
    path = tmp_path / "a.jsonl"
    write_lines(path, rows)
    plain, report = accounts(path)
    assert report.rejected == {
        "images cannot be kept": 1,
        "no verdict on the answer": 1,
    }
    ignored = frozenset({"tools", "messages.reasoning_content", "images", "label", "system"})
    found, report = accounts(path, ignore=ignored)
    assert plain[0].tools and plain[0].turns[0].role == "system" and plain[1].turns[1].reasoning
    hello = plain[2]
    assert [type(record) for record in found] == [Conversation] * 3 + [Labelled, Conversation]
    assert found[0] == found[1] == found[2] == found[4] == hello and not found[3].good
    # Neither a picture nor a verdict can be done without.
    assert report.rejected == {"images cannot be kept": 1}
    assert report.repaired == {
        "ignored tools": 1,
        "ignored messages.reasoning_content": 1,
        "ignored system": 1,
        "ignored label": 1,
    }


def test_good_answers_are_conversations_on_request_and_bad_ones_never(tmp_path: Path) -> None:
    rows = [{"messages": HI, "label": label} for label in (True, False, None)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    found, report = accounts(path)
    assert [record.good for record in found] == [True, False]
    assert report.rejected == {"no verdict on the answer": 1}
    found, report = accounts(path, imitate_good=True)
    assert [type(record) for record in found] == [Conversation]
    assert report.rejected == {"no verdict on the answer": 1, "bad answer": 1}


def test_tools_stay_beside_a_verdict_and_parts_of_the_answer_are_refused(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    calls = [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]
    said = {"role": "assistant", "content": "a"}
    answered = {"messages": [HI[0], said], "tools": tools}
    for number, verdict in enumerate(("label", "kto_tag")):
        path = write_lines(tmp_path / f"{number}.jsonl", [answered | {verdict: True}])
        (labelled,), _ = accounts(path)
        (imitated,), _ = accounts(path, imitate_good=True)
        assert isinstance(labelled, Labelled) and isinstance(imitated, Conversation)
        assert json.loads(labelled.tools) == json.loads(imitated.tools) == tools
    refused = {
        "turns[1].reasoning": {"messages": [HI[0], said | {"thinking": "r"}], "label": True},
        "turns[1].tool_calls": {"messages": [HI[0], said | {"tool_calls": calls}], "label": True},
    }
    for field, row in refused.items():
        (outcome,) = outcomes(write_lines(tmp_path / "refused.jsonl", [row]))
        assert outcome.rejected().field == field
    row = answered | {"kto_tag": True, "reasoning": "r"}
    (outcome,) = outcomes(write_lines(tmp_path / "refused.jsonl", [row]))
    assert outcome.error.reason == "labelled answer with reasoning"


def test_a_verdict_may_go_where_there_is_no_answer_to_imitate(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b", "label": 1},
        {"prompt": "q", "label": 1},
        {"messages": HI, "label": 0},
    ]
    for number, row in enumerate(rows):
        path = write_lines(tmp_path / f"{number}.jsonl", [row])
        (outcome,) = outcomes(path)
        assert number == 2 or "(ignore label " in outcome.rejected().expected
        found, report = accounts(path, ignore=frozenset({"label"}))
        assert len(found) == 1 and not report.rejected
        assert isinstance(found[0], Labelled) == (number == 2)
        assert report.repaired == ({} if number == 2 else {"ignored label": 1})


def test_a_reader_s_own_reference_is_not_replaced(tmp_path: Path) -> None:
    row = {"question_id": 1, "category": "math", "turns": ["2+2?"], "reference": ["4"]}
    path = write_lines(tmp_path / "a.jsonl", [row | {"answer": "long"}])
    found, report = accounts(path)
    assert [record.reference for record in found] == ["4"]
    assert report.passed_over == {"answer": 1}


def test_columns_that_nobody_needs_are_not_opened(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(
        {
            "instruction": ["a", "b", "c"],
            "output": ["x", "y", "z"],
            "annotator": ["Ada", None, "Bo"],
            "none": pyarrow.array([None] * 3, pyarrow.string()),
            "at": pyarrow.array([0, 1 << 60, None], pyarrow.timestamp("ms")),
            "meta": [{"n": 1}, None, {"n": None}],
        }
    )
    parquet, arrow = tmp_path / "a.parquet", tmp_path / "b.arrow"
    pyarrow.parquet.write_table(table, parquet, row_group_size=2)
    with pyarrow.ipc.new_stream(arrow, table.schema) as writer:
        writer.write_table(table)
    found, report = accounts(parquet)
    assert len(found) == 3 and report.passed_over == {"annotator": 2, "at": 2, "meta": 1}
    assert unopened(parquet, frozenset({"instruction", "at"})).keys() == {
        "output",
        "annotator",
        "meta",
    }
    found, report = accounts(arrow)
    assert len(found) == 3 and report.passed_over == {"annotator": 2, "at": 2, "meta": 2}
    # The bytes of a column that is not opened may be damaged.
    chunk = pyarrow.parquet.ParquetFile(parquet).metadata.row_group(0).column(2)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    damaged = bytearray(parquet.read_bytes())
    damaged[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    parquet.write_bytes(damaged)
    assert len(accounts(parquet)[0]) == 3


def test_the_account_of_a_conversion(tmp_path: Path) -> None:
    rows = [{"messages": HI, "annotator": "Ada"}] * 3 + [{"messages": HI, "tools": "f"}]
    path, out = write_lines(tmp_path / "a.jsonl", rows), tmp_path / "out.jsonl"
    account = convert(path, out)
    assert account.as_dict() == {
        "read": 4,
        "converted": 3,
        "written": 3,
        "expanded": 0,
        "rejected": {"text that is no JSON": 1},
        "repaired": {},
        "passed_over": {"annotator": 3},
    }
    account = convert(path, out, options=ReadOptions(frozenset({"tools"})))
    assert (account.written, account.repaired) == (4, {"ignored tools": 1})
    (bad,) = outcomes(write_lines(tmp_path / "b.jsonl", rows[3:]))
    assert bad.error.as_dict()["field"] == "tools"
    json.dumps(account.as_dict())


def rows_of(text: str, tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "x.json").write_text(text)
    report = Report()
    list(read(tmp_path / "x.json", report=report))
    yield from (report.read, report.kept, report.rejected.total())


@pytest.mark.parametrize(
    "text, counts",
    [
        ("[A, A]", (2, 2, 0)),
        ("[A A, A]", (3, 2, 1)),
        ("[A, A] [A, A, A]", (5, 2, 3)),
        ("[A, A][]", (3, 2, 1)),
        ("[A] x", (2, 1, 1)),
        ("[A] {", (2, 1, 1)),
    ],
)
def test_what_follows_a_missing_comma_or_a_second_array_counts(
    text: str, counts: tuple, tmp_path: Path
) -> None:
    assert tuple(rows_of(text.replace("A", json.dumps(ROWS["alpaca"])), tmp_path)) == counts
