"""Data sets by name, through `datasets` itself: local folders and files, which it loads without a
network.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayward.data.formats.convert import convert
from rayward.data.formats.files.containers import sources
from rayward.data.formats.registry import read
from tests.data.examples import detect

pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))


def write(path: Path, count: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    rows = [
        {"instruction": f"q{index}", "input": "", "output": f"a{index}"} for index in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_folder_its_splits_and_a_file(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.jsonl", 5)
    write(tmp_path / "set" / "test.jsonl", 3)
    name = f"hf:{tmp_path / 'set'}"
    assert detect(name) == "alpaca"
    assert list(read(name)) == list(read(tmp_path / "set" / "train.jsonl"))  # train, of several
    assert [record.turns[0].content for record in read(f"{name}:default:test")] == [
        "q0",
        "q1",
        "q2",
    ]
    assert list(read(f"{name}::test")) == list(read(tmp_path / "set" / "test.jsonl"))
    assert len(list(read(f"hf:{tmp_path / 'set' / 'test.jsonl'}"))) == 3
    account = convert(f"{name}::test", tmp_path / "out.parquet", target_format="sharegpt")
    assert (account.read, account.written) == (3, 3)
    assert len(list(read(f"hf:{tmp_path / 'out.parquet'}"))) == 3


def test_records_of_ours_as_a_data_set(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", 2)
    convert(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    (tmp_path / "out.jsonl").write_text(
        (tmp_path / "out.jsonl").read_text()
        + json.dumps(
            {"kind": "prompt", "turns": [{"role": "user", "content": "q"}], "follow_ups": ["r"]}
        )
    )
    # In a data set every row has the fields of all rows, as nulls.
    assert list(read(f"hf:{tmp_path / 'out.jsonl'}")) == list(read(tmp_path / "out.jsonl"))


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.jsonl", 1)
    with pytest.raises(ValueError, match="no split 'tset'; it has train"):
        read(f"hf:{tmp_path / 'set'}::tset")
    for name in ("hf:", "hf:a:b:c:d"):
        with pytest.raises(ValueError, match="not of the form hf:NAME"):
            read(name)
    with pytest.raises(Exception, match="absent"):
        read(f"hf:{tmp_path / 'absent'}")


def test_a_break_in_the_middle_is_the_last_row(tmp_path: Path) -> None:
    row = json.dumps({"instruction": "q", "output": "x" * 100_000}) + "\n"
    path = tmp_path / "train.jsonl"
    # Beyond the first 10 MiB, which `datasets` parses as one.
    path.write_text(row * 120 + "{broken\n")
    (source,) = sources(f"hf:{path}")
    *good, (number, last) = source.rows()
    assert len(good) + 1 == number and good and last.reason == "damaged file"
