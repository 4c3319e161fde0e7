"""Files, folders and damaged ones: the same rows from every container, and what a bad row or a cut
file costs.
"""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys

import pytest

from rayward.data.formats.files import containers, json_rows
from rayward.data.records import RowError
from tests.data.examples import RECORDS, ROWS, detect, random_text, run, write_array, write_lines


def many_rows(count: int) -> list[dict]:
    rng = random.Random(count)
    names = ("instruction", "input", "output")
    return [{name: random_text(rng, 40) for name in names} | {"id": i} for i in range(count)]


def test_same_records_from_every_container(tmp_path, monkeypatch):
    import pyarrow
    import pyarrow.parquet

    rows = many_rows(60)
    expected, _ = run(write_lines(tmp_path / "a.jsonl", rows))
    assert len(expected) == 60
    paths = [
        write_lines(tmp_path / "b.jsonl.gz", rows, gzip.open),
        write_lines(tmp_path / "c.jsonl", rows, newline="\r\n"),
        write_lines(tmp_path / "d.txt", rows, newline="\n\n \n"),
        write_array(tmp_path / "e.json", rows),
        write_array(tmp_path / "f.json.gz", rows, gzip.open, indent=1),
        write_lines(tmp_path / "g.json", rows),
    ]
    for path in (paths[1], paths[3]):
        marked = path.with_name("bom_" + path.name)
        marked.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        paths.append(marked)
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), tmp_path / "h.parquet", row_group_size=7
    )
    for path in (*paths, tmp_path / "h.parquet"):
        records, report = run(path)
        assert records == expected and not report.rejected, path
    for block_bytes in (3, 7, 100, 1000):  # borders within characters, escapes, numbers, items
        monkeypatch.setattr(containers, "BLOCK_BYTES", block_bytes)
        for path in paths:
            assert run(path)[0] == expected, (path, block_bytes)


def test_folder_reads_its_data_files_by_name(tmp_path):
    write_lines(tmp_path / "b.jsonl", [ROWS["alpaca"]])
    write_array(tmp_path / "a.json", [ROWS["openai"]])
    write_lines(tmp_path / "c.jsonl", [])
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / "sub").mkdir()
    records, report = run(tmp_path)
    assert records == [RECORDS["openai"], RECORDS["alpaca"]] and report.read == 2
    assert detect(tmp_path) == "openai"


GOOD = json.dumps(ROWS["alpaca"]).encode()
BAD_ITEMS = {
    b'{"instruction": NaN, "output": "x"}': "number not finite",
    b'{"instruction": "x", "output": "x", "extra": -Infinity}': "number not finite",
    b'{"instruction": "x", "output": "x", "extra": ' + b"9" * 5000 + b"}": "number not finite",
    b'{"instruction": "\xff\xfe", "output": "x"}': "not UTF-8",
    b'{"instruction": "\xed\xa0\x80", "output": "x"}': "not UTF-8",
    b'{"instruction": "\\ud800", "output": "x"}': "invalid Unicode",
    b"17": "wrong type",
    b"null": "wrong type",
    b'"text"': "wrong type",
    b"[[1], 2]": "wrong type",
    b'{"instruction": ["x"], "output": "x"}': "wrong type",
    b'{"instruction": "x", "output": {"y": 1}}': "wrong type",
    b'{"instruction": "x", "output": null}': "missing text",
    b'{"instruction": "x"}': "missing text",
    b'{"instruction": "x", "output": " \\n"}': "empty text",
    b'{"instruction": "x", "output": "x", "input": 4}': "wrong type",
    b'{"instruction": "x", "output": "x", "id": 1.5}': "wrong type",
}


