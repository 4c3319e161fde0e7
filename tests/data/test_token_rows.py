"""OpenChat v1 files: round trip to the byte of every id and text, and every shape of bad row."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from rayward.data.formats.convert import convert
from rayward.data.formats.files.containers import sources
from rayward.data.formats.files.token_rows import (
    TokenRow,
    open_token_rows,
    read_token_rows,
    text_path,
)
from rayward.data.formats.registry import outcomes, read
from rayward.data.records import RowError
from tests.data.examples import detect


def many(count: int, texts: bool) -> list[TokenRow]:
    rng = random.Random(0)
    made = []
    for index in range(count):
        length = rng.randrange(1, 200)
        ids = (1, *(rng.randrange(32_001) for _ in range(length)))
        made.append(
            TokenRow(
                ids,
                (False, *(rng.random() < 0.5 for _ in range(length))),
                f"é {index}" if texts else None,
            )
        )
    return made


def write(path: Path, rows: list[TokenRow]) -> Path:
    with open_token_rows(path) as write_row:
        for row in rows:
            write_row(row)
    return path


def test_text_path() -> None:
    assert text_path(Path("d/openchat.train.json")) == Path("d/openchat.train.text.json")
    assert text_path(Path("a.json.gz")) == Path("a.text.json.gz")


@pytest.mark.parametrize("name", ["a.train.json", "a.train.json.gz"])
@pytest.mark.parametrize("texts", [False, True])
def test_round_trip(name: str, texts: bool, tmp_path: Path) -> None:
    made = many(100, texts)
    path = write(tmp_path / "in" / name, made)
    (source,) = sources(path)
    assert [row for _, row in read_token_rows(source)] == made
    assert detect(path) == "openchat_v1"
    # Its texts are not taken for rows.
    assert [outcome.records[0] for outcome in outcomes(path.parent)] == made
    account = convert(path.parent, tmp_path / "out" / name, "auto", "openchat_v1")
    assert (account.read, account.written) == (100, 100)
    for file in path.parent.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    assert len([*(tmp_path / "out").iterdir()]) == 1 + texts


def test_the_shape_that_openchat_wrote(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([[[1, 12968], [False, True]], [[7], [False]]]))
    (tmp_path / "a.text.json").write_text(json.dumps(["<s> Human", "x"], indent="\t"))
    found = [outcome.records[0] for outcome in outcomes(tmp_path / "a.json")]
    assert found == [
        TokenRow((1, 12968), (False, True), "<s> Human"),
        TokenRow((7,), (False,), "x"),
    ]
    with pytest.raises(ValueError, match="token ids and masks hold no text"):
        read(tmp_path / "a.json")


@pytest.mark.parametrize(
    "row, reason",
    [
        ([[1], [True, False]], "mask does not match the ids"),
        ([[1.5], [True]], "not a token id"),
        ([[True], [True]], "not a token id"),
        ([[-1], [True]], "not a token id"),
        ([[1], [1]], "wrong type"),
        ([[1]], "wrong type"),
        ({"ids": [1]}, "wrong type"),
        (None, "wrong type"),
    ],
)
def test_bad_rows(row: object, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([[[1], [True]], row, [[2], [True]]]))
    found = list(outcomes(tmp_path / "a.json", "openchat_v1"))
    assert [len(outcome.records) for outcome in found] == [1, 0, 1]
    assert found[1].error and found[1].error.reason == reason and found[1].line == 2


@pytest.mark.parametrize("texts, reasons", [
    (["a"], [None, "text is missing"]), (["a", "b", "c"], [None, None, "text without a row"]),
    (["a", 3], [None, "wrong type"])])  # fmt: skip
def test_texts_that_do_not_match(texts: list, reasons: list, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[[[1], [true]], [[2], [true]]]")
    (tmp_path / "a.text.json").write_text(json.dumps(texts))
    found = list(outcomes(tmp_path / "a.json"))
    assert [outcome.error and outcome.error.reason for outcome in found] == reasons


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in .json or .json.gz"):
        write(tmp_path / "a.jsonl", many(1, False))
    with pytest.raises(RowError) as caught:
        write(tmp_path / "a.json", [*many(1, True), *many(1, False)])
    assert caught.value.reason == "texts in some rows only" and not list(tmp_path.iterdir())
    write(tmp_path / "a.json", many(2, True))
    write(tmp_path / "a.json", many(2, False))
    assert not (tmp_path / "a.text.json").exists()
    (tmp_path / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "q"}]}')
    assert convert(
        tmp_path / "chat.jsonl", tmp_path / "b.json", target_format="openchat_v1"
    ).rejected == {"text has no token ids": 1}
    assert convert(tmp_path / "a.json", tmp_path / "c.jsonl").rejected == {
        "token ids have no text": 2
    }
