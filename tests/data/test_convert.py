"""Conversion: every row accounted for whatever is wrong with it, the output whole or untouched,
memory constant.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rayward.data.formats.convert import Account, convert
from rayward.data.formats.files.containers import rows
from rayward.data.formats.registry import read
from rayward.data.formats.writers.table import WRITERS
from tests.data.examples import detect

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT / ".." / "shared" / "data"
needs_real_data = pytest.mark.skipif(
    not REAL.is_dir(), reason="the real data sets are not beside this checkout"
)


def chat(*speakers: str, text: str = "text") -> dict:
    return {
        "conversations": [
            {"from": who, "value": f"{text} {index}"} for index, who in enumerate(speakers)
        ]
    }


def rejected_file(out: Path) -> list[dict]:
    path = out.with_name(out.name + ".rejected.jsonl")
    return [row for _, row in rows(path)] if path.exists() else []


def converted(path: Path, out: Path, *arguments, **options) -> Account:
    account = convert(path, out, *arguments, **options)
    assert account.read == account.converted + account.rejected.total()
    assert account.written == account.converted + account.expanded
    assert (len(list(rows(out))) if out.exists() else 0) == account.written
    bad = rejected_file(out)
    assert len(bad) == account.rejected.total()
    assert all(
        row[name]
        for row in bad
        for name in ("file", "line", "field", "found", "expected", "reason")
    )
    json.dumps(account.as_dict())
    return account


GOOD = json.dumps(chat("human", "gpt")).encode()
NASTY = [
    (GOOD, None),
    (b'{"conversations": [{"from": "human", "value": "caf\xe9"}]}', "not UTF-8"),
    (b'{"conversations": [], "score": NaN}', "number not finite"),
    (b'{"conversations": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "broken JSON"),
    (json.dumps(chat("human", "alien")).encode(), "unknown role"),
    (
        json.dumps(chat("human", "function_call", "observation", "gpt")).encode(),
        "text that is no JSON",
    ),
    (json.dumps(chat("human", "human", "gpt")).encode(), "roles do not alternate"),
    (
        b'{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": " "}]}',
        "empty text",
    ),
    (json.dumps(chat("gpt")).encode(), "no answered turn"),
    (json.dumps(chat("gpt", "human", "gpt")).encode(), None),
    (b'{"conversations": "cut', "broken JSON"),
    (GOOD, None),
]


def test_every_kind_of_bad_row_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "nasty.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(line for line, _ in NASTY) + b"\r\n")
    account = converted(path, tmp_path / "out.jsonl", target_format="ultrachat")
    assert (account.read, account.written) == (len(NASTY), 3)
    assert account.repaired == {"dropped leading assistant turn": 1}
    reasons = {row["line"]: row["reason"] for row in rejected_file(tmp_path / "out.jsonl")}
    assert reasons == {line: reason for line, (_, reason) in enumerate(NASTY, 1) if reason}
    with pytest.raises(ValueError, match=re.escape(f"{path}:2: line: found byte 0xe9")):
        convert(path, tmp_path / "strict.jsonl", strict=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "nasty.jsonl",
        "out.jsonl",
        "out.jsonl.rejected.jsonl",
    ]


def test_truncated_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(b"\n".join([GOOD] * 1000))
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-12])
    account = converted(tmp_path / "cut.jsonl.gz", tmp_path / "out.json.gz", "sharegpt", "openai")
    assert account.rejected == {"truncated file": 1} and account.read > 1


@pytest.mark.parametrize("shape", ["lines", "array"])
def test_a_line_of_50_megabytes(shape: str, tmp_path: Path) -> None:
    long = json.dumps(chat("human", "gpt", text="é" * 12_500_000), ensure_ascii=False).encode()
    assert len(long) > 50_000_000
    before, between, after = (b"[", b",", b"]") if shape == "array" else (b"", b"\n", b"")
    (tmp_path / "long.json").write_bytes(before + between.join((GOOD, long, GOOD)) + after)
    account = converted(tmp_path / "long.json", tmp_path / "out.jsonl", target_format="openai")
    assert account.written == 3
    assert (tmp_path / "out.jsonl").stat().st_size > 50_000_000


def test_a_row_is_converted_whole_or_not_at_all(tmp_path: Path) -> None:
    choices = [{"turns": ["a"]}, {"turns": ["b\n\nHuman: c"]}]
    answers = [
        {"question_id": 1, "model_id": "m", "choices": choices},
        {"question_id": 2, "choices": choices[:1]},
    ]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, answers)))
    questions = tmp_path / "asked.jsonl"
    questions.write_text('{"question_id": 1, "turns": ["q"]}\n{"question_id": 2, "turns": ["r"]}')
    account = converted(
        tmp_path / "answers.jsonl",
        tmp_path / "a.jsonl",
        target_format="alpaca",
        questions=questions,
    )
    assert (account.read, account.converted, account.expanded, account.written) == (2, 2, 1, 3)
    # The second answer has no model, without which it is no row of answers.
    account = converted(
        tmp_path / "answers.jsonl",
        tmp_path / "b.jsonl",
        target_format="mt_bench_answers",
        questions=questions,
    )
    assert (account.converted, account.rejected) == (1, {"no model name": 1})


def test_rankings_as_pairs_are_accounted_for(tmp_path: Path) -> None:
    def row(*ranks: int, prompt: str = "\n\nHuman: q\n\nAssistant: ") -> str:
        answers = [{"answer": f"a{index}", "rank": rank} for index, rank in enumerate(ranks)]
        return json.dumps({"prompt": prompt, "answers": answers})

    lines = [row(1, 2, 3, 4), row(1, 1), row(2, 1), row(1), row(1, 1, 2)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    account = converted(tmp_path / "in.jsonl", tmp_path / "out.jsonl", "nectar", "hh_rlhf")
    assert account.as_dict() == {
        "read": 5,
        "converted": 3,
        "written": 6 + 1 + 2,
        "expanded": 6,
        "rejected": {"all answers are tied": 1, "too few answers": 1},
        "repaired": {},
        "passed_over": {},
    }


def test_a_second_run_without_rejects_takes_the_old_ones_away(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    (tmp_path / "in.jsonl").write_bytes(GOOD + b"\nbad\n")
    converted(tmp_path / "in.jsonl", out)
    assert len(rejected_file(out)) == 1
    (tmp_path / "in.jsonl").write_bytes(GOOD)
    converted(tmp_path / "in.jsonl", out)
    assert not rejected_file(out)


def test_mistakes_of_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(GOOD)
    with pytest.raises(
        ValueError, match="unknown format to write 'shargpt'; known: rayward, sharegpt"
    ):
        convert(path, tmp_path / "out.jsonl", target_format="shargpt")
    with pytest.raises(ValueError, match="unknown format 'shargpt'"):
        convert(path, tmp_path / "out.jsonl", "shargpt")
    with pytest.raises(ValueError, match="is among the files to read"):
        convert(tmp_path, path)
    with pytest.raises(ValueError, match="the name must end in"):
        convert(path, tmp_path / "out.txt")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        convert(tmp_path / "absent", tmp_path / "out.jsonl")
    assert path.read_bytes() == GOOD and list(tmp_path.iterdir()) == [path]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from rayward.data.formats.convert "
        "import convert; convert(Path(sys.argv[1]), Path(sys.argv[1] + '.out.jsonl.gz'), "
        "target_format='openai'); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for megabytes in (2, 20):
        path = tmp_path / f"{megabytes}.json"
        row = json.dumps(
            chat("human", "gpt", "gpt" if megabytes % 2 else "human", "gpt", text="x" * 500)
        )
        bad = json.dumps(chat("human", "alien", text="x" * 500))
        path.write_text("[" + ",".join([row, bad] * (megabytes * 300)) + "]")
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] - peaks[0] < 8, peaks  # MiB; the larger file has 18 MB more


# ---- real files
# --------------------------------------------------------------------------------------------


def real_files() -> dict[str, int]:
    """Rows of each file of records, as the table of the data's README has them."""
    if not REAL.is_dir():
        return {}
    table = re.findall(
        r"^\| `([^`]+\.jsonl?(?:\.gz)?)` \| (\d+) \|",
        (REAL / "README.md").read_text(),
        re.MULTILINE,
    )
    return {name: int(count) for name, count in table}


