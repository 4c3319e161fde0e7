"""Training rows that share long n-grams with evaluation sets: in prepare, and `data check`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rayward.configs.decisive import decisive
from rayward.configs.schema import Config
from rayward.configs.sections.data import Data
from rayward.pipelines.cli import main
from rayward.pipelines.preflight import check_files
from rayward.pipelines.rows.reading import contents
from rayward.pipelines.rows.records import load_records
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.files import read_json
from rayward.pipelines.run.folder import Run
from rayward.pipelines.stages.prepare import prepare

LEAKED = "A train leaves the station at nine and travels for three hours at sixty miles"
OWN = "Describe in four sentences how a small boat crosses the wide and windy northern lake"


def chat(question: str, answer: str = "An answer.") -> dict[str, Any]:
    return {"instruction": question, "input": "", "output": answer}


def pair(question: str, chosen: str = "good") -> dict[str, Any]:
    start = f"\n\nHuman: {question}\n\nAssistant: "
    return {"chosen": start + chosen, "rejected": start + "bad"}


ROWS = {
    "chats.jsonl": [
        *(chat(f"Chat {i}?") for i in range(30)),
        chat(f"Well: {LEAKED.upper()}, so how far?"),
        chat("Why?", f"Because {OWN.lower()}!"),
    ],
    "pairs.jsonl": [*(pair(f"Pair {i}?") for i in range(30)), pair("Say it.", LEAKED)],
    "asks.jsonl": [
        *({"instruction": f"Ask {i}.", "dataset": "own"} for i in range(8)),
        {"instruction": f"{OWN}, please.", "dataset": "own"},
    ],
    "evaluation.jsonl": [
        *({"instruction": f"Evaluation {i}.", "dataset": "own"} for i in range(16)),
        {"instruction": OWN, "dataset": "own"},
    ],
    "gsm.jsonl": ["broken", {"question": f"{LEAKED} an hour. How far?", "answer": "180"}],
}


@pytest.fixture(scope="module")
def config(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Config]
) -> Callable[..., Config]:
    root = tmp_path_factory.mktemp("data")
    for name, rows in ROWS.items():
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def made(decontaminate: dict[str, Any] | None) -> Config:
        return tiny_config(
            model={"context_tokens": 128, "scratch": {"vocab_size": 320}},
            data={
                "toyworld": None,
                "root": str(root),
                "conversations": [{"path": "chats.jsonl"}],
                "preferences": [{"path": "pairs.jsonl"}],
                "prompts": [{"path": "asks.jsonl"}],
                "evaluation_prompts": [{"path": "evaluation.jsonl"}],
                "decontaminate": decontaminate,
            },
            evaluate={"judge": "reward_model", "prompts": 16},
        )

    return made


def test_rows_that_share_words_are_left_out_and_named(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", config({"against": ["gsm.jsonl", "evaluation_prompts"]}))
    assert prepare(run) is not None
    report = read_json(run.folder / "prepare" / "report.json")
    rule = "shares 13 words with an evaluation set"
    assert {name: rules.get(rule) for name, rules in report["rules"].items()} == {
        "conversations": 2, "rankings": 1, "prompts": 1,
    }  # fmt: skip
    left = [row for row in report["left_out"] if row["reason"] == rule]
    places = {(Path(row["file"]).name, row["line"], Path(row["evaluation"]).name) for row in left}
    assert places == {
        ("chats.jsonl", 31, "gsm.jsonl:2"),
        ("chats.jsonl", 32, "evaluation.jsonl:17"),
        ("pairs.jsonl", 31, "gsm.jsonl:2"),
        ("asks.jsonl", 9, "evaluation.jsonl:17"),
    }
    assert any("'a train leaves the station at nine and ...'" in row["found"] for row in left)
    account = report["decontaminate"]
    # Of GSM8K's row the question and the answer; the answer, and 16 evaluation prompts, are short.
    assert (account["texts"], account["too_short"]) == (2 + 17, 1 + 16)
    assert account["against"]["gsm.jsonl"]["read"] == 2
    assert sum(account["against"]["gsm.jsonl"]["rejected"].values()) == 1
    for path in (run.folder / "prepare").glob("*.jsonl"):
        if path.stem in ("conversations", "sft_heldout", "rankings", "heldout", "judge", "prompts"):
            texts = [turn.content for row in load_records(path) for turn in row.turns]
            assert not any(LEAKED.lower() in text.lower() for text in texts)


def test_it_is_off_by_default(config: Callable[..., Config], tmp_path: Path) -> None:
    run = Run(tmp_path / "run", config(None))
    assert prepare(run) is not None
    report = read_json(run.folder / "prepare" / "report.json")
    assert "decontaminate" not in report and not any(
        "words" in rule for rules in report["rules"].values() for rule in rules
    )
    assert "decontaminate" not in decisive(config(None), "prepare")["data"]
    asked = config({"against": ["gsm.jsonl"]})
    assert "gsm.jsonl" in contents(asked.data) and "gsm.jsonl" not in contents(config(None).data)


def test_sets_that_are_not_there_are_told(config: Callable[..., Config], tmp_path: Path) -> None:
    run = Run(tmp_path / "run", config({"against": ["missing.jsonl"]}))
    with pytest.raises(StageError, match=r"data.decontaminate.against: .*missing.jsonl: no such"):
        check_files(run, {"prepare"})
    with pytest.raises(StageError, match=r"data.decontaminate.against: .*missing.jsonl"):
        prepare(run)
    with pytest.raises(ValidationError, match="data.evaluation_prompts lists no source"):
        Data(decontaminate={"against": ["evaluation_prompts"]})
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        Data(decontaminate={"ngram": 1, "against": ["x"]})


def test_check_against_files(
    config: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(config(None).data.root)
    chats, gsm, evaluation = (
        str(root / f"{name}.jsonl") for name in ("chats", "gsm", "evaluation")
    )
    assert main(["data", "check", chats]) == 0
    capsys.readouterr()
    assert main(["data", "check", chats, "--against", gsm, "--against", evaluation]) == 1
    told = capsys.readouterr().out
    assert (
        f"{chats}:31: row: found 'a train leaves the station at nine and ...', as in {gsm}:2"
        in told
    )
    assert f"{chats}:32: row: found 'describe in four sentences how a small boat ...'" in told
    assert "shares 13 words with an evaluation set" in told
    assert main(["data", "check", chats, "--against", gsm, "--ngram", "16"]) == 0
    assert main(["data", "check", chats, "--against", gsm, "--ngram", "1"]) != 0
    assert "n-grams of 1 words" in capsys.readouterr().err
    assert main(["data", "check", chats, "--ngram", "5"]) != 0
    assert "--ngram is of use with --against" in capsys.readouterr().err


def lines(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_what_is_not_compared_is_told(
    config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(config(None).data.root)
    told = "1 of 2 rows of {} could not be read and are not compared: {}; 1 texts are too short"
    run = Run(tmp_path / "run", config({"against": ["gsm.jsonl"]}))
    assert prepare(run) is not None
    assert told.format("gsm.jsonl", "wrong type (1)") in " ".join(
        read_json(run.folder / "prepare" / "report.json")["warnings"]
    )
    assert told.format("gsm.jsonl", "wrong type (1)") in capsys.readouterr().out

    gsm, chats = str(root / "gsm.jsonl"), str(root / "chats.jsonl")
    assert main(["data", "check", chats, "--against", gsm]) == 1
    assert told.format(gsm, "wrong type (1)") in capsys.readouterr().out
    assert main(["data", "check", chats, "--against", gsm, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["against"] == {
        gsm: {"read": 2, "rejected": {"wrong type": 1}, "too_short": 1}
    }


def test_where_nothing_can_be_compared_it_fails(
    config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chats = str(Path(config(None).data.root) / "chats.jsonl")
    bad = lines(tmp_path / "bad.jsonl", {"prompt": 7}, {"prompt": " "})
    short = lines(tmp_path / "short.jsonl", {"question": "How?", "answer": "So."})
    empty = lines(tmp_path / "empty.jsonl")
    other = lines(tmp_path / "other.jsonl", {"a": 1})
    for path, told in (
        (bad, "no row of 2 can be read"),
        (empty, "no row of 0 can be read"),
        (other, "fit no known format"),
        (short, "all 2 texts of the evaluation sets are shorter than 8 words"),
    ):
        assert main(["data", "check", chats, "--against", path]) == 2
        assert told in capsys.readouterr().err
        run = Run(tmp_path / f"run-{Path(path).stem}", config({"against": [path]}))
        with pytest.raises(StageError, match=f"data.decontaminate.against: .*{told}"):
            prepare(run)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": LEAKED, "image": "x.png"},
        {"question": LEAKED, "answer": ["180", "180 miles"]},
        {"prompt": LEAKED, "reference": ["180", "180 miles"]},
        {"prompt": "How far?", "reference": ["Far.", LEAKED]},
        {"prompt": LEAKED, "weight": 0.5, "tools": "none", "label": 3, "reasoning": "Hm."},
        {"prompt": LEAKED, "reward_model": {"ground_truth": ["180", "180 miles"], "style": "x"}},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "x"}},
                        {"type": "text", "text": LEAKED},
                    ],
                    "weight": "none",
                }
            ]
        },
    ],
)
def test_what_has_no_words_does_not_hide_a_question(
    row: dict[str, Any],
    config: Callable[..., Config],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chats = str(Path(config(None).data.root) / "chats.jsonl")
    path = lines(tmp_path / "exam.jsonl", row)
    assert main(["data", "check", chats, "--against", path, "--json"]) == 1
    account = json.loads(capsys.readouterr().out)
    assert account["against"][path]["rejected"] == {}
    assert [row["line"] for row in account["refused_rows"]] == [31]
