"""`rayward judge single` against a real HTTP server: FastChat's rows, references, both turns."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from rayward.pipelines.cli import main
from tests.pipelines.judge_server import user_text

SHARED = Path(__file__).parents[3] / "shared" / "data" / "mt_bench"
real_files = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")


def lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answer(model: str, id: int, *turns: str) -> dict[str, Any]:
    return {"question_id": id, "model_id": model, "choices": [{"index": 0, "turns": list(turns)}]}


QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write {x}.", "Shorter?"]},
    {"question_id": 111, "category": "math", "turns": ["1 + 1?", "And + 1?"]},
    {
        "question_id": 112,
        "category": "math",
        "turns": ["2 + 2?", "And + 2?"],
        "reference": ["4", "6"],
    },
]


def test_both_turns_are_graded_beside_references(tmp_path: Path, serve: Any, capsys: Any) -> None:
    def rule(request: dict[str, Any]) -> str:
        text = user_text(request) + request["messages"][0]["content"]
        if "Reference answer" in text or "reference answer" in text:
            return "Compared with the reference. Rating: [[10]]"
        return "No rating" if "bad" in text else f"Rating: [[{4 if 'Shorter' in text else 7}]]"

    server, out = serve(rule), tmp_path / "out"
    command = ["judge", "single"]
    command += [
        lines(
            tmp_path / "a.jsonl",
            [
                answer("a", 81, "{long}", "short"),
                answer("a", 111, "2", "3"),
                answer("a", 112, "4", "6"),
            ],
        )
    ]
    command += [
        lines(tmp_path / "b.jsonl", [answer("b", 81, "{also}", "bad"), answer("b", 111, "2")])
    ]
    command += ["--questions", lines(tmp_path / "q.jsonl", QUESTIONS)]
    command += ["--references", lines(tmp_path / "r.jsonl", [answer("gpt-4", 111, "2", "3")])]
    command += ["--judge", server.model, "--out", str(out)]
    assert main(command) == 0
    rows = read(out / "rules_single.jsonl")
    assert set(rows[0]) >= {
        *("question_id", "model", "judge", "user_prompt", "judgment", "score", "turn", "tstamp"),
    }
    found = {(row["model"], row["question_id"], row["turn"]): row["score"] for row in rows}
    assert found == {
        ("a", 81, 1): 7, ("a", 81, 2): 4, ("a", 111, 1): 10, ("a", 111, 2): 10,
        ("a", 112, 1): 10, ("a", 112, 2): 10, ("b", 81, 1): 7, ("b", 81, 2): -1, ("b", 111, 1): 10,
    }  # fmt: skip
    assert rows[0]["judge"] == ["rules", "rating"] and "{long}" in rows[0]["user_prompt"]
    assert "Write {x}." in rows[0]["user_prompt"] and "Shorter?" not in rows[0]["user_prompt"]
    second = rows[1]["user_prompt"]
    assert rows[1]["judge"] == ["rules", "rating-multi-turn"]
    assert re.search(r"Write \{x\}\..*\{long\}.*Shorter\?.*short", second, re.DOTALL)
    assert rows[2]["judge"][1] == "rating-reference" and "Reference" not in second
    summary = json.loads((out / "summary.json").read_text())
    a, b = summary["models"]
    assert (a["first"], a["second"], a["average"]) == (9.0, 8.0, 8.5)
    assert (b["first"], b["second"], b["average"], b["unreadable"]) == (8.5, None, 8.5, 1)
    assert len(summary["lacking"]) == 3 and "question 111, turn 2" in summary["lacking"][0]
    # "2" of both models to the same question is one request.
    assert len(server.seen) == 8 and {r["temperature"] for r in server.seen} == {0.0}
    # The numbers of `judge scores` are those that were printed.
    scored = ["judge", "scores", str(out / "rules_single.jsonl")]
    assert main([*scored, "--json", str(tmp_path / "scores.json")]) == 0
    rated = json.loads((tmp_path / "scores.json").read_text())["ratings"]
    assert [(one["model"], one["mean"]) for one in rated] == [("a", 8.5), ("b", 8.5)]
    asked = json.loads((out / "summary.json").read_text())["asked"]
    assert (asked["wanted"], asked["replies"], asked["prompt_tokens"]) == (8, 8, 800)
    before = (out / "rules_single.jsonl").read_bytes()
    assert main(command) == 0
    assert len(server.seen) == 8 and (out / "rules_single.jsonl").read_bytes() == before


@real_files
def test_fastchats_own_files_give_fastchats_own_requests(tmp_path: Path, serve: Any) -> None:
    name = "mistral-orpo-mix"
    server, out = serve(lambda request: "Rating: [[6]]"), tmp_path / "out"
    command = ["judge", "single", str(SHARED / "model_answer" / f"{name}.jsonl.gz")]
    command += ["--questions", str(SHARED / "question.jsonl.gz")]
    command += ["--references", str(SHARED / "reference_answer" / "gpt-4.jsonl.gz")]
    command += ["--prompts", str(SHARED / "judge_prompts.jsonl.gz")]
    command += ["--judge", server.model, "--out", str(out)]
    assert main(command) == 0
    with gzip.open(SHARED / "model_judgment" / "gpt-4_single" / f"{name}.jsonl.gz", "rt") as file:
        stored = [json.loads(line) for line in file]
    made = read(out / "rules_single.jsonl")
    assert len(made) == len(stored) == 160
    by_turn = {(row["question_id"], row["turn"]): row for row in made}
    for row in stored:
        ours = by_turn[row["question_id"], row["turn"]]
        assert ours["user_prompt"] == row["user_prompt"]
        assert ours["judge"][1] == row["judge"][1]
