"""LLaMA-Factory's dataset_info.json beside data: fields under its names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayward.data.formats.registry import outcomes, read
from rayward.data.formats.rows.fields import ReadOptions
from rayward.data.records import Conversation, Labelled, Preference, Record, Turn
from tests.data.examples import run, write_lines

QA = (Turn("user", "q"), Turn("assistant", "a"))
TALK = [{"who": "customer", "text": "q"}, {"who": "bot 7", "text": "a"}]
TAGS = {
    "role_tag": "who",
    "content_tag": "text",
    "user_tag": "customer",
    "assistant_tag": "bot 7",
}

# Entries without the file's name, the row, and what it is.
ENTRIES: dict[str, tuple[dict[str, Any], dict[str, Any], Record]] = {
    "alpaca": (
        {"columns": {"prompt": "ask", "query": "with", "response": "reply", "system": "sys"}},
        {"ask": "Add.", "with": "1 2", "reply": "3", "sys": "Be brief."},
        Conversation(
            (
                Turn("system", "Be brief."),
                Turn("user", "Add.\n\n### Input:\n1 2"),
                Turn("assistant", "3"),
            ),
            "alpaca",
        ),
    ),
    "swapped": (
        {"columns": {"prompt": "output", "response": "instruction"}},
        {"output": "q", "instruction": "a"},
        Conversation(QA, "alpaca"),
    ),
    "ranking": (
        {"ranking": True, "columns": {"prompt": "ask", "chosen": "good", "rejected": "bad"}},
        {"ask": "q", "good": "a", "bad": "b"},
        Preference(QA[:1], "a", "b", None, "question_pairs"),
    ),
    "sharegpt": (
        {"formatting": "sharegpt", "columns": {"messages": "talk"}, "tags": TAGS},
        {"talk": TALK},
        Conversation(QA, "openai"),
    ),
    "sharegpt_of_its_own_names": (
        {"formatting": "sharegpt", "columns": {"messages": "conversations"}},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        Conversation(QA, "sharegpt"),
    ),
    "sharegpt_ranking": (
        {
            "formatting": "sharegpt",
            "ranking": True,
            "columns": {"messages": "conversations", "chosen": "good", "rejected": "bad"},
            "tags": TAGS,
        },
        {"conversations": TALK[:1], "good": TALK[1], "bad": {"who": "bot 7", "text": "b"}},
        Preference(QA[:1], "a", "b", None, "sharegpt_pairs"),
    ),
    "kto": (
        {
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "kto_tag": "liked"},
            "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user"},
        },
        {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "liked": False,
        },
        Labelled(QA[:1], "a", False, "openai"),
    ),
}


def write_info(folder: Path, entries: dict[str, Any]) -> None:
    (folder / "dataset_info.json").write_text(json.dumps(entries))


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_names_the_fields(name: str, tmp_path: Path) -> None:
    entry, row, expected = ENTRIES[name]
    write_info(tmp_path, {"other": {"hf_hub_url": "x"}, name: entry | {"file_name": "a.jsonl"}})
    path = write_lines(tmp_path / "a.jsonl", [row])
    for given in (path, tmp_path):
        records, report = run(given)
        assert records == [expected] and not report.passed_over


def test_columns_of_parquet_and_files_in_a_folder(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "parts").mkdir()
    table = pyarrow.table({"ask": ["q"], "reply": ["a"], "input": ["x"], "note": ["y"]})
    pyarrow.parquet.write_table(table, tmp_path / "parts" / "a.parquet")
    columns = {"prompt": "ask", "response": "reply", "query": "absent"}
    write_info(tmp_path, {"mine": {"file_name": "parts", "columns": columns}})
    records, report = run(tmp_path)
    assert records == [Conversation(QA, "alpaca")]
    # A field that happens to be called as another one is for readers is not read in its place.
    assert report.passed_over == {"input": 1, "note": 1}
    path = write_lines(tmp_path / "parts" / "b.jsonl", [{"ask": "q", "reply": "a", "input": "x"}])
    records, report = run(path)
    assert records == [Conversation(QA, "alpaca")] and report.passed_over == {"unnamed input": 1}


def test_errors_have_the_names_of_the_file(tmp_path: Path) -> None:
    entry = {"file_name": "a.jsonl", "columns": {"prompt": "ask", "response": "reply"}}
    write_info(tmp_path, {"mine": entry})
    path = write_lines(tmp_path / "a.jsonl", [{"ask": "q", "reply": "a"}, {"ask": "q"}])
    _, report = run(path)
    assert [(row.line, row.field) for row in report.rejected_rows] == [(2, "reply")]


def test_named_formats_and_mapped_fields_do_without(tmp_path: Path) -> None:
    columns = {"prompt": "answer", "response": "question"}
    write_info(tmp_path, {"mine": {"file_name": "a.jsonl", "columns": columns}})
    path = write_lines(tmp_path / "a.jsonl", [{"question": "q", "answer": "a"}])
    assert [record.turns for record in read(path)] == [(Turn("user", "a"), Turn("assistant", "q"))]
    assert [record.turns for record in read(path, "gsm8k")] == [QA]
    asked = ReadOptions(fields={"prompt": "question", "response": "answer"})
    (outcome,) = outcomes(path, options=asked)
    assert outcome.records[0].turns == QA


def test_what_is_wrong_with_it(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"ask": "q", "reply": "a"}])
    entry = {"file_name": "a.jsonl", "columns": {"prompt": "ask", "response": "reply"}}
    write_info(tmp_path, {"one": entry, "two": entry | {"columns": {"prompt": "reply"}}})
    with pytest.raises(ValueError, match=r"dataset_info.json: several entries .* of a.jsonl"):
        read(path)
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset_info.json: not JSON"):
        read(path)
    # As `datasets` writes it, and entries that are none.
    for info in ({"features": {"ask": {"dtype": "string"}}}, [], {"x": {"file_name": 3}}):
        write_info(tmp_path, info)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="fit no known format"):
            read(path)


def test_a_changed_map_is_no_finished_work(tmp_path: Path) -> None:
    from rayward.configs.sections.data import Data
    from rayward.pipelines.rows.reading import contents

    (tmp_path / "parts").mkdir()
    for name in ("a.jsonl", "parts/b.jsonl"):
        write_lines(tmp_path / name, [{"ask": "q", "reply": "a"}])
    data = Data(root=str(tmp_path), conversations=[{"path": "a.jsonl"}, {"path": "parts"}])
    before = contents(data)
    write_info(tmp_path, {})
    with_map = contents(data)
    write_info(tmp_path, {"mine": {"file_name": "a.jsonl"}})
    assert {*before} | {"dataset_info.json"} == {*with_map} == {*contents(data)}
    assert with_map != contents(data)
