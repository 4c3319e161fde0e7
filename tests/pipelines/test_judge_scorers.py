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


def test_answers_that_can_be_checked_are_judged_by_their_references(tmp_path: Path) -> None:
    questions = [
        {"question_id": 1, "turns": ["2 + 2?"], "reference": ["4"]},
        {"question_id": 2, "turns": ["What is it?", "Sure?"], "reference": ["A cat.", "Yes."]},
    ]
    paths = [tmp_path / name for name in ("q.jsonl", "a.jsonl", "b.jsonl")]
    said = {"a": [["4"], ["A  cat.", "No."]], "b": [["5"], ["A dog.", "Yes."]]}
    rows: list[Any] = [questions]
    for model, answers in said.items():
        rows.append(
            [
                {"question_id": n, "model_id": model, "choices": [{"index": 0, "turns": turns}]}
                for n, turns in enumerate(answers, 1)
            ]
        )
    for path, lines in zip(paths, rows, strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    command = ["judge", "pairwise", str(paths[1]), str(paths[2]), "--questions", str(paths[0])]
    command += ["--judge", "rayward.data.verifiable.exact:exact", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    made = (tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in made]
    assert [(row["turn"], row["preference"]) for row in found] == [(1, 2.0), (1, 2.0), (2, 1.0)]


def test_a_source_that_lacks_what_it_needs_says_so_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    from rayward.actors.scoring.sources import SourceDataError, function_source
    from rayward.configs.sections.scoring import RewardSource

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    source = RewardSource(kind="function", target="rayward.data.verifiable.maths:math")
    with pytest.raises(SourceDataError, match="cannot be used: it needs math-verify: pip install"):
        function_source(source, str(tmp_path))


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
