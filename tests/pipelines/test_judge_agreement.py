"""`rayward judge agreement`: labels of three people, verdicts of judges, rankings, real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayward.data.judging.annotations import verdicts
from rayward.data.judging.labels import LabelledPair, labelled_pairs
from rayward.pipelines.cli import main

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
real = pytest.mark.skipif(
    not REAL.is_dir(), reason="the real data sets are not beside the checkout"
)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return path


def report(*arguments: Any, out: Path) -> dict[str, Any]:
    assert main(["judge", "agreement", *map(str, arguments), "--json", str(out)]) == 0
    got: dict[str, Any] = json.loads(out.read_text())
    return got


def panda(number: int, labels: tuple[int, int, int], lengths: tuple[int, int]) -> dict[str, Any]:
    """A row of PandaLM's; the answers begin with its number."""
    return {
        "instruction": f"question {number}",
        "input": "" if number % 2 else "about this",
        "response1": f"{number}".ljust(lengths[0], "a"),
        "response2": f"{number}".ljust(lengths[1], "b"),
        **{f"annotator{place}": label for place, label in enumerate(labels, start=1)},
    }


PANDA = [
    panda(1, (1, 1, 2), (9, 5)),  # the first, by two of three; it is the longer one
    panda(2, (2, 2, 2), (9, 5)),  # the second, the shorter one
    panda(3, (0, 0, 1), (5, 9)),  # a tie
    panda(4, (0, 1, 2), (5, 9)),  # no two agree
    panda(5, (2, 2, 0), (5, 9)),
]


def verdict(row: dict[str, Any], preference: float | None, **more: Any) -> dict[str, Any]:
    """That of a judge which was shown the second answer as the model's."""
    return {
        "instruction": row["instruction"],
        "output_1": row["response1"],
        "generator_1": "first",
        "output_2": row["response2"],
        "generator_2": "second",
        "annotator": "judge",
        "preference": preference,
        **more,
    }


def turned(row: dict[str, Any], preference: float, **more: Any) -> dict[str, Any]:
    """That of one which was shown the first answer as the model's."""
    other = {**row, "response1": row["response2"], "response2": row["response1"]}
    return verdict(other, preference, **more)


def test_three_annotators_and_a_judge_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = write(tmp_path / "panda.jsonl", PANDA)
    reviews = [{"order": "model first", "preference": each} for each in (2, 2, 1, None)]
    reviews += [{"order": "baseline first", "preference": each} for each in (1.5, 1.5)]
    given = [
        verdict(PANDA[0], 1, conflict=False),  # right
        turned(PANDA[1], 2, conflict=True, reviews=reviews),  # wrong: the first
        verdict(PANDA[2], 1.5, conflict=None),  # the same tie
        verdict(PANDA[3], 2),  # on a pair without a label
        verdict(PANDA[4], 2),  # first right, but then again:
        verdict(PANDA[4], None),
        verdict(panda(6, (0, 0, 0), (5, 5)), 1),
    ]
    judged = write(tmp_path / "verdicts.jsonl", given)
    got = report(labels, "--verdicts", judged, out=tmp_path / "out.json")
    assert (got["pairs"], got["labelled"], got["label_ties"]) == (5, 4, 1)
    # The first two annotators say the same of all but question 4, where they differ.
    assert got["humans"][0]["labellers"] == ["annotator1", "annotator2"]
    assert got["humans"][0]["same"]["mean"] == pytest.approx(4 / 5)
    longer, judge = got["judges"]
    # Longer: right of question 1 and 5, wrong of 2; of the tie it says "second".
    assert longer["accuracy"]["mean"] == pytest.approx(2 / 3)
    assert longer["same"]["mean"] == pytest.approx(2 / 4)
    assert longer["labels_prefer_longer"]["mean"] == pytest.approx(2 / 3)
    assert (judge["judge"], judge["n"], judge["missing"]) == ("judge", 3, 1)
    assert judge["same"]["mean"] == pytest.approx(2 / 3)
    assert judge["accuracy"]["mean"] == pytest.approx(1 / 2)
    # Where both say something they say the same: the first, which is longer.
    assert judge["prefers_longer"]["mean"] == 1 and judge["beyond_length"]["mean"] == 0
    assert judge["conflicts"] == {"mean": 0.5, "n": 2}
    # Pairs of samples: 2-2 equal, 2-1 twice not; the two ties are equal.
    assert judge["self_consistency"] == {"mean": 2 / 4, "n": 4}
    told = capsys.readouterr().out
    assert "judge is no better than taking the longer answer" in told
    assert "2  a verdict on none of the pairs" in told
    assert "1  no label: no answer has more than half of the labellers" in told


