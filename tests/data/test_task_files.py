"""Local copies of benchmarks: where they are found, and rows that are none of their items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayward.data.judging.task_files import BENCHMARKS, expected, find, look_at
from tests.pipelines.task_copies import SUBJECTS, write_all


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("benchmarks"), items=3)


@pytest.mark.parametrize("task", BENCHMARKS)
def test_the_hub_s_shapes_are_found_and_read(task: str, data: Path) -> None:
    for subject in SUBJECTS if task == "mmlu" else ("",):
        files = find(data, task, subject)
        assert files is not None
        assert list(files.of_split) == list(BENCHMARKS[task].splits)
        counts, bad = look_at(task, files)
        assert not bad
        examples = {"mmlu": 5, "arc": 30, "hellaswag": 12, "gsm8k": 6}
        if task in examples:
            assert list(counts.values()) == [examples[task], 3]
        else:
            assert list(counts.values()) == [3]


def test_a_copy_in_a_folder_of_the_task_s_name_is_found_too(tmp_path: Path) -> None:
    for name in ("train.parquet", "test-00001-of-00002.parquet", "test-00000-of-00002.parquet"):
        path = tmp_path / "arc_challenge" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    files = find(tmp_path, "arc")
    assert files is not None and files.kind == "parquet"
    assert [path.name[:10] for path in files.of_split["test"]] == ["test-00000", "test-00001"]
    assert find(tmp_path, "gsm8k") is None
    assert "gsm8k/" in expected("gsm8k") and "openai/gsm8k on the hub" in expected("gsm8k")
    assert "cais/mmlu/SUBJECT/" in expected("mmlu")


def test_a_split_that_is_missing_or_of_another_kind_is_no_copy(tmp_path: Path) -> None:
    folder = tmp_path / "hellaswag" / "data"
    folder.mkdir(parents=True)
    (folder / "train-0.parquet").write_bytes(b"")
    (folder / "test-0.parquet").write_bytes(b"")
    assert find(tmp_path, "hellaswag") is None
    (folder / "validation.jsonl").write_bytes(b"")
    assert find(tmp_path, "hellaswag") is None
    (folder / "validation-0.parquet").write_bytes(b"")
    assert find(tmp_path, "hellaswag") is not None


MC = {"choices": ["a", "b"], "labels": [1, 0]}
BROKEN: list[tuple[str, dict[str, Any], str]] = [
    (
        "arc",
        {"question": "?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"},
        "answerKey: found 'C', expected one of choices.label",
    ),
    (
        "arc",
        {"question": {"stem": "?", "choices": []}, "answerKey": "A"},
        "question: found dict of 2, expected text",
    ),
    (
        "hellaswag",
        {"activity_label": "", "ctx_a": "a", "ctx_b": "", "endings": ["x", "y"], "label": ""},
        "label: found '', expected 0 to 1",
    ),
    ("mmlu", {"question": "?", "choices": ["a", "b", "c"], "answer": 0}, "choices: found list"),
    ("mmlu", {"question": "?", "choices": ["1", "2", "3", "4"], "answer": "A"}, "answer: found"),
    (
        "truthfulqa",
        {"question": "?", "mc1_targets": {"No": 1, "Yes": 0}, "mc2_targets": {"No": 1}},
        "mc1_targets: found the fields No, Yes, expected choices and labels",
    ),
    (
        "truthfulqa",
        {"question": "?", "mc1_targets": MC, "mc2_targets": {**MC, "labels": [0, 0]}},
        "mc2_targets.labels: found no 1, expected a true choice",
    ),
    ("gsm8k", {"question": "?", "answer": "It is 4"}, "expected a text with its result after ####"),
    (
        "ifeval",
        {"key": 1, "prompt": "?", "instruction_id_list": ["a", "b"], "kwargs": [{}]},
        "kwargs: found 1 items, expected 2, one an instruction",
    ),
]


@pytest.mark.parametrize(("task", "row", "told"), BROKEN)
def test_what_is_no_item_is_named(
    task: str, row: dict[str, Any], told: str, tmp_path: Path
) -> None:
    subject = "s" if task == "mmlu" else ""
    folder = tmp_path / BENCHMARKS[task].folders(subject)[-1]
    folder.mkdir(parents=True)
    for split in BENCHMARKS[task].splits:
        (folder / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    files = find(tmp_path, task, subject)
    assert files is not None
    counts, bad = look_at(task, files)
    assert len(bad) == sum(counts.values()) and {row.line for row in bad} == {1}
    assert told in str(bad[0].error)


def test_the_digest_is_of_the_content(data: Path, tmp_path: Path) -> None:
    again = write_all(tmp_path / "same", items=3)
    other = write_all(tmp_path / "other", items=3, seed=1)
    for task in ("arc", "hellaswag", "gsm8k", "truthfulqa"):
        digests = [files.digest() for each in (data, again, other) if (files := find(each, task))]
        assert digests[0] == digests[1] != digests[2]
