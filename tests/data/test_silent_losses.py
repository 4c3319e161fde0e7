"""What a row says is in its record, is counted as passed over, or sets the row aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rayward.data.records import Conversation, Record, Turn
from tests.data.examples import detect, write_lines
from tests.data.test_cases import read_all

Q, QA = (Turn("user", "q"),), (Turn("user", "q"), Turn("assistant", "a"))
CHAT = Conversation(QA)


def found_in(row: dict[str, Any], folder: Path, **asked: Any) -> list[Record | str]:
    return read_all(write_lines(folder / "a.jsonl", [row]), **asked)[0]


# ---- the format of a file


@pytest.mark.parametrize(
    "rows, form",
    [
        (
            [{"prompt": "q", "completion": None}, {"prompt": "q", "completion": "a"}],
            "prompt_completion",
        ),
        ([{"prompt": "q"}, {"prompt": "q", "chosen": "a", "rejected": "b"}], "openai"),
        ([{"instruction": "q"}, {"instruction": "q", "input": "x", "output": "a"}], "alpaca"),
        # Null for longer than the first rows are looked at.
        (
            [{"prompt": "q", "completion": None}] * 30 + [{"prompt": "q", "completion": "a"}],
            "prompt_completion",
        ),
        # A column that is always empty is none.
        ([{"prompt": "q", "completion": None}] * 30, "prompts"),
        # Other rows than the first are no wider ones.
        ([{"messages": []}, {"prompt": "q", "completion": "a"}], "openai"),
        ([{"prompt": "q", "completion": "a"}, {"messages": []}], "prompt_completion"),
    ],
)
def test_a_null_in_the_first_row_hides_no_format(
    rows: list[dict[str, Any]], form: str, tmp_path: Path
) -> None:
    assert detect(write_lines(tmp_path / "a.jsonl", rows)) == form


def test_a_null_in_the_first_row_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("instruction,input,output\nWrite,,\nq,,a\n")
    assert read_all(tmp_path / "a.csv")[0] == ["output", CHAT]
    table = pyarrow.table({"prompt": ["q", "q"], "completion": [None, "a"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert read_all(tmp_path / "a.parquet")[0] == ["completion", CHAT]
