"""`rayward judge winrate`: AlpacaEval's shapes and ours, bad rows, what was published."""

from __future__ import annotations

import gzip
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from rayward.pipelines.cli import main

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "alpaca_eval"
real = pytest.mark.skipif(
    not REAL.is_dir(), reason="AlpacaEval's files are not beside the checkout"
)
KEYS = (
    "model win_rate standard_error discrete_win_rate length_controlled_winrate n_total avg_length "
    "low high"
).split()


def row(number: int, preference: float | None, model: str = "ours", **more: Any) -> dict[str, Any]:
    """A row of annotations.json; the answers have 4 and `number + 1` characters."""
    return {
        "instruction": f"question {number}",
        "output_1": "base",
        "generator_1": "davinci",
        "output_2": "x" * (number + 1),
        "generator_2": model,
        "annotator": "judge",
        "preference": preference,
        **more,
    }


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return path


def figures(*arguments: Any, out: Path) -> list[dict[str, Any]]:
    assert main(["judge", "winrate", *map(str, arguments), "--json", str(out)]) == 0
    got: list[dict[str, Any]] = json.loads(out.read_text())
    return got


def fails(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main(["judge", "winrate", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_rows_lists_and_arrays_give_the_same(tmp_path: Path) -> None:
    preferences = [2, 1, 0, 1.25, None]
    rows = [row(number, preference) for number, preference in enumerate(preferences)]
    lines = write(tmp_path / "rows.jsonl", rows)
    array = tmp_path / "annotations.json.gz"
    array.write_bytes(gzip.compress(json.dumps(rows).encode()))
    compact = {
        "generator_2": "ours",
        "generator_1": "davinci",
        "annotator": "judge",
        "preference": preferences,
        "len_output_1": [4] * 5,
        "len_output_2": [1, 2, 3, 4, 5],
    }
    lists = write(tmp_path / "lists.jsonl", [compact])
    got = [figures(path, out=tmp_path / "out.json") for path in (lines, array, lists)]
    assert got[0] == got[1] == got[2]
    (ours,) = got[0]
    # Shares 1, 0, 0.5, 0.25: mean 0.4375; one win and one tie of four; lengths 1 to 5.
    assert ours["win_rate"] == pytest.approx(43.75) and ours["discrete_win_rate"] == 37.5
    assert (ours["n_total"], ours["n_missing"], ours["avg_length"]) == (4, 1, 3)
    assert list(ours)[: len(KEYS)] == KEYS and ours["baseline"] == "davinci"


def test_bad_rows_are_set_aside_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        row(0, 2),
        row(1, 3),
        row(2, 1, output_2=None),
        row(3, 1, generator_1=7),
        row(4, True),
        row(5, 1.5, annotator=None),
        row(0, 1),
        row(6, 1, output_2=""),
    ]
    write(path, rows)
    with path.open("a") as file:
        file.write('{"instruction": "cut off\n')
    got = figures(path, out=tmp_path / "out.json")
    # Row 0 comes twice, and the second verdict counts; the row without a judge stands apart.
    of_judge = {each["annotator"]: each for each in got}
    assert of_judge["judge"]["n_total"] == 2 and of_judge["judge"]["win_rate"] == 0
    assert of_judge["(not named)"]["win_rate"] == 50
    told = capsys.readouterr().out
    assert "6 rows were set aside" in told
    for where in (
        "rows.jsonl:2: preference: found 3, expected from 1 to 2, or null",
        "rows.jsonl:3: output_2: found None, expected text",
        "rows.jsonl:4: generator_1: found int, expected text",
        "rows.jsonl:5: preference: found True, expected a number",
        "repeated: the last verdict on the same answers counts",
    ):
        assert where in told


def test_lists_say_what_is_wrong_in_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"generator_1": "a", "generator_2": "b", "preference": [1, 2, 9, 2]}
    bad = {**good, "generator_2": "c", "len_output_2": [1, 2]}
    path = write(tmp_path / "lists.jsonl", [good, bad])
    (got,) = figures(path, out=tmp_path / "out.json")
    assert (got["model"], got["n_total"], got["avg_length"]) == ("b", 3, None)
    told = capsys.readouterr().out
    assert "lists.jsonl:1: preference[2]: found 9, expected from 1 to 2" in told
    assert "lists.jsonl:2: len_output_2: found 2 items, expected 4, as many" in told


def test_several_baselines_stand_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        row(number, preference, generator_1=baseline)
        for baseline, preference in (("davinci", 2), ("chatgpt", 1.5), ("gpt4", 1))
        for number in range(4)
    ]
    got = figures(write(tmp_path / "rows.jsonl", rows), out=tmp_path / "out.json")
    assert [(each["baseline"], each["win_rate"]) for each in got] == [
        ("davinci", 100),
        ("chatgpt", 50),
        ("gpt4", 0),
    ]
    told = capsys.readouterr().out
    assert "vs davinci" in told.partition("win rates by baseline")[2]


