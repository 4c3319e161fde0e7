"""`rayward judge pairwise` with judges that score each answer: a function, and a reward model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayward.pipelines.cli import main

FUNCTIONS = str(Path(__file__).parent)


def outputs(path: Path, name: str, texts: list[str]) -> str:
    rows = [
        {"dataset": "d", "instruction": f"Question {n}?", "output": text, "generator": name}
        for n, text in enumerate(texts)
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def judged(tmp_path: Path, judge: str, *more: str) -> list[dict[str, Any]]:
    model = outputs(tmp_path / "a.json", "a", ["long answer", "b", "same", "two2"])
    baseline = outputs(tmp_path / "b.json", "b", ["short", "longer", "same", "four"])
    command = ["judge", "pairwise", model, baseline, "--judge", judge]
    assert main([*command, "--out", str(tmp_path / "out"), *more]) == 0
    lines = (tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_higher_score_of_a_function_wins(tmp_path: Path) -> None:
    rows = judged(tmp_path, "rayward.data.rules:length")
    assert [row["preference"] for row in rows] == [2.0, 1.0, 1.5, 1.5]
    assert rows[0]["scores"] == [5.0, 11.0] and rows[0]["annotator"] == "rayward.data.rules:length"
    assert [row["identical"] for row in rows] == [False, False, True, False]
    assert {row["conflict"] for row in rows} == {None}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["win_rate"], summary["conflict_rate"]) == (50.0, None)


def test_what_a_function_cannot_score_has_no_verdict(tmp_path: Path, capsys: Any) -> None:
    model = outputs(tmp_path / "a.json", "a", ["b", "x"])
    baseline = outputs(tmp_path / "b.json", "b", ["c", "y"])
    command = ["judge", "pairwise", model, baseline, "--functions", FUNCTIONS]
    out = ["--out", str(tmp_path / "out")]
    assert main([*command, *out, "--judge", "scoring_functions:not_a_number"]) == 1
    rows = [json.loads(x) for x in (tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()]
    assert [row["preference"] for row in rows] == [None, 1.5]
    assert rows[0]["missing"] == "got 'nan', expected a finite number"
    assert main([*command, *out, "--judge", "scoring_functions:raises"]) == 1
    assert "the judge: scoring_functions:raises raised KeyError" in capsys.readouterr().err
    assert main([*command, *out, "--judge", "scoring_functions:nowhere"]) == 1
    assert "cannot be imported" in capsys.readouterr().err


@pytest.mark.usefixtures("local_ray")
def test_a_reward_model_is_asked_once_and_its_higher_score_wins(
    tmp_path: Path, tiny_models: Any
) -> None:
    import torch

    from rayward.actors.models.load import load_scalar
    from rayward.data.records import Prompt, Turn
    from rayward.data.templates.template import find
    from rayward.data.templates.tokenizer import load_tokenizer
    from rayward.pipelines.rows.renderer import Renderer, scored_ids

    folder = str(tiny_models.reward)
    rows = judged(tmp_path, folder, "--workers", "2")
    # One row at a time, without the actors.
    module = load_scalar(folder, "float32")
    renderer = Renderer(find("tokenizer"), load_tokenizer(folder), 1 << 30)

    def score(question: str, answer: str) -> float:
        ids = scored_ids(renderer, Prompt((Turn("user", question),)), answer, True)
        row = torch.tensor(ids)[None]
        chosen = torch.zeros_like(row, dtype=torch.bool)
        chosen[0, -1] = True
        with torch.no_grad():
            return float(module(row, chosen))

    for row in rows:
        if row["identical"]:
            continue
        both = [score(row["instruction"], row[f"output_{n}"]) for n in (1, 2)]
        assert row["scores"] == pytest.approx(both, abs=1e-5)
        assert row["preference"] == (2.0 if both[1] > both[0] else 1.0)
    cache = tmp_path / "out" / "cache.jsonl"
    before = cache.read_bytes()
    assert judged(tmp_path, folder) == rows and cache.read_bytes() == before