# What the refused files hold instead of conversations, prompts or rankings.
NO_RECORDS = {
    "nectar/rejudged.jsonl.gz": "orders of answers that are in another file",
    "mt_bench/judge_prompts.jsonl.gz": "prompts for a judge, with fields to fill in",
    "vicuna_bench/prompt.jsonl.gz": "prompts for a judge, with fields to fill in",
    "mt_bench/model_judgment/gpt-4_single/Meta-Llama-3-8B-Instruct-Normal.jsonl.gz": "a judge's "
    "verdicts",
    "mt_bench/model_judgment/gpt-4_single/mistral-orpo-mix.jsonl.gz": "a judge's verdicts",
    "mt_bench/model_judgment/gpt-4_single/mistral-orpo-trl.jsonl.gz": "a judge's verdicts",
    "vicuna_bench/review/review_gpt35_vicuna-13b.jsonl.gz": "a judge's verdicts on answers of "
    "other files",
    "vicuna_bench/review/review_llama-13b_vicuna-13b.jsonl.gz": "a judge's verdicts on answers of "
    "other files",
    "alpaca_eval/preferences_alpaca_eval_gpt4.jsonl.gz": "numbers: a model's preferences and "
    "lengths",
    "alpaca_eval/preferences_weighted_alpaca_eval_gpt4_turbo.jsonl.gz": "numbers: a model's "
    "preferences and lengths",
    "alpaca_eval/leaderboard_alpaca_eval_gpt4.json": "a leaderboard",
    "alpaca_eval/leaderboard_weighted_alpaca_eval_gpt4_turbo.json": "a leaderboard",
    "alpaca_eval/length_controlled_weights.json": "weights of a regression",
    "alpaca_eval/instruction_difficulty_estimate.json": "numbers",
}