def test_a_pair_is_compared_on_the_instructions_of_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(number, preference) for number, preference in enumerate([2, 2, 1, 1.5])]
    rows += [row(number, 1.5, "other") for number in (3, 2, 1)] + [row(9, 1, "other")]
    rows += [row(1, 2, "third", annotator="somebody else")]
    path = write(tmp_path / "rows.jsonl", rows)
    got = figures(path, "--paired", "ours", "other", out=tmp_path / "out.json")
    (pair,) = got[0]["paired"]
    # Questions 1, 2, 3: gaps 0.5, -0.5, 0.
    assert (pair["against"], pair["n_total"]) == ("other", 3)
    assert (pair["difference"], pair["better"], pair["worse"]) == (0, 1, 1)
    assert pair["low"] < 0 < pair["high"]
    assert "paired" not in got[1]
    assert "no verdicts on nobody; there are other, ours, third" in fails(
        capsys, path, "--paired", "ours", "nobody"
    )
    assert "no judge compared both with the same baseline" in fails(
        capsys, path, "--paired", "ours", "third"
    )


def test_length_control_with_published_weights_and_by_text(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [row(number, 1 + number % 2) for number in range(12)])
    names = "np.tanh(std_delta_len),instruction_difficulty,not_gamed_baseline.astype(float)"
    weights = tmp_path / "weights.csv"
    weights.write_text(f",{names}\ndavinci,0,0,0\nours,-1,1.0986122886681098,0\n")
    difficulty = tmp_path / "difficulty.json"
    difficulty.write_text("[0, 1]")
    given = ("--weights", weights, "--difficulty", difficulty)
    (ours,) = figures(path, *given, out=tmp_path / "out.json")
    # As in tests/algorithms: the mean of 1/2 and 3/4.
    assert ours["length_controlled_winrate"] == pytest.approx(62.5)
    alone = figures(*given, out=tmp_path / "out.json")
    rates = {each["model"]: each["length_controlled_winrate"] for each in alone}
    assert rates == pytest.approx({"davinci": 50, "ours": 62.5})
    # Another order, told by the texts: the same fit.
    questions = [{"instruction": f"question {number}"} for number in range(12)]
    turned = write(tmp_path / "turned.jsonl", [row(n, 1 + n % 2) for n in reversed(range(12))])
    texts = write(tmp_path / "questions.jsonl", questions)
    difficulty.write_text(json.dumps([number % 3 for number in range(12)]))
    fit = ("--refit", "--difficulty", difficulty, "--instructions", texts)
    one, other = (figures(each, *fit, out=tmp_path / "out.json")[0] for each in (path, turned))
    assert one["weights"] == pytest.approx(other["weights"], abs=0.02)
    (told,) = figures(path, *fit, "--lc-resamples", 20, out=tmp_path / "out.json")
    assert told["lc_low"] <= told["length_controlled_winrate"] <= told["lc_high"]
    assert 0 < one["length_controlled_winrate"] < 100