def test_a_judge_that_agrees_with_all_is_better_than_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [panda(number, (2, 2, 2), (9, 5 + 8 * (number % 2))) for number in range(40)]
    labels = write(tmp_path / "panda.jsonl", rows)
    given = [
        (verdict(row, 1.9) if number % 3 else turned(row, 1.1)) for number, row in enumerate(rows)
    ]
    judged = write(tmp_path / "verdicts.jsonl", given)
    _, judge = report(labels, "--verdicts", judged, out=tmp_path / "o.json")["judges"]
    assert judge["accuracy"]["mean"] == judge["same"]["mean"] == 1
    assert judge["beyond_length"]["low"] > 0.2
    assert "no better" not in capsys.readouterr().out


def test_pairs_are_drawn_written_and_found_again(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"\n\nHuman: question {number}\n\nAssistant: ",
            "answers": [
                {"answer": f"{number} good", "model": "a", "rank": 1.0},
                {"answer": f"{number} bad", "model": "b", "rank": 2.0},
                {"answer": f"{number} also bad", "model": "c", "rank": 2.0},
            ],
            "turns": 1,
            "num_responses": 3,
        }
        for number in range(8)
    ]
    labels = write(tmp_path / "test.jsonl", rows)
    pairs = [each for each in labelled_pairs(labels, seed=0) if isinstance(each, LabelledPair)]
    # Two untied pairs a ranking; which answer is first is drawn, and the label goes with it.
    assert len(pairs) == 16 and {pair.labels["rank"] for pair in pairs} == {0.0, 1.0}
    for pair in pairs:
        assert (pair.second if pair.labels["rank"] else pair.first).endswith(" good")
    folder = tmp_path / "pairs"
    asked = ("--pairs", 10, "--write", folder)
    got = report(labels, *asked, out=tmp_path / "o.json")
    assert got["labelled"] == 10
    again = report(labels, *asked, out=tmp_path / "o.json")
    other = report(labels, *asked, "--seed", 1, out=tmp_path / "o.json")
    assert again == got and other != got
    # What `judge pairwise` makes of the files: here a judge that knows the good ones.
    report(labels, *asked, out=tmp_path / "o.json")
    questions, first, second = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("question", "first", "second")
    )
    made = [
        {
            "question_id": question["question_id"],
            "instruction": question["turns"][0],
            "output_1": one["choices"][0]["turns"][0],
            "generator_1": one["model_id"],
            "output_2": two["choices"][0]["turns"][0],
            "generator_2": two["model_id"],
            "preference": 2 if two["choices"][0]["turns"][0].endswith(" good") else 1,
        }
        for question, one, two in zip(questions, first, second, strict=True)
    ]
    judged = write(tmp_path / "verdicts.jsonl", made)
    judge = report(labels, *asked[:2], "--verdicts", judged, out=tmp_path / "o.json")["judges"][1]
    assert (judge["n"], judge["missing"], judge["accuracy"]["mean"]) == (10, 0, 1)


