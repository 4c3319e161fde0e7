"""`rayward data clean` on Ray Data: every page accounted for, and the same bytes whatever the order
or the CPUs.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.clean_pages import generated, page
from rayward.data.cleaning.sieve import SieveRules
from rayward.data.formats.registry import Report, read
from rayward.pipelines.cli import main
from rayward.pipelines.data_tools.clean import clean


def ask(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


LONG = "".join(
    f"<p>Number {number} is followed by the number {number + 1} on the list.</p>"
    for number in range(60)
)
BAD: dict[str, tuple[str, str]] = {
    "00-gone.html": (page(None), "unable to extract content"),
    "01-other.html": ("<html></html>", "unable to extract content"),
    "02-short.html": (page(ask("a", "b")[:1]), "conversation too short"),
    "03-roles.html": (page([*ask("a", "b"), *ask("c", "d")[1:]]), "wrong format"),
    "04-words.html": (page(ask("a", "I am made by OpenAI.")), "contains blocked words"),
    "05-parser.html": (page(ask("a", "<![foo[bar]]>")), "parser error"),
    "06-empty.html": (page(ask("a", "<p> </p>")), "empty message"),
}
GOOD = {
    "10-first.html": page(ask("Count.", LONG), id="first"),
    "11-same.html": page(ask("Count.", LONG), id="same"),
    "12-near.html": page(ask("Count.", LONG + "<p>The end.</p>"), id="near"),
    "13-german.html": page(
        ask("Wie heißt die Hauptstadt?", "<p>Die Hauptstadt von Deutschland ist Berlin.</p>")
    ),
    "14-gpt3.html": page(
        ask("Say something in English, please.", "<p>This is it.</p>"),
        model="Model: Default (GPT-3.5)",
    ),
    "15-last.html": page(
        ask("What is the capital of France?", "<p>It is <b>Paris</b>.</p>"), id="last"
    ),
}


def write(folder: Path, texts: dict[str, str], seed: int = 0) -> Path:
    """The pages in a folder, made in a random order."""
    for name in random.Random(seed).sample(sorted(texts), len(texts)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(texts[name], encoding="utf-8")
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_page_is_written_or_listed_with_its_reason(local_ray: None, tmp_path: Path) -> None:
    folder = write(tmp_path / "pages", {name: text for name, (text, _) in BAD.items()} | GOOD)
    (folder / "notes.txt").write_text("no page")
    (folder / "16-link.html").symlink_to(folder / "nothing")
    out, account = tmp_path / "made" / "clean.jsonl", tmp_path / "made" / "report.json"
    report = clean(folder, out, SieveRules(), report_path=account)
    expected = Counter(reason for _, reason in BAD.values()) + Counter(
        ["duplicate", "unreadable file"]
    )
    assert report == {
        "read": len(BAD) + len(GOOD) + 1,
        "written": len(GOOD) - 1,
        "rejected": dict(expected),
    }
    assert json.loads(account.read_text()) == report
    listed = rows(out.with_name("clean.jsonl.rejected.jsonl"))
    reasons = {row["file"]: row["reason"] for row in listed}
    expected_reasons = {name: reason for name, (_, reason) in BAD.items()}
    assert reasons == expected_reasons | {
        "11-same.html": "duplicate",
        "16-link.html": "unreadable file",
    }
    assert list(reasons) == sorted(reasons) and all(
        set(row) >= {"field", "found", "expected"} for row in listed
    )
    assert {path.name for path in out.parent.iterdir()} == {
        out.name,
        f"{out.name}.rejected.jsonl",
        account.name,
    }


def test_what_is_written_is_read_as_sharegpt_in_the_order_of_the_names(
    local_ray: None, tmp_path: Path
) -> None:
    out = tmp_path / "clean.jsonl"
    clean(write(tmp_path / "pages", GOOD | {"9/z.html": generated(3)}), out, SieveRules())
    report = Report()
    found = list(read(out, report=report))
    assert report.read == report.kept == len(found) == 6 and not report.repaired
    assert [record.id for record in found] == [
        "first",
        "near",
        "a1B2c3D",
        "a1B2c3D",
        "last",
        "page3",
    ]
    assert found[4].turns[1].content == "It is **Paris**." and found[4].quality == "Model: GPT-4"


def test_options_keep_a_model_and_a_language_and_drop_near_duplicates(
    local_ray: None, tmp_path: Path
) -> None:
    folder, out, account = (
        write(tmp_path / "pages", GOOD),
        tmp_path / "clean.jsonl",
        tmp_path / "report.json",
    )
    options = [
        "--model",
        "Model: GPT-4",
        "--language",
        "en",
        "--near-duplicates",
        "0.8",
        "--cpus",
        "1",
    ]
    assert (
        main(["data", "clean", str(folder), "--out", str(out), "--report", str(account), *options])
        == 0
    )
    assert [row["id"] for row in rows(out)] == ["first", "last"]
    rejected = {"duplicate": 1, "near duplicate": 1, "other language": 1, "other model": 1}
    assert json.loads(account.read_text()) == {"read": 6, "written": 2, "rejected": rejected}
    words = ["--blocked-word", "paris", "--blocked-word", "berlin"]
    assert main(["data", "clean", *words, str(folder), "--out", str(out)]) == 0
    assert [row["id"] for row in rows(out)][:2] == ["first", "near"] and len(rows(out)) == 3


def test_neither_order_nor_cpus_change_a_byte(local_ray: None, tmp_path: Path) -> None:
    texts = {f"{number:03d}.html": generated(number) for number in range(150)}
    texts |= {f"{number:03d}.htm": texts[f"{number:03d}.html"] for number in range(0, 150, 7)}
    texts |= {f"sub/{name}": text for name, (text, _) in BAD.items()}
    rules = SieveRules(near_duplicates=0.8)
    made = set()
    for seed, cpus in ((0, 1), (1, 2), (2, None)):
        out = tmp_path / f"{seed}.jsonl"
        report = clean(write(tmp_path / f"pages{seed}", texts, seed), out, rules, cpus)
        assert report["read"] == len(texts) == report["written"] + sum(report["rejected"].values())
        made.add((out.read_bytes(), out.with_name(f"{out.name}.rejected.jsonl").read_bytes()))
    assert len(made) == 1
    assert report["rejected"]["duplicate"] == 22 + 7  # the copies, and every 20th generated page


def test_raw_json_beside_pages_and_alone(local_ray: None, tmp_path: Path) -> None:
    """Rows follow the pages, and repeat them."""
    folder = write(tmp_path / "pages", {name: GOOD[name] for name in ("15-last.html",)})
    made = [
        {
            "id": "same",
            "conversations": ask("What is the capital of France?", "<p>It is <b>Paris</b>.</p>"),
        },
        {"id": "r1", "conversations": ask("Who?", "<p>Nobody.</p>")},
        {"id": "r2", "conversations": ask("Who?", "Plain *text*.")},
        *({"conversations": ask(f"{i}?", f"<p>{i}!</p>")} for i in range(150)),
    ]
    (folder / "raw.json").write_text(json.dumps(made))
    out = tmp_path / "clean.jsonl"
    report = clean(folder, out, SieveRules())
    assert report == {
        "read": 1 + 153,
        "written": 1 + 151,
        "rejected": {"duplicate": 1, "answers are not HTML": 1},
    }
    ids = [row["id"] for row in rows(out)]
    assert ids[:3] == ["last", "r1", "raw.json:4"] and ids[-1] == "raw.json:153"
    places = [row["file"] for row in rows(out.with_name("clean.jsonl.rejected.jsonl"))]
    assert places == ["raw.json:1", "raw.json:3"]
    alone = tmp_path / "alone.jsonl"
    assert clean(folder / "raw.json", alone, SieveRules(), cpus=1)["written"] == 152
    assert rows(alone)[1:] == rows(out)[1:]


def test_mistakes_are_told_and_leave_the_old_output_alone(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clean.jsonl"
    out.write_text("old\n")
    folder = write(tmp_path / "pages", GOOD)
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([tmp_path / "none"], "no such folder"),
        ([tmp_path / "empty"], "no page; expected names that end in .html"),
        ([folder, "--cpus", "1000"], "1000 CPUs asked for, Ray has "),
        ([folder, "--cpus", "0"], "0 CPUs asked for"),
        ([folder, "--near-duplicates", "80"], "give a similarity between 0 and 1"),
        ([folder, "--language", "english"], "'english' is not known"),
    ):
        assert main(["data", "clean", *map(str, arguments), "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
    assert out.read_text() == "old\n"
    assert {path.name for path in tmp_path.iterdir()} == {"clean.jsonl", "pages", "empty"}
