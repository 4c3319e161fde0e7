"""`rayward data check`: the format, what each field became, and a map where no format fits."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from rayward.data.formats.proposal import as_options, propose
from rayward.pipelines.cli import main

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases" / "data"
Rows = list[dict[str, Any]]


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def checked(
    path: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, dict[str, Any]]:
    code = main(["data", "check", str(path), "--json", *options])
    return code, json.loads(capsys.readouterr().out)


def say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


LAYOUTS: list[tuple[str, dict[str, Any], dict[str, str], dict[str, int]]] = [
    (
        "sharegpt",
        {
            "id": "a1",
            "model": "gpt-4",
            "system": "Be brief.",
            "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}],
            "views": 3,
        },
        {"id": "id", "model": "quality", "system": "system", "conversations": "messages"},
        {"views": 1},
    ),
    (
        "alpaca",
        {"instruction": "Add.", "input": "1 and 2, please", "output": "3", "annotator": "x"},
        {"instruction": "prompt", "input": "prompt", "output": "response"},
        {"annotator": 1},
    ),
    (
        "openai",
        {"messages": [say("user", "Hi"), say("assistant", "Ho")], "meta": {"a": 1, "b": None}},
        {"messages": "messages"},
        {"meta": 1},
    ),
    (
        "openai",
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No.", "margin": 2.5},
        {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", "margin": "margin"},
        {},
    ),
    (
        "hh_rlhf",
        {
            "chosen": "\n\nHuman: Why?\n\nAssistant: So.",
            "rejected": "\n\nHuman: Why?\n\nAssistant: No.",
        },
        {"chosen": "prompt + chosen", "rejected": "prompt + rejected"},
        {},
    ),
    (
        "arena",
        {"prompt": "Why?", "response_a": "A.", "response_b": "B.", "winner": "model_b"},
        {
            "prompt": "prompt",
            "response_a": "rejected",
            "response_b": "chosen",
            "winner": "read",
        },
        {},
    ),
    (
        "kto",
        {"prompt": "Why?", "completion": "No.", "label": False},
        {"prompt": "prompt", "completion": "response", "label": "label"},
        {},
    ),
    (
        "nectar",
        {
            "prompt": "\n\nHuman: Why?\n\nAssistant: ",
            "answers": [{"answer": "A.", "rank": 1}, {"answer": "B.", "rank": 2}],
        },
        {"prompt": "prompt", "answers": "answers + ranks"},
        {},
    ),
    (
        "mt_bench_questions",
        {"question_id": 81, "category": "writing", "turns": ["Why?", "And how?"]},
        {"question_id": "id", "category": "source", "turns": "prompt + follow_ups"},
        {},
    ),
]


@pytest.mark.parametrize(
    ("name", "row", "fields", "ignored"),
    LAYOUTS,
    ids=[f"{number}-{layout[0]}" for number, layout in enumerate(LAYOUTS)],
)
def test_what_each_field_became(
    name: str,
    row: dict[str, Any],
    fields: dict[str, str],
    ignored: dict[str, int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, account = checked(write(tmp_path / "rows.jsonl", [row]), capsys)
    assert code == 0 and account["format"] == name and account["refused"] == {}
    assert account["fields"] == fields
    assert set(account["ignored"]) == {
        path for path in account["ignored"] if path.split(".")[0] in ignored
    } and len(account["ignored"]) == len(ignored)
    (example,) = account["examples"]
    assert example["turns"][-1]["content"]


def test_refused_rows_and_three_examples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: Rows = [
        {"instruction": f"Do {i}.", "output": f"Done {i}.", "note": "x" * (i % 2)} for i in range(8)
    ]
    rows[2]["output"] = ""
    rows[3]["tools"] = "search"
    path = write(tmp_path / "rows.jsonl", rows)
    code, account = checked(path, capsys)
    assert code == 1 and (account["read"], account["usable"]) == (8, 6)
    assert account["refused"] == {"empty text": 1, "text that is no JSON": 1}
    assert [(row["line"], row["field"]) for row in account["refused_rows"]] == [
        (3, "output"),
        (4, "tools"),
    ]
    asked = [example["turns"][0]["content"] for example in account["examples"]]
    assert asked == ["Do 0.", "Do 1.", "Do 4."]
    assert account["ignored"] == {"note": 3}
    code, account = checked(path, capsys, "--ignore", "tools")
    assert account["refused"] == {"empty text": 1} and account["ignored"] == {"note": 4, "tools": 1}
    assert account["repaired"] == {}
    assert main(["data", "check", str(path)]) == 1
    told = capsys.readouterr().out
    assert "format: alpaca" in told and "  instruction -> prompt" in told
    assert "passed over: note" in told
    assert "row 3 as read: kind conversation; user: Do 4. | assistant: Done 4." in told
    assert f"{path}:4: tools: found" in told


def test_folders_with_several_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.jsonl", [{"instruction": "Do.", "output": "Done."}])
    write(tmp_path / "b.jsonl", [{"prompt": "Why?", "chosen": "So.", "rejected": "No."}])
    code, account = checked(tmp_path, capsys)
    assert code == 0 and account["format"] == "alpaca, openai" and account["read"] == 2
    assert account["fields"]["output"] == "response" and account["fields"]["chosen"] == "chosen"


def test_html_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = "<div><p>So it <b>is</b>.</p><ul><li>one</li><li>two</li></ul></div>"
    rows = [
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": page}]}
    ] * 4
    _, account = checked(write(tmp_path / "rows.jsonl", rows), capsys)
    assert "4 of 4 answers are HTML" in account["html"]


# ---- rows that fit no format

UNKNOWN: list[tuple[Rows, dict[str, str], dict[str, str]]] = [
    (
        [{"query": "Why?", "reply": "Because.", "uid": i, "sys": "Be."} for i in range(3)],
        {"prompt": "query", "response": "reply", "system": "sys", "id": "uid"},
        {},
    ),
    (
        [{"userText": "Why?", "botText": "Because."}, {"userText": "How?", "botText": "So."}],
        {"prompt": "userText", "response": "botText"},
        {},
    ),
    # By their order, where the names say nothing.
    ([{"left": "Why?", "right": "Because."}], {"prompt": "left", "response": "right"}, {}),
    (
        [{"ask": "Why?", "better": "Because.", "worse": "No."}],
        {"prompt": "ask", "chosen": "better", "rejected": "worse"},
        {},
    ),
    (
        [
            {"ask": "Why?", "reply": "No.", "liked": False},
            {"ask": "How?", "reply": "So.", "liked": True},
        ],
        {"prompt": "ask", "response": "reply", "label": "liked"},
        {},
    ),
    (
        [{"request": {"problem": "Why?"}, "result": {"choices": [{"reply": {"text": "So."}}]}}],
        {"prompt": "request.problem", "response": "result.choices[0].reply.text"},
        {},
    ),
    (
        [
            {"log": [{"who": "Customer", "says": "Why?"}, {"who": "agent", "says": "Because."}]},
            {
                "log": [
                    {"who": "Customer", "says": "How?"},
                    {"who": "agent", "says": "So."},
                    {"who": "Customer", "says": "And?"},
                    {"who": "agent", "says": "Thus."},
                ]
            },
        ],
        {"messages": "log", "message.role": "who", "message.content": "says"},
        {"Customer": "user", "agent": "assistant"},
    ),
    (
        [{"exchange": {"speech": [say("user", "Why?"), say("assistant", "So.")]}}],
        {"messages": "exchange.speech"},
        {},
    ),
    ([{"utterance": "Why?", "persona": None}, {"utterance": "How?", "persona": "Be."}],
     {"prompt": "utterance", "system": "persona?"}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "fields", "roles"), UNKNOWN)
def test_a_map_is_proposed(
    rows: Rows,
    fields: dict[str, str],
    roles: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path / "rows.jsonl", rows)
    code, account = checked(path, capsys)
    assert code == 1 and account["format"] is None
    assert account["proposed"] == {"fields": fields, "roles": roles}
    # What is proposed can be pasted, and reads every row.
    program, *arguments = shlex.split(account["command"])
    assert program == "rayward" and arguments[2] == str(path)
    code, account = checked(path, capsys, *arguments[3:])
    assert code == 0 and account["format"] == "mapped" and account["usable"] == len(rows)
    main(["data", "check", str(path)])
    assert f"rayward data check {path} --fields" in capsys.readouterr().out


def test_no_map_is_proposed_where_nothing_is_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: Rows = [{"x": 1, "y": [0.5, 0.25]}]
    assert propose(rows) is None
    path = write(tmp_path / "rows.jsonl", rows)
    code, account = checked(path, capsys)
    assert code == 1 and account["proposed"] is None and account["command"] is None
    assert main(["data", "check", str(path)]) == 1
    told = capsys.readouterr().out
    assert "x, y fit no known format" in told and "--fields prompt=FIELD" in told


def test_names_with_spaces_are_quoted() -> None:
    mapped = propose([{"my question": "Why?", "my answer": "So."}])
    assert mapped is not None
    assert as_options(mapped) == ["--fields", "prompt=my question,response=my answer"]
