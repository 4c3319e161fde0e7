"""How far a stage is, in a log: few lines, each by itself."""

from __future__ import annotations

import pytest

from rayward.pipelines.run import progress


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock; tests set its one entry."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    return clock


def test_a_log_has_the_first_step_the_last_and_one_each_quarter_of_a_minute(
    seconds: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = progress.progress("sft", 50, "step")  # pytest's standard error is no terminal
    shown.doing("loading the model")
    seconds[0] = 100  # of waiting, which is not the pace of the steps
    for step in range(50):
        shown.step({"loss": f"{step}"})
        seconds[0] += 2
    shown.close()
    assert capsys.readouterr().err.splitlines() == [
        "   sft: loading the model",
        "   sft: 1/50 step, loss=0",
        # 8 steps of 2 s are the first 15 s and more: 8 in 16 s.
        "   sft: 9/50 step, 0.5 step/s, 01:22 left, loss=8",
        "   sft: 17/50 step, 0.5 step/s, 01:06 left, loss=16",
        "   sft: 25/50 step, 0.5 step/s, 00:50 left, loss=24",
        "   sft: 33/50 step, 0.5 step/s, 00:34 left, loss=32",
        "   sft: 41/50 step, 0.5 step/s, 00:18 left, loss=40",
        "   sft: 49/50 step, 0.5 step/s, 00:02 left, loss=48",
        "   sft: 50/50 step, 0.5 step/s, 00:00 left, loss=49",
    ]


def test_a_stage_that_stops_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    shown = progress.progress("ppo", 10, "iter")
    for _ in range(3):
        shown.step({})
    shown.close()
    shown.close()
    first, last = capsys.readouterr().err.splitlines()
    assert first == "   ppo: 1/10 iter" and last.startswith("   ppo: 3/10 iter, ")
