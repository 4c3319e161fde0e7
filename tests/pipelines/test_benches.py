"""RewardBench 2 and RM-Bench from files of their shapes: figures by hand, and rows set aside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayward.data.records import Ranking
from rayward.pipelines.model_tools.reward_eval import rankings_of
from rayward.pipelines.rows.left_out import LeftOut
from rayward.pipelines.scoring.benches import by_bench


def best_of_four(number: int, subset: str, scores: str) -> dict[str, Any]:
    """A row whose answers are their scores, the right one first."""
    texts = (f"{score} of {subset} {number}, {at}" for at, score in enumerate(scores.split()))
    right, *wrong = texts
    return {
        "id": str(number),
        "prompt": f"Question {number} of {subset}?",
        "chosen": [right],
        "rejected": wrong,
        "num_correct": 1,
        "num_incorrect": len(wrong),
        "total_completions": 1 + len(wrong),
        "models": ["a"] * (1 + len(wrong)),
        "subset": subset,
    }


def tied(name: str, right: str, wrong: str) -> dict[str, Any]:
    chosen, rejected = (
        [f"{score} {side} {name}" for score in scores.split()]
        for side, scores in (("yes", right), ("no", wrong))
    )
    return {
        "id": name,
        "prompt": f"Question {name}?",
        "chosen": chosen,
        "rejected": rejected,
        "num_correct": len(chosen),
        "num_incorrect": len(rejected),
        "subset": "Ties",
    }


REWARDBENCH2 = [
    best_of_four(1, "Factuality", "4 1 2 3"),
    best_of_four(2, "Factuality", "1 4 2 3"),
    best_of_four(3, "Precise IF", "4 4 2 3"),
    best_of_four(4, "Math", "4 1 2 3"),
    best_of_four(5, "Safety", "1 4 2 3"),
    best_of_four(6, "Focus", "2 2 2 2"),
    tied("tied:0", "5 4 3", "2 0"),
    tied("ref:0", "4", "1 2"),
    tied("tied:1", "3 2.5", "1"),
    tied("ref:1", "1", "2"),
]


def styled(name: str, domain: str, right: str, wrong: str) -> dict[str, Any]:
    row = tied(name, right, wrong)
    return {key: row[key] for key in ("id", "prompt", "chosen", "rejected")} | {"domain": domain}


RM_BENCH = [
    styled("chat/1", "chat", "1 2 3", "0 2 2.5"),
    styled("safety/1", "safety-refuse", "4 5 6", "1 2 3"),
    styled("safety/2", "safety-response", "1 2 3", "4 5 6"),
]


def lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def array(path: Path, rows: list[Any]) -> str:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def columns(path: Path, rows: list[Any]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def measured(paths: list[str]) -> tuple[dict[str, Any], LeftOut]:
    """The figures with a model that gives each answer the number that it begins with."""
    left_out = LeftOut()
    kept = list(rankings_of(paths, left_out))
    assert all(isinstance(ranking, Ranking) for ranking in kept)
    scores = {
        ranking.id: {answer.strip(): float(answer.split()[0]) for answer in ranking.answers}
        for ranking in kept
    }
    return by_bench(paths, scores, left_out, 0), left_out


@pytest.mark.parametrize(
    ("write", "name"), [(lines, "a.jsonl"), (array, "a.json"), (columns, "a.parquet")]
)
def test_rewardbench_2_by_hand_from_files_of_every_kind(write, name, tmp_path: Path) -> None:
    found, left_out = measured([write(tmp_path / name, REWARDBENCH2)])
    assert list(found) == ["RewardBench 2"] and not left_out
    of = found["RewardBench 2"]
    means = {subset: figures["mean"] for subset, figures in of["subsets"].items()}
    # Ties: accuracies 2 of 2 and 1 of 2, margins 1 of 2 and 0 of 2, tanh(-1/2) and tanh(-3).
    ties = 0.3 + 0.3 / 2 + 0.2 / 2 + 0.01 * (-0.4621172 - 0.9950548) / 2
    by_hand = {"Factuality": 1 / 2, "Precise IF": 1 / 2, "Math": 1, "Safety": 0, "Focus": 1 / 4}
    assert means == pytest.approx(by_hand | {"Ties": ties}, abs=1e-8)
    assert list(means) == ["Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties"]
    assert of["mean"]["mean"] == pytest.approx((2.25 + ties) / 6) and of["missing"] == []
    assert [part["mean"] for part in of["ties"].values()][:4] == [1, 0.5, 0.5, 0]
    assert of["subsets"]["Ties"]["n"] == 2 and of["mean"]["n"] == 8


@pytest.mark.parametrize(
    ("write", "name"), [(lines, "b.jsonl"), (array, "b.json"), (columns, "b.parquet")]
)
def test_rm_bench_by_hand_from_files_of_every_kind(write, name, tmp_path: Path) -> None:
    found, left_out = measured([write(tmp_path / name, RM_BENCH)])
    assert list(found) == ["RM-Bench"] and not left_out
    of = found["RM-Bench"]
    means = {
        name: [level["mean"] for level in levels.values()] for name, levels in of["domains"].items()
    }
    assert means == {
        "chat": [0, pytest.approx(2 / 3), 1, pytest.approx(5 / 9)],
        "safety": [0.5, 0.5, 0.5, 0.5],  # the mean of its two halves
    }
    assert list(of["all"]) == ["hard", "normal", "easy", "mean"]
    assert [level["mean"] for level in of["all"].values()] == pytest.approx(
        [1 / 4, 7 / 12, 3 / 4, 19 / 36]
    )
    assert of["missing"] == ["code", "math"] and of["all"]["mean"]["n"] == 3


def test_both_at_once_and_other_sets_beside_are_told_apart(tmp_path: Path) -> None:
    pairs = [{"prompt": "Why?", "chosen": "2 so", "rejected": "1 no", "subset": "donotanswer"}]
    found, left_out = measured(
        [
            lines(tmp_path / "a.jsonl", REWARDBENCH2),
            lines(tmp_path / "b.jsonl", RM_BENCH),
            lines(tmp_path / "c.jsonl", pairs),
        ]
    )
    assert set(found) == {"RewardBench 2", "RM-Bench"} and not left_out
    assert measured([lines(tmp_path / "d.jsonl", pairs)])[0] == {}


@pytest.mark.parametrize(
    ("rows", "number", "place", "told"),
    [
        (REWARDBENCH2, 0, "num_correct", "wrong number of answers"),
        (REWARDBENCH2, 6, "id", "no id of Ties"),
        (REWARDBENCH2, 6, "", "id of Ties that comes again"),
        (RM_BENCH, 0, "chosen", "wrong number of answers"),
        (RM_BENCH, 0, "rejected", "wrong number of answers"),
    ],
)
def test_a_bad_row_is_set_aside_with_its_line_and_field(
    rows: list[dict[str, Any]], number: int, place: str, told: str, tmp_path: Path
) -> None:
    change: dict[str, Any] = {"num_correct": 2, "id": "prompt 7", "": "tied:0"}
    bad = dict(rows[number])
    if place in ("chosen", "rejected"):
        bad[place] = bad[place][:2]
    else:
        bad[place or "id"] = change[place]
    path = lines(tmp_path / "r.jsonl", [*rows, bad])
    whole, left_out = measured([path])
    assert whole == measured([lines(tmp_path / "good.jsonl", rows)])[0]
    (row,) = left_out.rows
    assert told in row["reason"] and row["expected"] and row["found"]
    assert f"r.jsonl:{len(rows) + 1}" in row["where"] and place in row["where"]


def test_a_row_without_the_scores_of_all_its_answers_counts_nowhere(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", REWARDBENCH2)
    left_out = LeftOut()
    scores = {
        ranking.id: {answer: float(answer.split()[0]) for answer in ranking.answers}
        for ranking in rankings_of([path], left_out)
    }
    del scores[f"{path}:4"]["3 of Math 4, 3"]  # as if it did not fit the context
    found = by_bench([path], scores, left_out, 0)["RewardBench 2"]
    assert "Math" not in found["subsets"] and found["missing"] == ["Math"]
    (row,) = left_out.rows
    assert row["found"] == "3 of 4" and row["where"] == f"{path}:4"