def test_style_is_controlled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A judge that takes the longer answer and nothing else: between equal lengths it says 50 %."""
    rng = random.Random(0)
    rows = []
    for number in range(400):
        lengths = rng.randint(50, 400), rng.randint(100, 800)
        chance = 1 / (1 + math.exp(-4 * (lengths[1] - lengths[0]) / sum(lengths)))
        output = {"output_1": "a" * lengths[0], "output_2": "b" * lengths[1]}
        rows.append(row(number, 1 + chance, **output))
        rows.append(row(number, 1 + chance, "other", **output))
    path = write(tmp_path / "rows.jsonl", rows)
    ours, other = figures(path, "--style", out=tmp_path / "out.json")
    assert ours["win_rate"] > 60
    assert ours["style_controlled_winrate"] == pytest.approx(50, abs=0.5)
    assert ours["style_low"] <= ours["style_controlled_winrate"] <= ours["style_high"]
    assert other["style_controlled_winrate"] == pytest.approx(ours["style_controlled_winrate"])
    assert "weights of style: length +" in capsys.readouterr().out
    lists = write(
        tmp_path / "lists.jsonl", [{"generator_1": "a", "generator_2": "b", "preference": [1, 2]}]
    )
    assert "--style: lists of b have no answers" in fails(capsys, lists, "--style")


def test_strong_grades_count_thrice(tmp_path: Path) -> None:
    """Won with [[B>>A]] in both orders, lost with [[A>B]] in both: 6 to 2, so 75 %."""

    def said(grade: str) -> list[dict[str, Any]]:
        return [{"order": order, "verdict": grade} for order in ("model first", "baseline first")]

    rows = [row(0, 2, output_2="same", reviews=said("B>>A"))]
    rows += [row(1, 1, output_2="same", reviews=said("A>B"))]
    path = write(tmp_path / "rows.jsonl", rows)
    (ours,) = figures(path, "--style", out=tmp_path / "out.json")
    assert ours["style_controlled_winrate"] == pytest.approx(75, abs=0.01)
    assert ours["win_rate"] == 50


def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "rows.jsonl", [row(number, 1.5) for number in range(12)])
    difficulty = tmp_path / "difficulty.json"
    difficulty.write_text("[0, 1]")
    broken = write(tmp_path / "weights.jsonl", [{"name": "ours", "instruction_difficulty": "x"}])
    asked = {
        ("--refit", "--difficulty", difficulty): "verdicts on 12 instructions, and",
        ("--weights", broken): "--weights needs --difficulty",
        ("--weights", broken, "--refit"): "give one of them",
        ("--difficulty", difficulty): "with --weights or --refit only",
        ("--refit", "--instructions", path): "with --refit and --difficulty only",
        ("--weights", broken, "--difficulty", difficulty): "weights.jsonl:1: instruction_diff",
        ("--leaderboard", write(tmp_path / "board.jsonl", [{"name": "other"}])): "row of none",
        ("--lc-resamples", 5): "with --refit only",
        ("--json", path): "is among the files to read",
    }
    for arguments, message in asked.items():
        assert message in fails(capsys, path, *arguments), arguments
    assert "no FILE: give verdicts" in fails(capsys)
    nothing = write(tmp_path / "nothing.jsonl", [{"instruction": "q", "output": "a"}])
    assert "no verdict in it: " in fails(capsys, nothing)


@real
@pytest.mark.parametrize(
    ("judge", "models"), [("weighted_alpaca_eval_gpt4_turbo", 34), ("alpaca_eval_gpt4", 29)]
)
def test_published_rates_of_real_files(tmp_path: Path, judge: str, models: int) -> None:
    preferences = REAL / f"preferences_{judge}.jsonl.gz"
    board = REAL / f"leaderboard_{judge}.json"
    got = figures(preferences, "--leaderboard", board, out=tmp_path / "out.json")
    published = [each for each in got if "published" in each]
    assert len(published) == models
    for each in published:
        for name in ("win_rate", "standard_error", "discrete_win_rate", "n_total"):
            assert each[name] == pytest.approx(each["published"][name], abs=1e-6), each["model"]
        # AlpacaEval counts an answer that is missing as one of no characters, or leaves it out.
        assert each["avg_length"] == pytest.approx(each["published"]["avg_length"], abs=1)


@real
def test_published_length_controlled_rates(tmp_path: Path) -> None:
    name = "weighted_alpaca_eval_gpt4_turbo"
    given = ("--weights", REAL / "length_controlled_weights.json", "--difficulty")
    given += (REAL / "instruction_difficulty_estimate.json",)
    board = ("--leaderboard", REAL / f"leaderboard_{name}.json")
    got = figures(*given, *board, out=tmp_path / "out.json")
    gaps = [
        abs(each["length_controlled_winrate"] - each["published"]["length_controlled_winrate"])
        for each in got
        if "length_controlled_winrate" in each.get("published", {})
    ]
    assert len(gaps) == 111 and max(gaps) <= 0.2
    errors = [
        abs(each["lc_standard_error"] - each["published"]["lc_standard_error"])
        for each in got
        if "lc_standard_error" in each.get("published", {})
    ]
    assert len(errors) == 18 and max(errors) < 0.01
    # With files they are the same, and the weights are for their own baseline only.
    files = []
    for judge in (name, "alpaca_eval_gpt4"):
        lines = gzip.decompress((REAL / f"preferences_{judge}.jsonl.gz").read_bytes()).splitlines()
        files.append(tmp_path / f"{judge}.jsonl")
        files[-1].write_bytes(b"\n".join(lines[:4]))
    rates = {each["model"]: each["length_controlled_winrate"] for each in got}
    for each in figures(*files, *given, out=tmp_path / "out.json"):
        want = rates.get(each["model"]) if each["baseline"] == "gpt4_1106_preview" else None
        assert each["length_controlled_winrate"] == want


@real
def test_a_refit_is_about_a_point_away(tmp_path: Path) -> None:
    """README of the files: 1.0 point in the mean and 3.6 at most, but 15 for gpt4_gamed."""
    name = "weighted_alpaca_eval_gpt4_turbo"
    lines = gzip.decompress((REAL / f"preferences_{name}.jsonl.gz").read_bytes()).splitlines()
    few = tmp_path / "few.jsonl"
    few.write_bytes(b"\n".join(lines[2:8]))
    difficulty = REAL / "instruction_difficulty_estimate.json"
    board = ("--leaderboard", REAL / f"leaderboard_{name}.json")
    got = figures(few, "--refit", "--difficulty", difficulty, *board, out=tmp_path / "out.json")
    gaps = [
        abs(each["length_controlled_winrate"] - each["published"]["length_controlled_winrate"])
        for each in got
    ]
    assert len(gaps) == 6 and max(gaps) < 3.7 and sum(gaps) / 6 < 1.5


@real
def test_the_lists_are_those_of_the_annotations(tmp_path: Path) -> None:
    folder = REAL / "results" / "ultralm-13b-v2.0" / "alpaca_eval_gpt4"
    (rows,) = figures(folder / "annotations.json.gz", out=tmp_path / "out.json")
    lists = figures(REAL / "preferences_alpaca_eval_gpt4.jsonl.gz", out=tmp_path / "out.json")
    assert rows in lists and rows["n_missing"] == 3
