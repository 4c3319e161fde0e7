"""What judges, models and files may bring: odd replies, questions of one text, names and prices
that cannot be; counted or refused, and nothing that was paid is lost.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayward.pipelines.cli import main

LENGTH = "rayward.data.rules:length"


def lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def summary(out: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return value


def answers(folder: Path, name: str, count: int = 8) -> str:
    rows = [
        {"instruction": f"Question {n}?", "output": f"{name} {n}" + "x" * n, "generator": name}
        for n in range(count)
    ]
    return lines(folder / f"{name}.jsonl", rows)


WHOLE = {"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "[1, 2]"}}]}


@pytest.mark.parametrize(
    "odd",
    [
        {"content": [{"type": "text", "text": "[1, 2]"}]},
        {"content": 7},
        {"usage": {"prompt_tokens": "many", "completion_tokens": 2}},
        {"raw": json.dumps(WHOLE | {"choices": [None]}).encode()},
        {"raw": json.dumps(WHOLE | {"choices": [{"index": 0}]}).encode()},
        {"raw": json.dumps(WHOLE).encode()[:-9]},
        {"raw": '{"choices": "\u00e9"}'.encode("latin-1")},
        {"raw": b"<html>Bad gateway</html>"},
    ],
    ids=lambda odd: str(odd)[:40],
)
def test_one_odd_reply_costs_that_one(
    odd: dict[str, Any], tmp_path: Path, serve: Any, capsys: Any
) -> None:
    def rule(request: dict[str, Any]) -> Any:
        return odd if "Question 3?" in request["messages"][-1]["content"] else "[1, 2]"

    server, out = serve(rule), tmp_path / "out"
    command = ["judge", "pairwise", answers(tmp_path, "mine"), answers(tmp_path, "theirs")]
    command += ["--judge", server.model, "--out", str(out), "--retries", "0"]
    for _ in range(2):
        assert main(command) == 1
        told = capsys.readouterr()
        assert "2 replies are missing" in told.out and "no reply to" in told.out, told
        assert "Error" not in told.err and "RAYWARD" not in told.err
        asked = summary(out)["asked"]
        assert (asked["replies"], asked["wanted"], asked["unanswered"]) == (14, 16, 2)
    # All others were paid once.
    assert len(server.seen) == 16 + 2
    server.rule = lambda request: "[1, 2]"
    assert main(command) == 0 and summary(out)["comparisons"] == 8


def test_a_reply_without_all_that_some_tell_is_one(tmp_path: Path, serve: Any) -> None:
    bare = {"content": "[1, 2]", "usage": {"prompt_tokens": 10}}
    bare |= {"logprobs": {"content": [{"token": "A", "logprob": -0.1, "top_logprobs": None}]}}
    server, out = serve(lambda request: bare), tmp_path / "out"
    command = ["judge", "pairwise", answers(tmp_path, "mine"), answers(tmp_path, "theirs")]
    assert main([*command, "--judge", server.model, "--out", str(out)]) == 0
    assert summary(out)["asked"]["replies"] == 16


def test_questions_of_one_text_are_told_apart_by_their_order(tmp_path: Path, capsys: Any) -> None:
    asked = [
        {"question_id": n, "turns": ["Who are you?"], "system": who}
        for n, who in enumerate(("a pirate", "a king", "a fool"))
    ]
    questions = lines(tmp_path / "questions.jsonl", asked)

    def said(name: str, texts: list[str]) -> str:
        rows = [{"instruction": "Who are you?", "output": x, "generator": name} for x in texts]
        return lines(tmp_path / f"{name}.jsonl", rows)

    ours, theirs = (
        said("ours", ["a long answer", "me", "I"]),
        said("theirs", ["no", "king", "fool"]),
    )
    out = tmp_path / "out"
    command = ["judge", "pairwise", ours, theirs, "--judge", LENGTH, "--out", str(out)]
    assert main([*command, "--questions", questions]) == 0
    made = summary(out)
    assert (made["wins"], made["losses"], made["comparisons"]) == (1, 2, 3)
    # The same verdicts by the command that reads them.
    figures = tmp_path / "figures.json"
    assert main(["judge", "winrate", str(out / "verdicts.jsonl"), "--json", str(figures)]) == 0
    (row,) = json.loads(figures.read_text())
    assert row["n_total"] == 3 and row["win_rate"] == pytest.approx(made["win_rate"])
    capsys.readouterr()
    few = said("theirs", ["no", "king"])
    assert main([*command[:3], few, *command[4:], "--questions", questions]) == 2
    assert "3 questions have the text 'Who are you?', and 2 of the answers" in (
        capsys.readouterr().err
    )


def test_verdicts_on_turns_of_one_text_each_count(tmp_path: Path) -> None:
    asked = [{"question_id": n, "turns": [f"Is {n} even?", "Is that true?"]} for n in range(4)]
    questions = lines(tmp_path / "questions.jsonl", asked)

    def said(name: str, first: str) -> str:
        rows = [
            {"question_id": n, "model_id": name, "choices": [{"turns": [first, "Yes."]}]}
            for n in range(4)
        ]
        return lines(tmp_path / f"{name}.jsonl", rows)

    out, figures = tmp_path / "out", tmp_path / "figures.json"
    command = ["judge", "pairwise", said("ours", "Yes, it is."), said("theirs", "No.")]
    command += ["--questions", questions, "--judge", LENGTH, "--out", str(out)]
    assert main(command) == 0
    assert main(["judge", "winrate", str(out / "verdicts.jsonl"), "--json", str(figures)]) == 0
    (row,) = json.loads(figures.read_text())
    assert row["n_total"] == summary(out)["comparisons"] == 8
    assert row["win_rate"] == pytest.approx(summary(out)["win_rate"]) == 75.0


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--name", "cache"], "which is another file of this command"),
        (["--name", ""], None),
        (["--first", "0"], "--first is 0, expected at least 1"),
        (["--first", "-1"], "--first is -1, expected at least 1"),
        (["--budget", "nan", "--model-price", "1", "1"], "--budget is nan: more than 0"),
        (["--budget", "-1", "--model-price", "1", "1"], "--budget is -1.0: more than 0"),
        (["--budget", "1", "--model-price", "-1", "1"], "--model-price is -1.0 1.0: 0 and more"),
        (
            ["--budget", "1", "--model-price", "1", "1", "--model-request", '{"max_tokens": "x"}'],
            "max_tokens is 'x': a budget needs a number",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused(
    more: list[str], told: str | None, tmp_path: Path, serve: Any, capsys: Any
) -> None:
    server = serve(lambda request: "Well.")
    asked = [{"question_id": n, "turns": ["A?", "B?"]} for n in range(2)]
    command = ["judge", "answers", server.model, "--suite"]
    command += [lines(tmp_path / "q.jsonl", asked), "--out", str(tmp_path / "out"), *more]
    if told is None:  # no name is as none given
        assert main(command) == 0 and (tmp_path / "out" / "rules.jsonl").is_file()
        return
    assert main(command) == 2 and told in capsys.readouterr().err
    assert not server.seen


def test_two_files_of_one_model_are_not_rated_together(
    tmp_path: Path, serve: Any, capsys: Any
) -> None:
    row = {"question_id": 1, "model_id": "ours", "choices": [{"turns": ["Yes."]}]}
    files = [lines(tmp_path / f"{name}.jsonl", [row]) for name in ("a", "b")]
    questions = lines(tmp_path / "q.jsonl", [{"question_id": 1, "turns": ["Is it?"]}])
    server = serve(lambda request: "Rating: [[7]]")
    command = ["judge", "single", *files, "--questions", questions, "--judge", server.model]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert "a.jsonl and" in (told := capsys.readouterr().err) and "both are answers of ours" in told


@pytest.mark.parametrize(
    "odd",
    [
        [{"model": "m", "win_rate": "50"}],
        [{"model": "m", "win_rate": float("nan")}],
        {"ratings": [{"model": "x"}]},
        {"results": {"t": 5}},
    ],
    ids=str,
)
def test_a_board_names_the_file_that_is_odd(odd: Any, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(odd), encoding="utf-8")
    assert main(["judge", "board", str(path), "--out", str(tmp_path / "board.html")]) == 2
    told = capsys.readouterr().err
    assert "odd.json: its figures cannot be read" in told and "RAYWARD" not in told


@pytest.mark.parametrize("file", ["summary.json", "config.yaml"])
def test_a_board_names_the_damaged_file_of_a_run(file: str, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "summary.json").write_text("{}")
    (run / file).write_text("{ a: [")
    assert main(["judge", "board", str(run), "--out", str(tmp_path / "board.html")]) == 2
    assert f"run/{file}: " in capsys.readouterr().err
