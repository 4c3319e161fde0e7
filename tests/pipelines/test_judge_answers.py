"""`rayward judge answers` against a real HTTP server: shapes of the suites, turns, thinking, the
cache; and what it makes is read by the commands that judge it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayward.data.judging.thinking import without_thinking
from rayward.pipelines.cli import main
from tests.pipelines.judge_server import JudgeServer, user_text

SHARED = Path(__file__).parents[3] / "shared" / "data"
real_files = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")


def echo(request: dict[str, Any]) -> str:
    said = [message["content"][:20] for message in request["messages"]]
    return f"<think>Hm {len(said)}.</think>\n{len(said)}: {said[-1]}"


def answers(server: JudgeServer, suite: str, out: Path, *more: str) -> int:
    return main(["judge", "answers", server.model, "--suite", suite, "--out", str(out), *more])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_second_turn_sees_the_first_ones_answer_and_categories_their_temperature(
    tmp_path: Path, serve: Any, capsys: Any
) -> None:
    questions = [
        {"question_id": 1, "category": "writing", "turns": ["Write.", "Again?"]},
        {"question_id": 2, "category": "math", "turns": ["1 + 1?", "And?"]},
        {
            "question_id": 3,
            "category": "stem",
            "turns": ["Why?", "And?"],
            "required_temperature": 0.4,
        },
        {"question_id": 4, "category": "else", "turns": ["What?"]},
    ]
    write(tmp_path / "data" / "mt_bench" / "question.jsonl", questions)
    server, out = serve(echo), tmp_path / "out"
    data = ("--data", str(tmp_path / "data"))
    assert answers(server, "mt_bench", out, *data, "--system", "Be brief.") == 0
    rows = lines(out / "rules.jsonl")
    assert [row["question_id"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["model_id"] == "rules" and rows[0]["choices"] == [
        {"index": 0, "turns": ["2: Write.", "4: Again?"], "thinking": ["Hm 2.", "Hm 4."]}
    ]
    by_turn = {user_text(request): request for request in server.seen}
    temperatures = {
        text: by_turn[text]["temperature"] for text in ("Write.", "1 + 1?", "Why?", "What?")
    }
    assert temperatures == {"Write.": 0.7, "1 + 1?": 0.0, "Why?": 0.4, "What?": 0.7}
    # What was thought is no part of the conversation.
    assert [message["content"] for message in by_turn["Again?"]["messages"]] == [
        *("Be brief.", "Write.", "2: Write.", "Again?")
    ]
    told = capsys.readouterr().out
    assert "4 of 4 questions answered, template: the endpoint's own; 4 began with thinking" in told
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["template"], summary["thinking_taken_off"]) == ("the endpoint's own", 4)
    assert len(server.seen) == 7
    before = (out / "rules.jsonl").read_bytes()
    assert answers(server, "mt_bench", out, *data, "--system", "Be brief.") == 0
    assert len(server.seen) == 7 and (out / "rules.jsonl").read_bytes() == before
    # What the user says goes before the category's.
    hot = ("--model-request", '{"temperature": 1.5}')
    assert answers(server, "mt_bench", tmp_path / "hot", *data, *hot) == 0
    assert {request["temperature"] for request in server.seen[7:]} == {1.5}


def test_what_is_missing_is_told_and_asked_for_again(tmp_path: Path, serve: Any) -> None:
    sick = {"Q1"}

    def rule(request: dict[str, Any]) -> Any:
        return {"status": 400} if user_text(request) in sick else "Fine."

    path = write(tmp_path / "q.jsonl", [{"prompt": f"Q{n}", "id": str(n)} for n in range(3)])
    server, out = serve(rule), tmp_path / "out"
    assert answers(server, str(path), out, "--name", "mine") == 1
    made = json.loads((out / "model_outputs.json").read_text())
    assert [row["instruction"] for row in made] == ["Q0", "Q2"]
    assert made[0]["generator"] == "mine" and made[0]["output"] == "Fine."
    assert json.loads((out / "summary.json").read_text())["lacking"] == ["question 1: no reply"]
    sick.clear()
    asked = len(server.seen)
    assert answers(server, str(path), out, "--name", "mine") == 0
    assert len(server.seen) == asked + 1
    assert len(json.loads((out / "model_outputs.json").read_text())) == 3


def test_ifeval_arena_hard_and_files_of_ones_own(tmp_path: Path, serve: Any) -> None:
    server = serve(lambda request: "Yes.")
    ifeval = [{"key": 1000, "prompt": "P", "instruction_id_list": ["a"], "kwargs": [{}]}]
    write(tmp_path / "ifeval" / "input_data.jsonl", ifeval)
    data = ("--data", str(tmp_path))
    assert answers(server, "ifeval", tmp_path / "i", *data) == 0
    made = lines(tmp_path / "i" / "input_response_data_rules.jsonl")
    assert made == [{"prompt": "P", "response": "Yes."}]
    arena = [{"uid": "x1", "category": "hard_prompt", "subcategory": "coding", "prompt": "P"}]
    write(tmp_path / "arena-hard-v2.0" / "question.jsonl", arena)
    assert answers(server, "arena_hard", tmp_path / "a", *data) == 0
    (row,) = lines(tmp_path / "a" / "rules.jsonl")
    assert (row["uid"], row["model"]) == ("x1", "rules")
    assert row["messages"][1]["content"] == {"answer": "Yes."}
    talks = [{"question_id": 5, "turns": ["A?", "B?", "C?"]}]
    path = write(tmp_path / "talks.jsonl", talks)
    assert answers(server, str(path), tmp_path / "t") == 0
    assert lines(tmp_path / "t" / "rules.jsonl")[0]["choices"][0]["turns"] == ["Yes."] * 3


def test_mistakes_are_told(tmp_path: Path, serve: Any, capsys: Any) -> None:
    server = serve(echo)
    for suite, more, told in (
        ("alpaca", (), "needs --data DIR"),
        ("alpaca", ("--data", str(tmp_path)), "no questions of alpaca; looked for"),
        ("none", (), "neither a file nor one of alpaca, vicuna"),
    ):
        assert answers(server, suite, tmp_path / "out", *more) == 2
        assert told in capsys.readouterr().err
    write(tmp_path / "q.jsonl", [{"prompt": "Q"}])
    more = ("--template", "vicuna")
    assert answers(server, str(tmp_path / "q.jsonl"), tmp_path / "out", *more) == 2
    assert "an endpoint has a chat template of its own" in capsys.readouterr().err


@real_files
def test_answers_to_the_real_suites_are_judged(tmp_path: Path, serve: Any) -> None:
    server = serve(lambda request: "[3, 3]")
    data = ("--data", str(SHARED), "--first", "5")
    for name in ("one", "two"):
        out = tmp_path / name
        assert answers(server, "alpaca", out, *data, "--name", name) == 0
    made = json.loads((tmp_path / "one" / "model_outputs.json").read_text())
    assert [row["dataset"] for row in made] == ["helpful_base"] * 5
    both = [str(tmp_path / name / "model_outputs.json") for name in ("one", "two")]
    judged = ["judge", "pairwise", *both, "--judge", server.model, "--out", str(tmp_path / "j")]
    assert main(judged) == 0
    assert json.loads((tmp_path / "j" / "summary.json").read_text())["win_rate"] == 50.0
    assert answers(server, "vicuna", tmp_path / "v", *data) == 0
    vicuna = str(tmp_path / "v" / "rules.jsonl")
    baseline = str(SHARED / "vicuna_bench" / "answer" / "answer_gpt35.jsonl.gz")
    judged = ["judge", "pairwise", vicuna, baseline, "--judge", server.model]
    judged += ["--questions", str(SHARED / "vicuna_bench" / "question.jsonl.gz")]
    assert main([*judged, "--out", str(tmp_path / "w")]) == 0
    summary = json.loads((tmp_path / "w" / "summary.json").read_text())
    assert (summary["comparisons"], len(summary["lacking"]), summary["ties"]) == (5, 75, 5)


@pytest.mark.parametrize(
    ("text", "answer", "thought"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", "Yes.", "Hm."),
        ("Hm.\n</think>\nYes.", "Yes.", "Hm."),
        ("<think>Hm, and on", "", "Hm, and on"),
        ("<think></think>Yes.", "Yes.", ""),
        ("Yes.", "Yes.", ""),
        ("Say <think>so</think>.", "Say <think>so</think>.", ""),
        ("  ", "", ""),
    ],
)
def test_thinking_is_taken_off(text: str, answer: str, thought: str) -> None:
    assert without_thinking(text) == (answer, thought)
