"""`rayward judge board`: figures of every kind of file on one page, in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayward.pipelines.cli import main
from rayward.pipelines.judging.pages.board_figures import read

EVIL = '</script><img src=x onerror="window.bad=1"><b>bold</b>'


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def mean(value: float, spread: float = 0.5) -> dict[str, Any]:
    return {"mean": value, "low": value - spread, "high": value + spread, "n": 80}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """What each of the commands writes, a run, and results of lm-eval."""
    rates = [
        {
            "model": model,
            "win_rate": rate,
            "low": rate - 2,
            "high": rate + 2,
            "n_total": 805,
            "length_controlled_winrate": controlled,
            "baseline": "davinci",
            "annotator": "gpt-4",
        }
        for model, rate, controlled in (("ours", 60.0, 55.5), ("theirs", 70.25, None))
    ]
    rating = {**mean(7.5), "turns": {"1": mean(8), "2": mean(7)}, "model": "ours", "judge": "gpt-4"}
    nothing = {"mean": None, "low": None, "high": None, "n": 0}
    names = "same kappa accuracy beyond_length prefers_longer labels_prefer_longer conflicts"
    judge = {"judge": "gpt-4", **dict.fromkeys(names.split(), nothing), "same": mean(0.8, 0.1)}
    pair = {"model": "ours", "baseline": "theirs", "annotator": "j", "win_rate": 40.0}
    arc = {"alias": "arc", "acc,none": 0.4, "acc_norm,none": 0.5, "acc_norm_stderr,none": 0.01}
    tasks = {
        "results": {"arc_challenge": arc},
        "model_name": "ours",
        "n-samples": {"arc_challenge": {"original": 1172, "effective": 100}},
    }
    run = tmp_path / "run one"
    write(
        run / "summary.json",
        {
            "name": "tiny",
            "sft": {"loss": 1.0},
            "evaluate": {
                "judge": "gold",
                "win_rate": {"ppo": {"mean": 0.625, "low": 0.5, "high": 0.75, "n": 24}},
            },
            "seconds": {"total": 12.3},
        },
    )
    (run / "config.yaml").write_text("seed: 5\nmodel: {path: base}\nrl: {algorithms: [ppo, apa]}\n")
    return [
        run,
        write(tmp_path / "rates.json", rates),
        write(tmp_path / "scores.json", {"ratings": [rating], "pair_scores": []}),
        write(tmp_path / "agreement.json", {"labels": ["some/panda.json"], "judges": [judge]}),
        write(tmp_path / "judged" / "summary.json", {**pair, "low": 30.0, "high": 50.0}).parent,
        write(tmp_path / "tasks.json", tasks),
    ]


def test_every_kind_of_file_is_read(files: list[Path]) -> None:
    board = read(files)
    found = {(each.suite, each.model): each for each in board.figures}
    assert len(found) == len(board.figures) == 9
    run = found["win rate in % against sft, judged by gold", "run one: ppo"]
    assert (run.value, run.low, run.high, run.n) == (62.5, 50, 75, 24)
    task = found["arc_challenge, acc_norm in %", "ours"]
    assert (task.value, task.n) == (50, 100)
    assert task.low == pytest.approx(50 - 1.96, abs=1e-3)
    assert found["rating, turn 2, judged by gpt-4", "ours"].value == 7
    controlled = "length-controlled win rate in % against davinci, judged by gpt-4"
    assert found[controlled, "ours"].value == 55.5 and (controlled, "theirs") not in found
    assert board.judges[0]["labels"] == "panda.json"
    assert board.trained["run one"] == {
        "stages": "sft, evaluate",
        "base": "base",
        "algorithms": "ppo, apa",
        "seed": "5",
        "seconds": "12",
    }


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page(browser: Any, tmp_path: Path, files: list[Path], width: int) -> None:
    evil = write(
        tmp_path / "evil.json",
        [{"model": EVIL, "win_rate": 65.0, "low": 1.0, "high": 99.0, "baseline": "davinci",
          "annotator": "gpt-4"}],
    )  # fmt: skip
    out = tmp_path / "board.html"
    assert main(["judge", "board", *map(str, [*files, evil]), "--out", str(out)]) == 0
    context = browser.new_context(viewport={"width": width, "height": 800})
    context.set_offline(True)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.extend([request.url] * ("://" in request.url[5:])))
    page.goto(out.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("#board tbody tr").count() == 4
    best = page.locator("#board b.best").all_text_contents()
    assert any(text.startswith("70.25") for text in best)
    page.get_by_role("button", name="win rate in % against davinci, judged by gpt-4").first.click()
    shown = page.locator("#board tbody tr td:first-child").all_text_contents()
    assert shown[:3] == ["theirs", EVIL, "ours"]
    # 50 of 100, and 7 on a scale from 1 to 10.
    widths = page.locator(".suite i").evaluate_all("bars => bars.map(bar => bar.style.width)")
    assert "50%" in widths and "66.67%" in widths
    assert page.evaluate("window.bad") is None and page.locator("img").count() == 0
    assert "run one" in page.inner_text("body") and "ppo, apa" in page.inner_text("body")
    context.close()
    assert all(problem.startswith("file://") for problem in problems)


def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "verdicts.jsonl"
    text.write_text('{"a": 1}\n{"a": 2}\n')
    asked = {
        text: "Extra data",
        write(tmp_path / "other.json", {"a": 1, "b": 2}): "found a, b, expected figures of",
        tmp_path: "no summary.json in it; expected a run folder",
    }
    for path, message in asked.items():
        assert main(["judge", "board", str(path), "--out", str(tmp_path / "board.html")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "board.html").exists()