@pytest.mark.parametrize("bad, reason", BAD_ITEMS.items(), ids=lambda value: str(value)[:40])
def test_a_bad_row_costs_itself_and_nothing_else(bad, reason, tmp_path):
    (tmp_path / "lines.jsonl").write_bytes(b"\n".join((GOOD, bad, GOOD)))
    (tmp_path / "array.json").write_bytes(b"[" + b" ,\n".join((GOOD, bad, GOOD)) + b"]\n")
    for name in ("lines.jsonl", "array.json"):
        records, report = run(tmp_path / name, "alpaca")
        assert records == [RECORDS["alpaca"]] * 2
        assert report.rejected == {reason: 1}
        (rejected,) = report.rejected_rows
        assert (rejected.file, rejected.line) == (str(tmp_path / name), 2)
        assert rejected.field and rejected.found and rejected.expected
        assert run(tmp_path / name)[0] == records  # detection survives it as well


@pytest.mark.parametrize(
    "bad, kept",
    [
        (b'{"instruction": bad}', 2),
        (b"{'instruction': 'x'}", 2),
        (b'{"instruction": "x" "output": "y"}', 2),
        (b'{"instruction": "\\q [{"}', 2),
        (b'{"a": ' + b"[" * 9000 + b"]" * 9000 + b"}", 2),
        (b"[" * 100_000, 1),
        (b'{"instruction": "x}', 1),
        (b"bad", 1),
        (b'"\\q"', 1),
    ],
)
@pytest.mark.parametrize("times", [1, 3000])
def test_broken_syntax_costs_a_row_or_where_no_end_shows_the_rest_of_an_array(
    bad, kept, times, tmp_path
):
    (tmp_path / "lines.jsonl").write_bytes(b"\n".join((*[GOOD] * times, bad, *[GOOD] * times)))
    (tmp_path / "array.json").write_bytes(
        b"[" + b",".join((*[GOOD] * times, bad, *[GOOD] * times)) + b"]"
    )
    for name, parts in (("lines.jsonl", 2), ("array.json", kept)):
        records, report = run(tmp_path / name, "alpaca")
        assert len(records) == parts * times and report.rejected.total() == 1
        assert report.rejected_rows[0].line == times + 1
        assert report.rejected_rows[0].reason in ("broken JSON", "truncated file")


def test_objects_over_several_lines_are_rows(tmp_path):
    whole = json.dumps(ROWS["alpaca"], indent=2)
    for text, count, rejected in (
        (whole, 1, {}),
        (f"{whole}\n{whole}\n\n", 2, {}),
        (f"{whole}\n{whole[:-3]}", 1, {"truncated file": 1}),
        (f"{whole}\n{whole.replace(',', '')}\n{whole}", 1, {"broken JSON": 1}),
    ):
        (tmp_path / "one.json").write_text(text)
        records, report = run(tmp_path / "one.json", "alpaca")
        assert records == [RECORDS["alpaca"]] * count and report.rejected == rejected, text


def test_files_that_our_commands_write_beside_data_are_no_data(tmp_path):
    for name in ("a.jsonl", "a.jsonl.rejected.jsonl", "a.jsonl.provenance.jsonl"):
        (tmp_path / name).write_bytes(GOOD)
    assert len(run(tmp_path, "alpaca")[0]) == 1


@pytest.mark.parametrize(
    "text, kept, reason",
    [
        (b"[%s, %s", 2, "truncated file"),
        (b"[%s, %s,", 2, "truncated file"),
        (b'[%s, %s, {"in', 2, "truncated file"),
        (b"[%s %s]", 1, "broken JSON"),
        (b"[%s, %s] x", 2, "broken JSON"),
        (b"[%s, %s]]", 2, "broken JSON"),
    ],
)
def test_ends_of_arrays(text, kept, reason, tmp_path):
    (tmp_path / "a.json").write_bytes(text % (GOOD, GOOD))
    records, report = run(tmp_path / "a.json")
    assert len(records) == kept and report.rejected == {reason: 1}


def test_numbers_in_an_array_are_not_cut_at_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "BLOCK_BYTES", 4)
    (tmp_path / "a.json").write_text("[12345678, -1.25e-3, true, 7]")
    assert list(containers.rows(tmp_path / "a.json")) == [
        (1, 12345678),
        (2, -1.25e-3),
        (3, True),
        (4, 7),
    ]


