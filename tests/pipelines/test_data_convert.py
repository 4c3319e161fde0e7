"""`rayward data convert`, `stats` and `check` from the command line, and the numbers of stats."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rayward.algorithms.diversity import mtld
from rayward.data.formats.registry import read
from rayward.data.templates.tokenizer import train_tokenizer
from rayward.pipelines.cli import main
from rayward.pipelines.data_tools.stats import stats
from tests.pipelines import commands

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT / ".." / "shared" / "data"


def rayward(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return commands.rayward("data", *arguments, cwd=cwd)


@pytest.fixture
def alpaca(tmp_path: Path) -> Path:
    rows = [
        {"instruction": f"q{index}", "input": "", "output": "alpha beta gamma delta"}
        for index in range(4)
    ]
    rows[2]["output"] = ""
    rows[3] = rows[0]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_convert(alpaca: Path, tmp_path: Path) -> None:
    done = rayward(
        "convert",
        alpaca,
        "--from",
        "alpaca",
        "--to",
        "sharegpt",
        "--out",
        "out.json.gz",
        "--report",
        "report.json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "report.json").read_text()) == {
        "read": 4,
        "converted": 3,
        "written": 3,
        "expanded": 0,
        "rejected": {"empty text": 1},
        "repaired": {},
        "passed_over": {},
    }
    assert "rejected: empty text   1" in done.stdout and "out.json.gz.rejected.jsonl" in done.stdout
    assert len(list(read(tmp_path / "out.json.gz", "sharegpt"))) == 3
    (bad,) = map(json.loads, (tmp_path / "out.json.gz.rejected.jsonl").read_text().splitlines())
    assert (bad["file"], bad["line"], bad["field"], bad["found"]) == (
        str(alpaca),
        3,
        "output",
        "''",
    )


def test_strict_stops_at_the_first_row_and_leaves_nothing(alpaca: Path, tmp_path: Path) -> None:
    done = rayward("convert", alpaca, "--out", "out.jsonl", "--strict", cwd=tmp_path)
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        == f"rayward: {alpaca}:3: output: found '', expected text that is not blank"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


def test_check(alpaca: Path, tmp_path: Path) -> None:
    done = rayward("check", alpaca, cwd=tmp_path)
    assert done.returncode == 1 and f"{alpaca}:3: output: found ''" in done.stdout
    rayward("convert", alpaca, "--out", "good.jsonl", cwd=tmp_path)
    done = rayward("check", "good.jsonl", cwd=tmp_path)
    assert done.returncode == 0 and "usable   3" in done.stdout
    done = rayward("check", "absent", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.strip() == "rayward: absent: no such file or folder"


def test_check_tells_answers_in_html(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "<p>Hello</p>"}]
    path = tmp_path / "raw.json"
    path.write_text(json.dumps([{"conversations": said}] * 2))
    assert main(["data", "check", str(path)]) == 0
    told = capsys.readouterr().out
    assert "2 of 2 answers are HTML" in told and f"rayward data clean {path}" in told
    said[1]["value"] = "Write <p>Hello</p>"
    path.write_text(json.dumps([{"conversations": said}] * 2))
    assert main(["data", "check", str(path)]) == 0 and "HTML" not in capsys.readouterr().out


def test_stats_with_a_tokenizer(alpaca: Path, tmp_path: Path) -> None:
    train_tokenizer(["alpha beta gamma delta"] * 3, 300, ["<end>"], 64).save_pretrained(
        tmp_path / "tokenizer"
    )
    done = rayward(
        "stats", alpaca, "--tokenizer", "tokenizer", "--report", "stats.json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "duplicates" in done.stdout and "languages" in done.stdout
    found = json.loads((tmp_path / "stats.json").read_text())
    assert (found["read"], found["records"], found["rejected"]) == (
        4,
        {"conversation": 3},
        {"empty text": 1},
    )
    assert (found["duplicates"], found["answers"], found["mtld"]) == (1, 3, 4.0)
    assert found["turns"]["sum"] == 6 and found["characters"]["p100"] == 24
    assert found["tokens"]["sum"] == 3 * found["tokens"]["p50"] > 3


def test_percentiles_and_lengths_of_every_kind(tmp_path: Path) -> None:
    rows = [
        {"kind": "prompt", "turns": [{"role": "user", "content": "x" * length}]}
        for length in range(1, 101)
    ]
    rows.append(
        {"kind": "prompt", "turns": [{"role": "user", "content": "x"}], "follow_ups": ["yy"]}
    )
    prompt = [{"role": "user", "content": "q"}]
    rows.append({"kind": "preference", "turns": prompt, "chosen": "a a a a", "rejected": "b"})
    rows.append(
        {
            "kind": "ranking",
            "turns": prompt,
            "answers": ["a a a a", "b", "of the people, by the people"],
        }
    )
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = stats(tmp_path / "in.jsonl")
    assert found["records"] == {"prompt": 101, "preference": 1, "ranking": 1}
    assert found["characters"]["sum"] == 5050 + 3 + 9 + 37
    assert (found["characters"]["p50"], found["characters"]["p100"]) == (49, 100)
    answers = ["a a a a", "b", "a a a a", "b", "of the people, by the people"]
    assert found["mtld"] == pytest.approx(sum(map(mtld, answers)) / 5) and found["duplicates"] == 0
    (tmp_path / "hundred.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:100]))
    lengths = stats(tmp_path / "hundred.jsonl")["characters"]
    assert [lengths[f"p{percent}"] for percent in (5, 50, 95, 99, 100)] == [5, 50, 95, 99, 100]


def test_stats_of_token_rows_and_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[[[1, 2], [false, true]], [[1, 2], [false, true]]]")
    found = stats(tmp_path / "a.json")
    assert (found["tokens"]["sum"], found["duplicates"], found["mtld"]) == (4, 1, None)
    (tmp_path / "empty.jsonl").write_text("")
    told = rayward("stats", "empty.jsonl", cwd=tmp_path)
    assert (told.returncode, told.stdout) == (1, "")
    assert "empty.jsonl: no usable row of 0 read" in told.stderr
    assert stats(tmp_path / "empty.jsonl")["turns"] == {}


@pytest.mark.parametrize(
    ("command", "rows", "told"),
    [
        (["stats"], "{broken\n", "no usable row of 1 read: broken JSON (1)"),
        (
            ["render", "--template", "chatml"],
            "{broken\n",
            "no usable row of 1 read: broken JSON (1)",
        ),
        (["render", "--template", "chatml"], "", "no usable row of 0 read"),
        (["render", "--template", "chatml"], "CALL", "every row that was looked at was left out"),
        (["check"], "", "there is no row in it"),
        (["check", "--json"], "", "there is no row in it"),
    ],
)
def test_nothing_of_use_is_a_failure(
    command: list[str], rows: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    call = {"type": "function", "function": {"name": "warm", "arguments": "{}"}}
    calling = [
        {"role": "user", "content": "Warm it."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    path.write_text(rows.replace("CALL", json.dumps({"messages": calling})))
    assert main(["data", command[0], str(path), *command[1:]]) == 1
    assert f"{path}: {told}" in capsys.readouterr().err


def test_a_name_to_ignore_that_no_row_has_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": "Hi?", "completion": "Ho.", "colour": "red", "empty": None, "tools": []}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    ignored = "toools,tools,colour,empty,images,colour.shade"
    for command in (["check"], ["stats"], ["convert", "--out", str(tmp_path / "out.jsonl")]):
        assert main(["data", command[0], str(path), "--ignore", ignored, *command[1:]]) == 0
        assert capsys.readouterr().err == "--ignore toools: no row has a field of that name\n"
    # Also where another field set all rows aside.
    path.write_text(json.dumps({**row, "image": "x.png", "tools": [{"name": 1}]}))
    assert main(["data", "check", str(path), "--ignore", ignored]) == 1
    assert capsys.readouterr().err == "--ignore toools: no row has a field of that name\n"


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = (
        "{'torch', 'ray', 'datasets', 'transformers', 'pyarrow', 'rayward.data.formats.registry'}"
    )
    code = (
        "import sys, rayward.pipelines.cli; rayward.pipelines.cli._parser(); "
        f"sys.exit(str({heavy} & sys.modules.keys() or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == ""


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data sets are not beside this checkout")
def test_a_real_folder(tmp_path: Path) -> None:
    done = rayward(
        "convert",
        REAL / "mt_bench" / "model_answer",
        "--to",
        "sharegpt",
        "--out",
        "out.jsonl.gz",
        "--report",
        "report.json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["read"], report["written"], report["rejected"]) == (880, 879, {"empty text": 1})


def test_text_becomes_token_rows_cut_to_the_context(alpaca: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["alpha beta gamma delta"] * 3, 300, ["<|end_of_turn|>"], 64)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    named = ["--to", "openchat_v1", "--template", "openchat_v1", "--tokenizer", "tokenizer"]
    done = rayward(
        "convert", alpaca, "--out", "t.train.json", *named, "--report", "r.json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["read"], report["written"], report["rejected"]) == (4, 3, {"empty text": 1})
    rows, texts = (
        json.loads((tmp_path / f"t.train{part}.json").read_text()) for part in ("", ".text")
    )
    ids, mask = rows[0]
    end = tokenizer.convert_tokens_to_ids("<|end_of_turn|>")
    assert ids[0] == tokenizer.bos_token_id and ids.count(end) == 2 and ids[-1] == end and mask[-1]
    answer = tokenizer.decode([token for token, trained in zip(ids, mask, strict=True) if trained])
    assert texts[0] == tokenizer.decode(ids) and texts[0].endswith(f"Assistant: {answer}")
    assert "Human:" not in answer

    shortest = min(next(i for i, trained in enumerate(mask) if trained) for _, mask in rows)
    cut = [*named, "--context", str(shortest + 1), "--report", "r.json"]
    assert rayward("convert", alpaca, "--out", "cut.json", *cut, cwd=tmp_path).returncode == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["repaired"]["cut to the context"] == report["written"] > 0
    assert report["read"] == report["written"] + sum(report["rejected"].values())
    assert all(
        len(ids) == len(mask) == shortest + 1
        for ids, mask in json.loads((tmp_path / "cut.json").read_text())
    )

    done = rayward("convert", alpaca, "--out", "x.jsonl", *named[2:], cwd=tmp_path)
    assert done.returncode == 2 and "choose --to openchat_v1" in done.stderr
    done = rayward("convert", alpaca, "--out", "x.json", *named[:4], cwd=tmp_path)
    assert done.returncode == 2 and "need --template and --tokenizer" in done.stderr


def test_nothing_that_is_read_is_overwritten(alpaca: Path, tmp_path: Path) -> None:
    before = alpaca.read_bytes()
    for arguments in (
        ["convert", f"hf:{alpaca}", "--out", alpaca],
        ["convert", alpaca, "--out", "o.jsonl", "--report", alpaca],
        ["convert", alpaca, "--out", "o.jsonl", "--questions", "o.jsonl"],
        ["stats", alpaca, "--report", alpaca],
    ):
        done = rayward(*arguments, cwd=tmp_path)
        assert done.returncode == 2 and "is among the files to read" in done.stderr
    (tmp_path / "t.text.json").write_text("[]")
    done = rayward(
        "convert",
        "t.text.json",
        "--from",
        "alpaca",
        "--to",
        "openchat_v1",
        "--out",
        "t.json",
        cwd=tmp_path,
    )
    assert done.returncode == 2 and "is among the files to read" in done.stderr
    done = rayward("convert", alpaca, "--to", "openchat_v1", "--out", "t.json", cwd=tmp_path)
    assert done.returncode == 2 and "t.text.json is there" in done.stderr
    assert alpaca.read_bytes() == before and (tmp_path / "t.text.json").read_text() == "[]"
    done = rayward(
        "convert", alpaca, "--out", "o.jsonl", "--report", "new/folder/r.json", cwd=tmp_path
    )
    assert done.returncode == 0 and (tmp_path / "new/folder/r.json").is_file()


def test_an_openchat_row_keeps_its_condition(tmp_path: Path) -> None:
    items = [{"role": "user", "content": "alpha"}, {"role": "assistant", "content": "beta"}]
    rows = [{"items": items, "condition": words, "system": ""} for words in ("GPT4", "GPT3")]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train_tokenizer(["alpha beta"] * 3, 300, ["<|end_of_turn|>"], 64).save_pretrained(
        tmp_path / "tokenizer"
    )
    named = ["--to", "openchat_v1", "--template", "openchat_v3.2", "--tokenizer", "tokenizer"]
    assert rayward("convert", "in.jsonl", "--out", "o.json", *named, cwd=tmp_path).returncode == 0
    assert [text[3:12] for text in json.loads((tmp_path / "o.text.json").read_text())] == [
        "GPT4 User",
        "GPT3 User",
    ]
    shown = rayward(
        "render", "in.jsonl", "--template", "openchat_v3.2", "--plain", cwd=tmp_path
    ).stdout
    assert "GPT4 User:alpha" in shown and "GPT3 User:alpha" in shown
