"""`rayward judge scores`: means by hand, what counts of repeated and unratable rows, real files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rayward.pipelines.cli import main

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
real = pytest.mark.skipif(
    not REAL.is_dir(), reason="the real data sets are not beside the checkout"
)


def rating(question: int, turn: int, score: float, text: str = "", **more: Any) -> dict[str, Any]:
    return {
        "question_id": question,
        "model": "ours",
        "judge": ["gpt-4", "single-v1"],
        "judgment": text or f"Good. Rating: [[{score:g}]]",
        "score": score,
        "turn": turn,
        **more,
    }


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return path


def figures(*arguments: Any, out: Path) -> dict[str, list[dict[str, Any]]]:
    assert main(["judge", "scores", *map(str, arguments), "--json", str(out)]) == 0
    got: dict[str, list[dict[str, Any]]] = json.loads(out.read_text())
    return got


def test_ratings_by_turn_and_category(tmp_path: Path) -> None:
    rows = [
        rating(1, 1, 3),
        rating(1, 1, 9),  # the last one counts
        rating(1, 2, 4, judge="gpt-4"),  # a name alone is a judge, too
        rating(2, 1, 6.5, category="math"),
        rating(2, 2, -1, "No idea."),
        rating(3, 1, 2, "The rating is [2]."),
        rating(3, 2, 8, "[[7]]"),  # the row and its text disagree
        rating(1, 1, 5, model="theirs"),
    ]
    questions = [{"question_id": number, "category": "writing", "turns": []} for number in (1, 2)]
    path = write(tmp_path / "rows.jsonl", rows)
    asked = ("--questions", write(tmp_path / "question.jsonl", questions))
    ours, theirs = figures(path, *asked, out=tmp_path / "out.json")["ratings"]
    assert ours["mean"] == pytest.approx((9 + 4 + 6.5 + 2 + 8) / 5) and ours["n"] == 5
    assert ours["low"] < ours["mean"] < ours["high"]
    assert (ours["unratable"], ours["repeated"], theirs["mean"]) == (1, 1, 5)
    by_turn = {turn: each["mean"] for turn, each in ours["turns"].items()}
    assert by_turn == pytest.approx({"1": 17.5 / 3, "2": 6})
    by_category = {name: each["mean"] for name, each in ours["categories"].items()}
    assert by_category == {"": 5, "math": 6.5, "writing": 6.5}
    assert ours["parser"]["equal"] == 6
    (other,) = ours["parser"]["other"]
    assert other == {"question_id": 3, "turn": 2, "score": 8, "parsed": 7}


def test_reviews_of_one_order_and_of_both(tmp_path: Path) -> None:
    def review(number: int, text: str, score: list[float]) -> dict[str, Any]:
        ids = {"answer1_id": f"a{number}", "answer2_id": f"b{number}"}
        return {"question_id": number, "reviewer_id": "gpt-4", "text": text, "score": score, **ids}

    def both(number: int, a: list[float], b: list[float]) -> dict[str, Any]:
        score = {"score": [0, 0], "raw_a": [a, "because"], "raw_b": [b, "because"]}
        return {"question_id": number, "answer_model": "ours", "text": "q", "score": score}

    rows = [
        review(1, "8 7\nbecause", [8, 7]),
        review(2, "6, 6\nbecause", [6, 6]),
        review(3, "First I solve it.\n4 9", [4, 9]),
        review(4, "no score", [-1, -1]),
        both(1, [8, 6], [5, 7]),  # the winner changes with the order
        both(2, [0, 0], [9, 3]),  # one order cannot be read
        both(3, [0, 0], [0, 0]),
        both(4, [6, 4], [8, 6]),
    ]
    single, double = figures(write(tmp_path / "r.jsonl", rows), out=tmp_path / "o.json")[
        "pair_scores"
    ]
    assert (single["sum_first"], single["sum_second"], single["n"]) == (18, 22, 3)
    assert (single["wins"], single["ties"], single["losses"], single["unratable"]) == (1, 1, 1, 1)
    assert single["percent"] == pytest.approx(100 * 18 / 22)
    # A review without scores agrees with a text that has none.
    assert single["parser"]["equal"] == 3 and single["parser"]["other"][0]["question_id"] == 3
    assert single["parser"]["other"][0]["reason"] == "the first line is not two numbers"
    # 6.5 + 9 + 7 to 6.5 + 3 + 5.
    assert (double["sum_first"], double["sum_second"]) == (22.5, 14.5)
    assert (double["unratable"], double["both_orders"], double["conflicts"]) == (1, 2, 1)
    assert double["first"] == "ours"


def test_scores_of_our_own_verdicts(tmp_path: Path) -> None:
    """The baseline stands first in a verdict, the model in what is told, as OpenChat has it."""

    def verdict(number: int, first: list[int], second: list[int] | None) -> dict[str, Any]:
        both = {"model first": first, "baseline first": second}
        read = [each for each in (first, second) if each]
        return {
            "question_id": number,
            "category": "math",
            "instruction": "q",
            "output_1": "a",
            "generator_1": "base",
            "output_2": "b",
            "generator_2": "ours",
            "annotator": "judge",
            "preference": 2,
            "scores": [sum(each[side] for each in read) / len(read) for side in (0, 1)],
            "reviews": [{"order": order, "scores": scores} for order, scores in both.items()],
        }

    rows = [verdict(1, [6, 9], [6, 8]), verdict(2, [8, 7], [7, 8]), verdict(3, [5, 5], None)]
    rows.append({**verdict(4, [5, 5], None), "scores": None, "reviews": []})
    (got,) = figures(write(tmp_path / "v.jsonl", rows), out=tmp_path / "o.json")["pair_scores"]
    assert (got["first"], got["second"], got["judges"]) == ("ours", "base", ["judge"])
    # 8.5 + 7.5 + 5 to 6 + 7.5 + 5.
    assert (got["sum_first"], got["sum_second"]) == (21, 18.5)
    assert got["percent"] == pytest.approx(100 * 21 / 18.5)
    assert (got["n"], got["unratable"], got["both_orders"], got["conflicts"]) == (3, 1, 2, 1)


def test_winners_count_where_both_orders_agree(tmp_path: Path) -> None:
    def pair(number: int, first: str, second: str) -> dict[str, Any]:
        return {
            "question_id": number,
            "model_1": "ours",
            "model_2": "theirs",
            "g1_winner": first,
            "g2_winner": second,
            "judge": ["gpt-4", "pair-v2"],
            "turn": 1,
        }

    rows = [
        pair(1, "model_1", "model_1"),
        pair(2, "model_1", "model_2"),
        pair(3, "tie", "tie"),
        pair(4, "model_2", "theirs"),
        pair(5, "tie", "model_1"),
        pair(6, "error", "model_1"),
        pair(1, "model_2", "model_2"),  # question 1 again: the last one counts
    ]
    (got,) = figures(write(tmp_path / "r.jsonl", rows), out=tmp_path / "o.json")["pair_winners"]
    # No win, three ties and two losses of five.
    assert got["win_rate"] == pytest.approx(100 * 1.5 / 5)
    assert (got["wins"], got["ties"], got["losses"]) == (0, 3, 2)
    assert (got["conflicts"], got["n"], got["unreadable"]) == (2, 5, 1)


def test_bad_rows_are_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        rating(1, 1, 7),
        rating(2, 0, 7),
        {**rating(3, 1, 7), "question_id": None},
        {**rating(4, 1, 7), "score": "7"},
        {"question_id": 5, "text": "an answer"},
        {"question_id": 6, "answer1_id": "a", "answer2_id": "b", "text": "1 2", "score": [1]},
        {"question_id": 7, "model_1": "a", "model_2": "b", "g1_winner": "c", "g2_winner": "a"},
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    (ours,) = figures(path, out=tmp_path / "o.json")["ratings"]
    assert (ours["mean"], ours["low"], ours["high"]) == (7, 7, 7)
    told = capsys.readouterr().out
    for where in (
        "rows.jsonl:2: turn: found 0, expected a whole number from 1 on",
        "rows.jsonl:3: question_id: found None, expected a number or text",
        "rows.jsonl:4: score: found '7', expected a number",
        "rows.jsonl:5: row: found the fields question_id, text, expected judgment (a rating)",
        "rows.jsonl:6: score: found 1 items, expected two numbers",
        "... and 1 more",
    ):
        assert where in told
    nothing = write(tmp_path / "nothing.jsonl", rows[4:5])
    assert main(["judge", "scores", str(nothing)]) == 2
    assert "no judgment in it: " in capsys.readouterr().err
    assert main(["judge", "scores", str(path), "--questions", str(nothing)]) == 2
    assert "no row with question_id and category" in capsys.readouterr().err


@real
def test_mt_bench_of_real_files(tmp_path: Path) -> None:
    """Against means worked out another way; the rating parser reads every stored score."""
    folder = REAL / "mt_bench" / "model_judgment"
    questions = REAL / "mt_bench" / "question.jsonl.gz"
    got = figures(folder, "--questions", questions, out=tmp_path / "o.json")["ratings"]
    assert {each["model"]: round(each["mean"], 4) for each in got} == {
        "mistral-orpo-mix": 6.0031,
        "mistral-orpo-trl": 7.1656,
        "Meta-Llama-3-8B-Instruct-Normal": 7.7687,
    }
    category = {
        row["question_id"]: row["category"]
        for row in map(json.loads, gzip.decompress(questions.read_bytes()).splitlines())
    }
    for each in got:
        (file,) = folder.rglob(f"{each['model']}.jsonl.gz")
        rows = list(map(json.loads, gzip.decompress(file.read_bytes()).splitlines()))
        last = {(row["question_id"], row["turn"]): row["score"] for row in rows}
        assert each["parser"] == {"equal": len(rows), "other": []}
        assert each["repeated"] == len(rows) - 160 and each["n"] == 160
        for turn in (1, 2):
            scores = [score for (_, of), score in last.items() if of == turn]
            assert each["turns"][str(turn)]["mean"] == pytest.approx(sum(scores) / 80)
        assert len(each["categories"]) == 8
        for name, of_one in each["categories"].items():
            scores = [score for (number, _), score in last.items() if category[number] == name]
            assert of_one["mean"] == pytest.approx(sum(scores) / 20)


@real
def test_vicuna_reviews_of_real_files(tmp_path: Path) -> None:
    bench = REAL / "vicuna_bench"
    asked = ("--answers", bench / "answer", "--questions", bench / "question.jsonl.gz")
    got = figures(bench / "review", *asked, out=tmp_path / "o.json")["pair_scores"]
    sums = [(each["first"], each["sum_first"], each["sum_second"]) for each in got]
    assert sums == [("gpt-3.5-turbo:20230327", 693, 638), ("llama-13b:v1", 513, 694)]
    for each in got:
        assert each["parser"]["equal"] == 77 and each["second"].startswith("vicuna-13b")
        assert [other["question_id"] for other in each["parser"]["other"]] == [68, 69, 70]
        for other in each["parser"]["other"]:
            assert other["first_line"] == "First, I will solve the problem independently:"
        assert sum(of_one["n"] for of_one in each["categories"].values()) == 80