@pytest.mark.parametrize("shape", ["lines", "array"])
def test_gzip_cut_anywhere_keeps_what_came_before(shape, tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "BLOCK_BYTES", 500)
    rows = many_rows(40)
    whole = (write_lines if shape == "lines" else write_array)(
        tmp_path / "whole.gz", rows, gzip.open
    )
    expected, content = run(whole)[0], whole.read_bytes()
    counts = []
    for cut in [*range(2, len(content), 97), len(content) - 8, len(content) - 1]:
        (tmp_path / "cut.gz").write_bytes(content[:cut])
        records, report = run(tmp_path / "cut.gz", "alpaca")
        assert records == expected[: len(records)]
        assert report.rejected == {"truncated file": 1}
        counts.append(len(records))
    assert counts == sorted(counts) and counts[0] == 0
    # Only the checksum is missing; a last line without line end counts as cut off.
    assert counts[-1] >= 39


def test_damaged_files_never_raise(tmp_path):
    rng = random.Random(0)
    lines = write_lines(tmp_path / "a.jsonl", many_rows(20)).read_bytes()
    for content in (lines, b"[" + lines.replace(b"\n", b",") + b"]", gzip.compress(lines)):
        for _ in range(60):
            damaged = bytearray(content)
            for _ in range(rng.randrange(1, 6)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            (tmp_path / "damaged").write_bytes(damaged)
            run(tmp_path / "damaged", "alpaca")


def test_damaged_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    table = pyarrow.table({"instruction": ["a", "b", "c"], "output": ["x", None, "z"]})
    pyarrow.parquet.write_table(table, path)
    content = path.read_bytes()
    assert run(path)[1].rejected == {"missing text": 1}
    path.write_bytes(content[:-20])
    assert run(path, "alpaca")[1].rejected == {"damaged file": 1}
    bytes_column = pyarrow.array([b"ok", b"\xff", b"ok"]).view(pyarrow.string())
    pyarrow.parquet.write_table(
        pyarrow.table({"instruction": bytes_column, "output": ["x", "y", "z"]}), path
    )
    records, report = run(path)
    assert (
        len(records) == 2
        and report.rejected == {"not UTF-8": 1}
        and report.rejected_rows[0].line == 2
    )


def table_rows() -> list[dict]:
    return [
        {"instruction": 'Say "a,b"', "input": "two\nlines", "output": "é\tx"},
        {"instruction": "Count.", "input": None, "output": "1, 2"},
    ]


def test_every_other_container_gives_the_same_rows(tmp_path, monkeypatch):
    import csv

    import pyarrow
    import pyarrow.ipc

    made = table_rows()
    lines = "".join(json.dumps(row) + "\n" for row in made).encode()
    with pyarrow.CompressedOutputStream(str(tmp_path / "a.jsonl.zst"), "zstd") as file:
        file.write(lines)
    (tmp_path / "b.ndjson").write_bytes(lines)
    (tmp_path / "c.JSONL").write_bytes(lines)
    for name, delimiter in (("d.csv", ","), ("e.tsv", "\t")):
        with open(tmp_path / name, "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(made[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(made)
    (tmp_path / "f.csv.gz").write_bytes(gzip.compress((tmp_path / "d.csv").read_bytes()))
    columns = pyarrow.Table.from_pylist(made)
    for name, new in (("g.arrow", pyarrow.ipc.new_stream), ("h.arrow", pyarrow.ipc.new_file)):
        with new(str(tmp_path / name), columns.schema) as writer:
            writer.write_table(columns, max_chunksize=1)
    (tmp_path / "i.json").write_text("\n\n".join(json.dumps(row, indent=2) for row in made))
    expected, _ = run(tmp_path / "b.ndjson")
    assert len(expected) == 2
    for block_bytes in (1 << 18, 3):
        monkeypatch.setattr(containers, "BLOCK_BYTES", block_bytes)
        for path in sorted(tmp_path.iterdir()):
            records, report = run(path)
            assert records == expected and not report.rejected, path


@pytest.mark.parametrize(
    "text, line, reason",
    [
        ("a,b\n1,2\n3\n4,5\n", 3, "cells do not match the header"),
        ("a,b\n1,2\n3,4,5\n6,7\n", 3, "cells do not match the header"),
        ('a,b\n1,"two\nlines"\n"3"x,4\n', 4, "broken table"),
        ('a,b\n1,2\n3,"open', 3, "broken table"),
        (b"a,b\n1,2\n\xff,4\n5,6\n", 3, "not UTF-8"),
        ("a,a\n1,2\n", 1, "header with one twice"),
    ],
)
def test_a_bad_row_of_a_table_costs_itself(text, line, reason, tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = list(containers.rows(path))
    bad = [(number, row.reason) for number, row in found if isinstance(row, RowError)]
    assert bad == [(line, reason)]


def test_a_line_without_an_end_is_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(containers, "BLOCK_BYTES", 100)
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD + b'\n{"a": "' + b"x" * 5000 + b'"}\n' + GOOD + b"\n" + b"y" * 5000)
    found = list(containers.rows(path))
    assert [number for number, _ in found] == [1, 2, 3, 4]
    assert [getattr(row, "reason", "") for _, row in found] == ["", "line too long"] * 2


def test_a_folder_below_and_what_is_no_data(tmp_path):
    from datasets import Dataset, DatasetDict

    made = [{"instruction": f"q{number}", "output": "a"} for number in range(4)]
    parts = {name: Dataset.from_list(made[:2]) for name in ("test", "train")}
    DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert len(run(tmp_path / "saved")[0]) == 4
    assert len(run(tmp_path / "saved" / "train")[0]) == 2
    (tmp_path / "plain" / "deep").mkdir(parents=True)
    write_lines(tmp_path / "plain" / "deep" / "a.jsonl", made)
    for name in ("dataset_info.json", ".hidden.json", "a.jsonl.rejected.jsonl"):
        (tmp_path / "plain" / name).write_text('{"no": "row"}')
    (tmp_path / "plain" / ".git").mkdir()
    (tmp_path / "plain" / ".git" / "b.json").write_text('{"no": "row"}')
    records, report = run(tmp_path / "plain")
    assert len(records) == 4 and report.read == 4


def test_a_value_that_cannot_be_read_costs_the_row_only_where_it_is_asked_for(tmp_path):
    import pyarrow
    import pyarrow.parquet

    far = pyarrow.array([0, 1 << 60], pyarrow.timestamp("ms"))  # a year that Python does not know
    made = {"at": far, "meta": pyarrow.StructArray.from_arrays([far], ["at"])}
    texts = {"instruction": ["a", "b"], "output": ["x", "y"]}
    pyarrow.parquet.write_table(pyarrow.table(made | texts), tmp_path / "a.parquet")
    records, report = run(tmp_path / "a.parquet")
    assert [record.turns[0].content for record in records] == ["a", "b"] and not report.rejected
    pyarrow.parquet.write_table(
        pyarrow.table({"instruction": ["a", "b"], "output": far}), tmp_path / "b.parquet"
    )
    _, report = run(tmp_path / "b.parquet", "alpaca")
    assert [(row.line, row.field) for row in report.rejected_rows] == [(1, "output"), (2, "output")]


def test_ids_that_a_table_has_made_numbers_or_left_out(tmp_path):
    import pyarrow
    import pyarrow.parquet

    columns = {"id": [1.0, float("nan"), None], "instruction": ["a"] * 3, "output": ["x"] * 3}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert [record.id for record in run(tmp_path / "a.parquet")[0]] == ["1", "", ""]
    blank = {"id": " ", "instruction": "a", "output": "x"}
    assert [record.id for record in run(write_lines(tmp_path / "b.jsonl", [blank]))[0]] == [""]


def test_standard_input_is_read_as_a_file_would_be(tmp_path):
    packed = gzip.compress(b"\n".join([GOOD] * 3))
    command = [sys.executable, "-m", "rayward.pipelines.cli", "data", "convert", "-", "--out"]
    out = tmp_path / "out.jsonl"
    done = subprocess.run([*command, str(out)], input=packed, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(out.read_text().splitlines()) == 3
