"""Writers: what a format can express comes back the same, what it cannot is refused or named, in
every container.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from rayward.data.formats.files.containers import rows
from rayward.data.formats.files.outputs import open_output
from rayward.data.formats.known.formats import FORMATS
from rayward.data.formats.registry import read
from rayward.data.formats.writers.table import WRITERS
from rayward.data.records import (
    KINDS,
    Conversation,
    Labelled,
    Preference,
    Prompt,
    Ranking,
    Record,
    RowError,
    Turn,
)
from tests.data.examples import random_text
from tests.data.layout_examples import LAYOUT_ROWS

USER, ANSWER = Turn("user", "q 日本"), Turn("assistant", "a\nb")
MORE = (Turn("user", "r"), Turn("assistant", "c"))
SYSTEM = Turn("system", "Be brief.")
SHORT = Conversation((USER, ANSWER), "x", "7", "gold")
LONG = Conversation((USER, ANSWER, *MORE), "x", "7", "gold")
PROMPT = Prompt((USER, ANSWER, MORE[0]), "x", "7")
QUESTION = Prompt((USER,), "mt_bench/math", "81", ("r",))
PAIR = Preference((USER, ANSWER, MORE[0]), "yes", "no", 0.5, "x", "7")
REFERRED = Prompt((USER,), "x", "7", reference="Paris.")
LABELLED = Labelled((USER, ANSWER, MORE[0]), "c", False, "x", "7")
RANKING = Ranking((USER,), ("one", "two", "three"), "x", "7", (1.0, 2.0, 2.0))
# Names of writers that can express the record, and what their readers give back but for the source.
ROUND_TRIPS: list[tuple[Record, dict[str, Record]]] = [
    (
        SHORT,
        dict.fromkeys(("rayward", "sharegpt", "alpaca_eval"), SHORT)
        | dict.fromkeys(("alpaca", "ultrachat", "openai"), replace(SHORT, quality=None)),
    ),
    (
        LONG,
        dict.fromkeys(("rayward", "sharegpt"), LONG)
        | dict.fromkeys(("ultrachat", "openai"), replace(LONG, quality=None)),
    ),
    (
        replace(LONG, turns=(SYSTEM, *LONG.turns)),
        {
            "sharegpt": replace(LONG, turns=(SYSTEM, *LONG.turns)),
            "openai": replace(LONG, turns=(SYSTEM, *LONG.turns), quality=None),
        },
    ),
    (
        Conversation(
            (SYSTEM, Turn("user", "q", 0.0), Turn("assistant", "a", 0.1)), "", "7", "GPT3"
        ),
        {
            "crlft": Conversation(
                (SYSTEM, Turn("user", "q", 0.0), Turn("assistant", "a", 0.1)), "", "7", "GPT3"
            )
        },
    ),
    (PROMPT, {"rayward": PROMPT, "openai": PROMPT}),
    (
        Prompt((USER,), "x", "7"),
        {"alpaca_eval": Prompt((USER,), "x", "7"), "mt_bench_questions": Prompt((USER,), "x", "7")},
    ),
    (QUESTION, {"rayward": QUESTION, "mt_bench_questions": QUESTION}),
    (
        REFERRED,
        dict.fromkeys(("rayward", "openai", "mt_bench_questions"), REFERRED),
    ),
    (
        PAIR,
        {
            "rayward": PAIR,
            "openai": PAIR,
            "nectar": Ranking(PAIR.turns, ("yes", "no"), "x", "7", (1.0, 1.5)),
        },
    ),
    (
        replace(PAIR, turns=(USER,), margin=None, source="rewardbench/math"),
        {"rewardbench": Preference((USER,), "yes", "no", None, "rewardbench/math", "7")},
    ),
    (
        replace(PAIR, margin=None),
        {"hh_rlhf": replace(PAIR, margin=None), "openai": replace(PAIR, margin=None)},
    ),
    (
        LABELLED,
        dict.fromkeys(("rayward", "kto"), LABELLED),
    ),
    (RANKING, {"rayward": RANKING, "nectar": RANKING}),
]
CASES = [(record, name, back) for record, backs in ROUND_TRIPS for name, back in backs.items()]


def within(value: Any, column: Any) -> bool:
    """Whether a value has the type that a column says, without fields that the column lacks."""
    if value is None:
        return True
    if isinstance(column, list):
        return isinstance(value, list | tuple) and all(within(item, column[0]) for item in value)
    if isinstance(column, dict):
        return isinstance(value, Mapping) and all(
            key in column and within(value[key], column[key]) for key in value
        )
    types = {"text": str, "number": float, "integer": int, "boolean": bool}
    return isinstance(value, types[column])


@pytest.mark.parametrize(
    "record, name, back", CASES, ids=lambda value: value if isinstance(value, str) else ""
)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "jsonl.gz", "json.gz", "parquet"])
def test_round_trip(record: Record, name: str, back: Record, suffix: str, tmp_path: Path) -> None:
    writer = WRITERS[name]
    path = tmp_path / f"rows.{suffix}"
    with open_output(path, writer.columns) as output:
        for row in writer.rows(record, []):
            assert within(row, writer.columns)
            output.write(row)
    (found,) = read(path, name)
    assert replace(found, source="") == replace(back, source="")
    if back.source.startswith(("mt_bench/", "rewardbench/")) or name in ("rayward", "nectar"):
        assert found.source == back.source
    (told,) = read(path)  # its format can be told
    assert replace(told, source="") == replace(found, source="")


def test_our_own_columns_are_all_that_a_record_has() -> None:
    names = {"kind", *(field.name for kind in KINDS.values() for field in fields(kind))}
    assert set(WRITERS["rayward"].columns) == names


def test_every_record_of_a_readable_format_can_be_written_or_says_why_not() -> None:
    only_read = (
        "ultrafeedback ultra_eval self_instruct gsm8k gsm8k_solutions sharegpt_pairs pandalm arena "
        "prompt_completion prompts orca conversation question_pairs"
    )
    benchmarks = "starling_truthful starling_verbose alpaca_eval_annotations rm_bench"
    only_read_too = {*only_read.split(), *benchmarks.split()}
    assert {*FORMATS} - {*WRITERS} == only_read_too | {*LAYOUT_ROWS}
    assert {*WRITERS} <= {*FORMATS}
    reasons = set()
    for record, _ in ROUND_TRIPS:
        for writer in WRITERS.values():
            try:
                assert writer.rows(record, [])
            except RowError as error:
                assert error.field and error.found and error.expected
                reasons.add(error.reason)
    assert {
        "several turns",
        "system turn",
        "loss weight of a turn",
        "openai has no place for its follow-ups",
    } <= reasons


@pytest.mark.parametrize(
    "name, record, reason",
    [
        ("alpaca", LONG, "several turns"),
        ("alpaca", replace(SHORT, turns=(SYSTEM, USER, ANSWER)), "system turn"),
        ("alpaca", PROMPT, "alpaca has no place for its kind"),
        ("nectar", SHORT, "nectar has no place for its kind"),
        (
            "sharegpt",
            replace(SHORT, turns=(USER, replace(ANSWER, weight=0.1))),
            "loss weight of a turn",
        ),
        (
            "ultrachat",
            replace(SHORT, turns=(replace(USER, weight=1.0), ANSWER)),
            "loss weight of a turn",
        ),
        ("hh_rlhf", replace(PAIR, margin=None, chosen="a\n\nHuman: b"), "text contains the frame"),
        (
            "nectar",
            replace(RANKING, turns=(Turn("user", "q\n\nAssistant: a"),)),
            "text contains the frame",
        ),
        ("hh_rlhf", replace(PAIR, margin=None, turns=(SYSTEM, USER)), "system turn"),
        ("hh_rlhf", replace(RANKING, ranks=(1.0, 1.0, 1.0)), "all answers are tied"),
        ("rewardbench", replace(PAIR, margin=None), "several turns"),
        ("rewardbench", PAIR, "rewardbench has no place for its margin"),
        ("hh_rlhf", PAIR, "hh_rlhf has no place for its margin"),
        ("alpaca_eval", REFERRED, "alpaca_eval has no place for its reference"),
        (
            "mt_bench_questions",
            replace(QUESTION, reference="Paris."),
            "reference to one of several questions",
        ),
        ("openai", LABELLED, "openai has no place for its kind"),
        ("openai", QUESTION, "openai has no place for its follow-ups"),
        ("mt_bench_questions", replace(QUESTION, id=""), "id is not a whole number"),
        ("mt_bench_questions", replace(QUESTION, id="081"), "id is not a whole number"),
        ("mt_bench_questions", replace(QUESTION, id="9" * 5000), "id is not a whole number"),
        ("mt_bench_answers", replace(LONG, quality=None), "no model name"),
    ],
)
def test_what_a_format_cannot_express_is_refused(name: str, record: Record, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        WRITERS[name].rows(record, [])
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "name, record, repairs",
    [
        ("alpaca", SHORT, {"left out quality"}),
        ("openai", SHORT, {"left out quality"}),
        ("sharegpt", SHORT, set()),
        ("openai", PAIR, set()),
        ("mt_bench_questions", QUESTION, set()),
        *((name, REFERRED, set()) for name in ("rayward", "openai", "mt_bench_questions")),
        (
            "hh_rlhf",
            replace(PAIR, chosen=" yes\n", margin=None),
            {"left out white space around turns"},
        ),
        ("mt_bench_answers", LONG, {"left out questions, which are in the question file"}),
    ],
)
def test_what_is_left_out_is_named(name: str, record: Record, repairs: set[str]) -> None:
    made: list[str] = []
    WRITERS[name].rows(record, made)
    assert set(made) == repairs


@pytest.mark.parametrize("name", ["openai", "hh_rlhf", "rewardbench"])
def test_a_ranking_becomes_the_pairs_of_different_rank(name: str, tmp_path: Path) -> None:
    record = Ranking((USER,), ("a", "b", "c", "d"), ranks=(1.0, 2.0, 2.0, 5.0))
    with open_output(tmp_path / "pairs.jsonl") as output:
        for row in WRITERS[name].rows(record, []):
            output.write(row)
    pairs = [(found.chosen, found.rejected) for found in read(tmp_path / "pairs.jsonl", name)]
    assert pairs == [("a", "b"), ("a", "c"), ("a", "d"), ("b", "d"), ("c", "d")]
    assert len(WRITERS[name].rows(replace(record, ranks=None), [])) == 6


JOINT = "\n\n### Input:\n"


@pytest.mark.parametrize(
    "question, context",
    [
        ("Add.", ""),
        (f"Add.{JOINT}1", "1"),
        (f"Add.{JOINT}1{JOINT}2", f"1{JOINT}2"),
        (f" Add. {JOINT} 1\n", " 1\n"),
        (f"{JOINT}1", ""),
        (f"Add.{JOINT}", ""),
        (f"Add.{JOINT} \n", ""),
    ],
)
def test_alpaca_splits_a_question_at_its_input(question: str, context: str) -> None:
    record = Conversation((Turn("user", question), ANSWER), "alpaca", "7")
    (row,) = WRITERS["alpaca"].rows(record, [])
    assert row["input"] == context
    assert FORMATS["alpaca"].convert(row, []) == [record]


def test_mt_bench_answers_come_back_with_their_questions(tmp_path: Path) -> None:
    (answers,) = WRITERS["mt_bench_answers"].rows(LONG, [])
    assert set(answers) == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    (tmp_path / "a.jsonl").write_text(json.dumps(answers))
    (tmp_path / "question.jsonl").write_text(
        json.dumps({"question_id": 7, "turns": [USER.content, "r"]})
    )
    assert list(read(tmp_path / "a.jsonl")) == [replace(LONG, source="mt_bench")]


def as_text(record: Conversation) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in record.turns]


def test_random_conversations_survive_every_format_that_takes_them(tmp_path: Path) -> None:
    rng = random.Random(3)
    records = []
    for index in range(300):
        turns = [SYSTEM] * rng.randrange(2)
        for _ in range(rng.randrange(1, 4)):
            roles = ("user", "assistant")
            turns += [Turn(role, random_text(rng, 30)) for role in roles]
        records.append(Conversation(tuple(turns), "", str(index), rng.choice([None, "gold"])))
    for name, writer in WRITERS.items():
        written = []
        for suffix in ("jsonl", "json.gz", "parquet"):
            with open_output(tmp_path / f"rows.{suffix}", writer.columns) as output:
                written = []
                for record in records:
                    try:
                        made = writer.rows(record, [])
                    except RowError:
                        continue
                    written.append(record)
                    for row in made:
                        output.write(row)
            if name == "mt_bench_answers" or not written:
                continue
            found = list(read(tmp_path / f"rows.{suffix}", name, strict=True))
            assert list(map(as_text, found)) == list(map(as_text, written))
            assert [record.id for record in found] == [record.id for record in written]


# ---- containers
# --------------------------------------------------------------------------------------------


def test_files_of_no_rows_and_of_many(tmp_path: Path) -> None:
    columns = {"n": "integer", "text": "text", "late": ["number"]}
    for count in (0, 1, 2500):
        made = [
            {"n": index, "text": "é", "late": [0.5] if index > 2000 else None}
            for index in range(count)
        ]
        for suffix in ("jsonl", "json", "jsonl.gz", "json.gz", "parquet"):
            path = tmp_path / f"rows.{suffix}"
            with open_output(path, columns) as output:
                for row in made:
                    output.write(row)
            assert [row for _, row in rows(path)] == made
    assert json.loads((tmp_path / "rows.json").read_text()) == made
    assert (
        gzip.decompress((tmp_path / "rows.json.gz").read_bytes())
        == (tmp_path / "rows.json").read_bytes()
    )


@pytest.mark.parametrize("suffix", ["jsonl", "json.gz", "parquet"])
def test_an_exception_leaves_the_file_of_before(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{suffix}"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), open_output(path, {"n": "integer"}) as output:
        output.write({"n": 1})
        raise KeyboardInterrupt
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_names_and_columns(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows.csv: the name must end in one of .json, .jsonl"):
        open_output(tmp_path / "rows.csv").__enter__()
    with pytest.raises(ValueError, match="no columns"):
        open_output(tmp_path / "rows.parquet").__enter__()
    assert not list(tmp_path.iterdir())
