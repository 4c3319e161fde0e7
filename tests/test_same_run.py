"""What compares two runs sees one bit, one line and one name, and no clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import same_run


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders alike, but for the time that each took."""
    for name, seconds in (("before", 1.0), ("after", 2.0)):
        folder = tmp_path / name / "sft"
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "model.safetensors").write_bytes(b"\x00\x01\x02")
        line = {"step": 1, "loss": 0.1, "time": {"tokens_per_s": seconds}}
        (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        (folder / "manifest.json").write_text(json.dumps({"seconds": seconds, "stage": "sft"}))
    return tmp_path / "before", tmp_path / "after"


def test_runs_that_only_a_clock_tells_apart_are_the_same(runs, capsys):
    assert list(same_run.differences(*runs)) == []
    assert same_run.main(*runs) == 0
    assert capsys.readouterr().out == "the same to the last bit: 3 files\n"


def test_one_bit_of_a_model_and_one_of_a_figure_are_seen(runs):
    (runs[1] / "sft/model/model.safetensors").write_bytes(b"\x00\x01\x03")
    (runs[1] / "sft/metrics.jsonl").write_text('{"step": 1, "loss": 0.10000000000000002}\n')
    assert list(same_run.differences(*runs)) == [
        "sft/metrics.jsonl 0 loss: 0.1 before, 0.10000000000000002 after",
        "sft/model/model.safetensors: other bytes",
    ]


def test_a_lost_line_and_a_lost_file_are_seen(runs):
    (runs[1] / "sft/metrics.jsonl").write_text("")
    (runs[1] / "sft/manifest.json").unlink()
    assert list(same_run.differences(*runs)) == [
        f"sft/manifest.json: only in {runs[0]}",
        "sft/metrics.jsonl: 1 before, 0 after",
    ]


def test_a_figure_under_its_new_name_is_the_same(runs, monkeypatch):
    (runs[1] / "sft/metrics.jsonl").write_text('{"step": 1, "nll": 0.1}\n')
    assert len(list(same_run.differences(*runs))) == 2
    monkeypatch.setitem(same_run.RENAMED, "loss", "nll")
    assert list(same_run.differences(*runs)) == []
