"""Rows that no reader knows, read by named fields; what is not there is set aside and named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayward.configs.load import ConfigError, load
from rayward.data.formats.mapped import FieldMap, field_map
from rayward.data.formats.registry import Report, located, outcomes
from rayward.data.formats.rows.field_paths import look_up
from rayward.data.formats.rows.fields import ReadOptions
from rayward.data.records import (
    Conversation,
    Labelled,
    Preference,
    Prompt,
    Record,
    RowError,
    Turn,
    validate,
)
from rayward.pipelines.cli import main
from rayward.pipelines.preflight import check_names

USER = Turn("user", "Why?")
ANSWER = Turn("assistant", "Because.")
TALK = [{"who": "Customer", "says": "Why?"}, {"who": "robot", "says": "Because."}]
IN_TALK = "messages=log,message.role=who,message.content=says"


def one(fields: str, row: dict[str, Any], roles: str = "") -> Record:
    repairs: list[str] = []
    (record,) = field_map(fields, roles).records(row, repairs)
    validate(record)
    return record


@pytest.mark.parametrize(
    ("fields", "row", "record"),
    [
        (
            "prompt=q,response=a,system=sys,id=n,source=from",
            {"q": "Why?", "a": "Because.", "sys": "Be brief.", "n": 7, "from": "forum"},
            Conversation((Turn("system", "Be brief."), USER, ANSWER), "forum", "7"),
        ),
        (
            "prompt=q,response=choices[0].message.content,weight=w",
            {"q": "Why?", "choices": [{"message": {"content": "Because."}}], "w": 0.5},
            Conversation((USER, Turn("assistant", "Because.", 0.5)), "mapped"),
        ),
        (
            "prompt=q,response=choices[-1].message",
            {
                "q": "Why?",
                "choices": [0, {"message": {"role": "assistant", "content": "Because."}}],
            },
            Conversation((USER, ANSWER), "mapped"),
        ),
        (
            "prompt=data.q,reference=reward_model.ground_truth",
            {"data": {"q": "Why?"}, "reward_model": {"ground_truth": 42}},
            Prompt((USER,), "mapped", reference="42"),
        ),
        (
            "prompt=q",
            {
                "q": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "Why?"},
                ]
            },
            Prompt((Turn("system", "Be brief."), USER), "mapped"),
        ),
        (
            "prompt=q,chosen=good,rejected=bad",
            {
                "q": "Why?",
                "good": [
                    {"role": "user", "content": "Why?"},
                    {"role": "assistant", "content": "Because."},
                ],
                "bad": "No.",
            },
            Preference((USER,), "Because.", "No.", source="mapped"),
        ),
        (
            "prompt=q,response=a,label=thumb",
            {"q": "Why?", "a": "No.", "thumb": 0},
            Labelled((USER,), "No.", False, "mapped"),
        ),
        (
            "messages=m,label=thumb",
            {"m": ["Why?", "Because."], "thumb": "True"},
            Labelled((USER,), "Because.", True, "mapped"),
        ),
        ("messages=m", {"m": ["Why?", "Because."]}, Conversation((USER, ANSWER), "mapped")),
        (
            "messages=m,response=a",
            {"m": ["Why?", "Because.", "Why?"], "a": "Because."},
            Conversation((USER, ANSWER, USER, ANSWER), "mapped"),
        ),
        (
            "messages=m",
            {"m": json.dumps([{"role": "USER", "content": "Why?"}])},
            Prompt((USER,), "mapped"),
        ),
        (
            "prompt=q,response=a",
            {"q": "Why?", "a": {"role": "assistant", "content": "Because.", "weight": 0}},
            Conversation((USER, Turn("assistant", "Because.", 0)), "mapped"),
        ),
        # Another field that is usually a reference does not take the place of the named one.
        (
            "prompt=question,reference=gold",
            {"question": "Why?", "gold": "4", "answer": "long"},
            Prompt((USER,), "mapped", reference="4"),
        ),
        # A name that has a dot itself, as flattened tables have, comes before the path.
        ("prompt=a.b", {"a.b": "Why?", "a": {"b": "no"}}, Prompt((USER,), "mapped")),
    ],
)
def test_what_the_targets_make(fields: str, row: dict[str, Any], record: Record) -> None:
    assert one(fields, row) == record


@pytest.mark.parametrize("fields, reason", [
    ("prompt=q,chosen=a,rejected=b", "loss weight of a compared answer"),
    ("prompt=q,response=a,label=good", "loss weight of a compared answer"),
    ("messages=m,label=good", "loss weight of a compared answer"),
    ("prompt=q,response=a,weight=w", "two loss weights"),
])  # fmt: skip
def test_no_loss_weight_is_thrown_away(fields: str, reason: str) -> None:
    answer = {"role": "assistant", "content": "Because.", "weight": 0}
    row = {"q": "Why?", "a": answer, "b": "No.", "good": True, "w": 1}
    row["m"] = [{"role": "user", "content": "Why?"}, answer]
    with pytest.raises(RowError) as error:
        one(fields, row)
    assert error.value.reason == reason


def test_names_of_speakers() -> None:
    roles = "Customer=user"
    with pytest.raises(RowError, match=r"log\[1\].who: found 'robot'"):
        one(IN_TALK, {"log": TALK}, roles)
    assert one(IN_TALK, {"log": TALK}, f"{roles},robot=assistant") == Conversation(
        (USER, ANSWER), "mapped"
    )
    weighed = [TALK[0], TALK[1] | {"w": 0.25}]
    record = one(f"{IN_TALK},message.weight=w", {"log": weighed}, f"{roles},robot=assistant")
    assert [turn.weight for turn in record.turns] == [None, 0.25]


@pytest.mark.parametrize(
    ("fields", "row", "field", "found"),
    [
        ("prompt=q,response=a", {"q": "Why?"}, "a", "no such field"),
        ("prompt=q,response=a.b[0]", {"q": "Why?", "a": {"b": []}}, "a.b[0]", "no such field"),
        ("prompt=q,response=a", {"q": "Why?", "a": " "}, "a", "None"),
        ("prompt=q,system=s", {"q": "Why?"}, "s", "no such field"),
        ("prompt=q,response=a,label=l", {"q": "Why?", "a": "No.", "l": "meh"}, "l", "'meh'"),
        ("prompt=q,id=n", {"q": "Why?", "n": [1]}, "n", "list of 1"),
        ("messages=m", {"m": "just text"}, "m", "'just text'"),
        ("messages=m", {"m": [{"role": "user"}]}, "m[0].content", "no such field"),
        (
            "messages=m,reference=r",
            {"m": ["Why?", "Because."], "r": "Because."},
            "m",
            "assistant last",
        ),
        (
            "messages=m,system=s",
            {"m": [{"role": "system", "content": "A"}, {"role": "user", "content": "B"}], "s": "C"},
            "s",
            "'C'",
        ),
        ("prompt=q", {"q": RowError("value", "bytes", "UTF-8", "not UTF-8")}, "q", "bytes"),
    ],
)
def test_what_is_not_there_is_named(
    fields: str, row: dict[str, Any], field: str, found: str
) -> None:
    with pytest.raises(RowError) as caught:
        one(fields, row)
    assert (caught.value.field, caught.value.found) == (field, found)


def test_a_field_that_not_every_row_has() -> None:
    assert one("prompt=q,system=s?", {"q": "Why?"}) == Prompt((USER,), "mapped")
    assert one("prompt=q,system=s", {"q": "Why?", "s": None}) == Prompt((USER,), "mapped")
    assert one("prompt=q,system=s?", {"q": "Why?", "s": "Be."}).turns[0].role == "system"


@pytest.mark.parametrize(
    ("fields", "roles", "told"),
    [
        ("promt=q", "", "unknown target 'promt'"),
        ("prompt=q,chosen=a", "", "prompt, chosen make no record together"),
        ("response=a", "", "make no record together"),
        ("prompt=q,messages=m", "", "make no record together"),
        ("prompt=q,response=a,reference=r", "", "make no record together"),
        ("prompt", "", "'prompt' is not TARGET=FIELD"),
        ("prompt=a,prompt=b", "", "prompt is given twice: a and b"),
        ("prompt=q", "human=human", "the role 'human' is 'human'"),
        ("", "human=user", "roles without fields"),
    ],
)
def test_a_map_that_makes_no_record(fields: str, roles: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        field_map(fields, roles)
    if "targets:" in str(caught.value):
        assert "message.content" in str(caught.value) and "reference" in str(caught.value)


def test_paths() -> None:
    row = {"a": [{"b": ["x", "y"]}], "t": "text", "odd[": 1}
    assert look_up(row, "a[0].b[-1]") == (True, "y")
    assert look_up(row, "odd[") == (True, 1)
    for path in ("a.b", "t[0]", "a[1]", "a[0].b[2]", "a[0].b.0", "missing", "a[0]b", ""):
        assert look_up(row, path) == (False, None), path


def test_files_account_for_every_row(tmp_path: Path) -> None:
    rows = [{"q": "Why?", "a": "Because."}, {"q": "Why?"}, ["no object"], {"q": "How?", "a": "So."}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked, report = ReadOptions(fields={"prompt": "q", "response": "a"}), Report()
    read = [(record, row.line) for record, row in located(path, report=report, options=asked)]
    assert [line for _, line in read] == [1, 4] and read[0][0].turns == (USER, ANSWER)
    assert (report.read, report.kept) == (4, 2)
    assert [(row.line, row.field) for row in report.rejected_rows] == [(2, "a"), (3, "row")]
    with pytest.raises(ValueError, match="the format 'alpaca' reads nothing"):
        outcomes(path, "alpaca", options=asked)


def test_other_fields_are_refused_passed_over_or_ignored(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"log": [{**turn, "mood": "calm"} for turn in TALK], "data": {"n": 1, "by": "x"}}
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"tools": "f"}) + "\n")
    fields = dict(pair.split("=") for pair in f"{IN_TALK},id=data.n".split(","))
    asked = ReadOptions(fields=fields, roles={"Customer": "user", "robot": "assistant"})
    first, second = outcomes(path, options=asked)
    assert dict(first.passed_over) == {"log.mood": 1, "data.by": 1} and first.records[0].id == "1"
    assert second.error is not None and second.error.field == "tools"
    _, second = outcomes(path, options=replace(asked, ignore=frozenset({"tools"})))
    assert second.records and second.repairs == ("ignored tools",)


def test_items_of_a_list_that_no_place_names_are_passed_over(tmp_path: Path) -> None:
    def passed_over(fields: str, **row: Any) -> dict[str, int]:
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(row))
        asked = field_map(fields)
        found = list(outcomes(path, options=ReadOptions(fields=asked.fields)))
        assert [outcome.error for outcome in found] == [None]
        return dict(found[0].passed_over)

    texts = ["Hi?", "Ho.", "And?", "", "Fine."]
    assert passed_over("prompt=t[0],response=t[1]", t=texts) == {"t[2]": 1, "t[4]": 1}
    assert passed_over("prompt=t[0],response=t[-1]", t=texts[:2]) == {}
    assert passed_over("prompt=t[0],response=t[-1]", t=texts) == {"t[1]": 1, "t[2]": 1}
    choices = [{"message": {"role": "assistant", "content": "a", "mood": "m"}}, {"message": "b"}]
    assert passed_over("prompt=q,response=c[0].message", q="Q?", c=choices) == {
        "c.message.mood": 1,
        "c[1]": 1,
    }
    # A list that another target reads whole has no other items.
    assert passed_over("messages=t,id=t[0]", t=texts[:2]) == {}


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    path.write_text(json.dumps({"log": TALK, "id": "a"}) + "\n")
    options = ["--fields", IN_TALK, "--roles", "Customer=user,robot=assistant"]
    assert main(["data", "convert", str(path), "--out", str(out), *options]) == 0
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["turns"] == [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Because."},
    ]
    assert main(["data", "check", str(path), *options]) == 0
    assert main(["data", "stats", str(path), *options]) == 0
    assert main(["data", "render", str(path), "--template", "chatml", "--plain", *options]) == 0
    assert "[[Because.<|im_end|>" in capsys.readouterr().out
    assert main(["data", "check", str(path), "--fields", "promt=q"]) != 0
    assert "unknown target 'promt'" in capsys.readouterr().err


def test_a_config_that_makes_no_record_is_told_before_the_run(tmp_path: Path) -> None:
    def config(**source: Any):
        sources = json.dumps([{"path": "x.jsonl", **source}])
        return load(
            "quickstart",
            [
                "data.toyworld=null",
                f"data.conversations={sources}",
                f"data.preferences={sources}",
                f"data.prompts={sources}",
                f"data.evaluation_prompts={sources}",
                "evaluate.judge=reward_model",
            ],
        )

    fields = {"prompt": "question", "response": "answer"}
    check_names(config(fields=fields, roles={"human": "user"}))
    with pytest.raises(ConfigError, match=r"data.conversations.0: unknown target 'promt'"):
        check_names(config(fields={"promt": "question"}))
    with pytest.raises(ConfigError, match="format alpaca reads nothing"):
        check_names(config(fields=fields, format="alpaca"))
    assert FieldMap(fields).format.name == "mapped"
