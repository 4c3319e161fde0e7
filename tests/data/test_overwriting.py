"""No output takes the place of data, nor lies where the next reading would find it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayward.data.formats.convert import convert
from rayward.data.formats.files.outputs import open_output
from rayward.data.formats.files.overwriting import refuse_overwriting
from rayward.pipelines.cli import main

ROW = {"instruction": "Say hi.", "input": "", "output": "Hi."}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    (path / "below").mkdir(parents=True)
    for name in ("a.jsonl", "below/b.jsonl"):
        (path / name).write_text(json.dumps(ROW) + "\n")
    (path / "t.train.json").write_text("[]")
    return path


def test_files_that_are_read(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.jsonl"
    link.symlink_to(folder / "a.jsonl")
    spellings = [folder / "a.jsonl", folder / "below" / ".." / "a.jsonl", link]
    for given in (str(folder), folder / "a.jsonl", f"hf:{folder / 'a.jsonl'}:default:train"):
        for output in spellings:
            with pytest.raises(ValueError, match="is among the files to read"):
                refuse_overwriting([output], [given])
    for name in ("below/b.jsonl", "t.train.text.json"):  # the texts of token rows go with them
        with pytest.raises(ValueError, match="is among the files to read"):
            refuse_overwriting([folder / name], [folder])


def test_what_the_next_reading_would_find_and_what_not(folder: Path, tmp_path: Path) -> None:
    for name in ("new.jsonl", "below/new.parquet", "new/r.json", "R.CSV"):
        with pytest.raises(ValueError, match="it would be read with it the next time"):
            refuse_overwriting([folder / name], [folder])
    fine = [folder / "map.html", folder / "a.jsonl.rejected.jsonl", tmp_path / "new.jsonl", None]
    refuse_overwriting(fine, [folder, None, "hf:some/name", "-", tmp_path / "absent"])


def test_one_name_for_two_outputs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"r.json would be written twice"):
        refuse_overwriting([tmp_path / "r.json", tmp_path / "." / "r.json"], [])


def test_the_commands_refuse(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, pages = folder / "a.jsonl", folder.parent / "pages"
    pages.mkdir()
    (pages / "p.html").write_text("<html></html>")
    prompts = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    out, told = ["--out", str(folder.parent / "o.jsonl")], {}
    model = ["--judge", "M@http://127.0.0.1:9/v1"]
    speakers = ["--user", model[1], "--assistant", model[1]]
    for arguments in (
        ["map", a, "--out", a],
        ["map", folder, "--out", folder.parent / "m.html", "--report", a],
        ["map", a, "--out", folder.parent / "m", "--report", folder.parent / "m"],
        ["convert", folder, "--out", folder / "new.jsonl"],
        ["convert", a, *out, "--report", out[1]],
        ["convert", a, *out, "--report", out[1] + ".rejected.jsonl"],
        ["stats", folder, "--report", folder / "r.json"],
        ["rank", a, "--out", a, *model],
        ["rank", a, *out, "--report", a, *model],
        ["simulate", "--seeds", a, "--out", a, *speakers],
        ["simulate", "--seeds", a, *out, "--report", out[1] + ".provenance.jsonl", *speakers],
        ["clean", pages, "--out", pages / "new.jsonl"],
        ["clean", pages, *out, "--report", pages / "p.html"],
        ["clean", pages, *out, "--report", out[1]],
    ):
        assert main(["data", *map(str, arguments)]) == 2, arguments
        told[str(arguments)] = capsys.readouterr().err
    asked = ["reward-eval", str(folder.parent / "model"), str(folder), "--out", str(folder)]
    assert main(asked) == 2
    told["reward-eval"] = capsys.readouterr().err
    for arguments, error in told.items():
        refusals = ("is among the files to read", ", which is read", "would be written twice")
        assert any(refusal in error for refusal in refusals), (arguments, error)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == prompts
    assert not Path(out[1]).exists()


def test_a_conversion_without_a_usable_row_leaves_what_was_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, out = tmp_path / "bad.jsonl", tmp_path / "out.jsonl"
    bad.write_text('{"instruction": "x", "output": ""}\n{"instruction": "", "output": "y"}\n')
    for before in (None, "before\n"):
        if before:
            out.write_text(before)
        assert convert(bad, out).rejected == {"empty text": 2}
        report = tmp_path / "r.json"
        assert main(["data", "convert", str(bad), "--out", str(out), "--report", str(report)]) == 1
        error = capsys.readouterr().err
        assert "empty text (2)" in error and "bad.jsonl:2: instruction: found ''" in error
        assert "no usable row of 2 read; nothing is written: " in error
        account = json.loads(report.read_text())
        assert (account["read"], account["written"]) == (2, 0)
        # The list of this run would be taken for that of the file which is there.
        listed = tmp_path / "out.jsonl.rejected.jsonl"
        assert listed.exists() is (before is None) and out.exists() is (before is not None)
        listed.unlink(missing_ok=True)
    assert out.read_text() == "before\n"
    (tmp_path / "empty.jsonl").touch()
    assert main(["data", "convert", str(tmp_path / "empty.jsonl"), "--out", str(out)]) == 1
    assert "no usable row of 0 read; nothing is" in capsys.readouterr().err
    assert out.read_text() == "before\n"


def test_two_writers_to_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with open_output(path) as one:
        one.write({"n": 1})
        with open_output(path) as other:
            other.write({"n": 2})
        assert path.read_text() == '{"n": 2}\n'
        one.write({"n": 3})
    assert path.read_text() == '{"n": 1}\n{"n": 3}\n' and list(tmp_path.iterdir()) == [path]