@needs_real_data
def test_every_real_file_converts_with_every_row_accounted_for_or_holds_no_records(
    tmp_path: Path,
) -> None:
    files = real_files()
    assert len(files) == 79
    assert set(NO_RECORDS) <= set(files)
    known = {}
    for name, num_rows in files.items():
        if name in NO_RECORDS:
            with pytest.raises(
                ValueError, match="fit no known format|no row that is a JSON object"
            ):
                detect(REAL / name)
            continue
        known[name] = detect(REAL / name)
        account = converted(REAL / name, tmp_path / "out.jsonl.gz")
        assert account.read == num_rows and account.expanded == 0
        again = list(read(tmp_path / "out.jsonl.gz", "rayward", strict=True))
        assert len(again) == account.written
    assert len(known) == 65 and len(set(known.values())) == 16


@needs_real_data
@pytest.mark.parametrize(
    "name",
    [
        "sharegpt/sharegpt_test.json.gz",
        "alpaca/alpaca_test.json.gz",
        "hh_rlhf/test.jsonl.gz",
        "nectar/test.jsonl.gz",
        "mt_bench/question.jsonl.gz",
        "mt_bench/model_answer/gpt-4.jsonl.gz",
    ],
)
def test_real_records_survive_every_format_that_takes_them(name: str, tmp_path: Path) -> None:
    for target in WRITERS:
        # A file of its own for each: without a usable row, convert leaves the earlier one there.
        out = tmp_path / target / "out.jsonl"
        out.parent.mkdir()
        account = converted(REAL / name, out, target_format=target)
        if account.written and target != "mt_bench_answers":
            assert len(list(read(out, target, strict=True))) == account.written