def test_rankings_made_again(tmp_path: Path) -> None:
    answers = [
        {"answer": f"answer {rank}", "model": "m", "rank": float(rank)} for rank in (1, 2, 3)
    ]
    row = {"prompt": "\n\nHuman: q\n\nAssistant: ", "answers": answers, "turns": 1}
    labels = write(tmp_path / "test.jsonl", [{**row, "num_responses": 3}])
    again = [
        {"split": "test", "row": 0, "experiment": "one", "order": [1, 2, 3]},
        {"split": "test", "row": 0, "experiment": "two", "order": [3, 1, 2]},
        {"split": "test", "row": 1, "experiment": "two", "order": [2, 1]},
        {"split": "test", "row": 1, "experiment": "two", "order": [2, 2]},
    ]
    got = report(
        labels, "--rankings", write(tmp_path / "again.jsonl", again), out=tmp_path / "o.json"
    )
    by_judge = {each["judge"]: each for each in got["rankings"]}
    # 1, 1/3 and 0 of the pairs in order.
    assert by_judge["all"]["pairs_in_order"]["mean"] == pytest.approx(4 / 9)
    assert by_judge["two"]["spearman"]["mean"] == pytest.approx((-0.5 - 1) / 2)
    judge = got["judges"][1]
    # Pair 1-2 in order by both; 1-3 and 2-3 by one of two: ties.
    assert judge["accuracy"]["mean"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert judge["self_consistency"] == {"mean": 1 / 3, "n": 3}


def test_verdicts_are_labels_for_another_judge(tmp_path: Path) -> None:
    one = write(
        tmp_path / "one.jsonl",
        [verdict(row, 1 + row_number % 2) for row_number, row in enumerate(PANDA)],
    )
    other = write(tmp_path / "other.jsonl", [verdict(row, 2, annotator="other") for row in PANDA])
    got = report(one, "--verdicts", other, out=tmp_path / "o.json")
    assert got["labelled"] == 5 and got["judges"][1]["same"]["mean"] == pytest.approx(2 / 5)
    assert {each.annotator for each in verdicts(other)} == {"other"}


def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = write(tmp_path / "panda.jsonl", [*PANDA, panda(7, (3, 1, 1), (5, 5))])
    stray = write(tmp_path / "stray.jsonl", [verdict(panda(8, (0, 0, 0), (5, 5)), 1)])
    asked = {
        ("--pairs", 5): "--pairs is 5, but there are 4 labelled pairs",
        ("--verdicts", stray): "none of its verdicts is on one of the 4 pairs",
        ("--rankings", stray): "no ranking in it: ",
        ("--json", labels): "is among the files to read",
    }
    for arguments, message in asked.items():
        assert main(["judge", "agreement", str(labels), *map(str, arguments)]) == 2
        assert message in capsys.readouterr().err
    assert main(["judge", "agreement", str(labels)]) == 0
    told = capsys.readouterr().out
    assert "panda.jsonl:6: annotator1: found 3, expected 0 (a tie), 1 or 2" in told


@real
def test_real_labels(tmp_path: Path) -> None:
    """The counts of PandaLM's labels, and what the files' README says of Nectar's rankings."""
    panda_file = REAL / "preference" / "pandalm_testset.json.gz"
    got = report(panda_file, out=tmp_path / "o.json")
    assert (got["pairs"], got["labelled"], got["prompts"], got["label_ties"]) == (500, 500, 85, 21)
    # 239 + 204 + 14 of 500 are unanimous, so each two agree at least so often.
    assert all(each["same"]["mean"] >= 457 / 500 for each in got["humans"])
    nectar, again = (REAL / "nectar" / name for name in ("test.jsonl.gz", "rejudged.jsonl.gz"))
    got = report(nectar, "--pairs", 300, "--rankings", again, out=tmp_path / "o.json")
    assert got["labelled"] == 300
    everything = got["rankings"][0]
    assert everything["rankings"] == 1650
    assert round(everything["pairs_in_order"]["mean"], 3) == 0.751
    assert round(everything["spearman"]["mean"], 3) == 0.610
