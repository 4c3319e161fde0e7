"""`rayward data simulate` and `rank` with a real vLLM server of a tiny random model, killed and
gone on with.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rayward.cluster.serve.vllm_server import served
from rayward.data.feedback.ranking import shown_order
from rayward.data.formats.registry import read
from rayward.data.record_json import to_json
from rayward.data.records import Conversation, Ranking, Turn
from rayward.pipelines.cli import main
from rayward.pipelines.rows.records import load_records

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CONTEXT = 8192  # the tiny tokenizer makes a token of nearly every letter


@pytest.fixture(scope="module")
def folder(random_llama: Callable[..., Path]) -> Path:
    """A random Llama whose context holds a judge's prompt."""
    return random_llama(CONTEXT)


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[str]:
    with served(str(folder), CONTEXT, timeout_s=400) as url:
        yield f"tiny@{url}"


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def seeds(folder: Path) -> Path:
    kinds: list[dict[str, Any]] = [
        {"module": "world", "topic": "tides"},
        {"module": "writing", "writing_type": "poem", "instruction": "about rain"},
        {"module": "materials", "material": "Snow fell."},
        {"module": "world", "entity": "the Moon"},
    ]
    return write(
        folder / "seeds.jsonl", [kinds[number % 4] | {"id": f"s{number}"} for number in range(8)]
    )


def simulate_flags(model: str, *sides: str) -> list[str]:
    short = json.dumps({"max_tokens": 8})
    flags = ["--user-request", short, "--assistant-request", short]
    return [*flags, *(part for side in sides for part in (f"--{side}", model))]


def ranked_rows(count: int, k: int) -> list[dict[str, Any]]:
    rows = []
    for number in range(count):
        answers = tuple(f"{number} times {place}" for place in range(k))
        question = Turn("user", f"Question {number}?")
        rows.append(to_json(Ranking((question,), answers, "mine", f"r{number}")))
    return rows


def rayward(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "rayward.pipelines.cli", "data", *map(str, arguments)]


def kill_when(command: list[str], partial: Path, lines: int) -> None:
    """SIGKILL the command as soon as it has written so many lines."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not partial.exists() or partial.read_bytes().count(b"\n") < lines:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)


def test_a_killed_simulation_goes_on_to_the_same_file(model: str, tmp_path: Path) -> None:
    source, whole, resumed = seeds(tmp_path), tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    flags = [
        "simulate",
        "--seeds",
        source,
        *simulate_flags(model, "user", "assistant"),
        "--seed",
        7,
    ]
    report = tmp_path / "report.json"
    subprocess.run(
        rayward(*flags, "--out", whole, "--report", report, "--concurrency", 4),
        check=True,
        timeout=300,
    )
    command = rayward(*flags, "--out", resumed, "--report", report, "--concurrency", 2)
    kill_when(command, tmp_path / "resumed.partial.jsonl", 4)
    assert not resumed.exists()
    subprocess.run(command, check=True, timeout=300)
    for suffix in ("", ".provenance.jsonl", ".rejected.jsonl"):
        assert Path(f"{resumed}{suffix}").read_bytes() == Path(f"{whole}{suffix}").read_bytes()
    account = json.loads(report.read_text())
    assert account["read"] == 8 == account["written"] + sum(account["rejected"].values())
    assert account["done_before"] >= 3 and account["models"]["user"]["reply_tokens"] > 0
    found = list(load_records(resumed))
    assert len(found) == account["written"] >= 5
    for record in found:
        assert isinstance(record, Conversation) and record.quality == "tiny"
        assert record.source.removeprefix("simulated/") in ("world", "writing", "materials")
    assert len({record.turns[0].content for record in found}) == len(found)


def test_a_random_judge_ranks_nothing_and_every_item_is_accounted_for(
    model: str, tmp_path: Path
) -> None:
    source, out, report = (
        write(tmp_path / "in.jsonl", ranked_rows(6, 3)),
        tmp_path / "o.jsonl",
        tmp_path / "r.json",
    )
    flags = ["--judge", model, "--judge-request", '{"max_tokens": 16}', "--report", str(report)]
    assert main(["data", "rank", str(source), "--out", str(out), *flags]) == 0
    account, listed = json.loads(report.read_text()), rows(out.with_name("o.jsonl.rejected.jsonl"))
    assert (account["read"], account["written"], out.read_bytes()) == (6, 0, b"")
    assert [row["id"] for row in listed] == [f"r{number}" for number in range(6)]
    assert account["rejected"] == {"reply cut before its list": 6} and all(
        row["found"].strip() for row in listed
    )
    assert account["models"]["judge"]["reply_tokens"] == 6 * 16


@pytest.mark.parametrize("k", [3, pytest.param(7, marks=pytest.mark.slow)])
def test_a_guided_judge_ranks_and_a_killed_ranking_goes_on_to_the_same_file(
    k: int, model: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "in.jsonl", ranked_rows(12, k))
    whole, resumed = tmp_path / "w.jsonl", tmp_path / "r.jsonl"
    flags = [
        "rank",
        source,
        "--judge",
        model,
        "--guided",
        "--repeat",
        "0.5",
        "--report",
        tmp_path / "report.json",
    ]
    subprocess.run(rayward(*flags, "--out", whole, "--concurrency", 1), check=True, timeout=300)
    kill_when(
        rayward(*flags, "--out", resumed, "--concurrency", 4), tmp_path / "r.partial.jsonl", 5
    )
    subprocess.run(rayward(*flags, "--out", resumed, "--concurrency", 4), check=True, timeout=300)
    assert resumed.read_bytes() == whole.read_bytes()
    account = json.loads((tmp_path / "report.json").read_text())
    assert account["read"] == 12 == account["written"] + sum(account["rejected"].values())
    if k > 5:  # the grammar lets a label come twice, and a random model does that
        assert set(account["rejected"]) <= {"not a permutation of the labels"}
        return
    assert account["written"] == 12 and 1 <= account["agreement"]["n"] <= 11
    given = {record.id: record for record in read(source)}
    for record in read(whole, "nectar", strict=True):
        assert isinstance(record, Ranking) and sorted(record.answers) == sorted(
            given[record.id].answers
        )
        assert sorted(shown_order(record, 0)) == list(range(k)) and record.ranks == (1, 2, 3)


@pytest.mark.slow
def test_a_folder_is_served_for_both_sides_and_taken_down_even_after_a_kill(
    folder: Path, tmp_path: Path
) -> None:
    # So that its servers are told from others.
    folder = Path(shutil.copytree(folder, tmp_path / "tiny"))
    source, whole, resumed = seeds(tmp_path), tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    flags = [
        "simulate",
        "--seeds",
        source,
        *simulate_flags(str(folder), "user", "assistant"),
        "--start-timeout",
        400,
    ]
    subprocess.run(rayward(*flags, "--out", whole), check=True, timeout=500)
    assert not servers(folder) and rows(whole)
    kill_when(
        rayward(*flags, "--out", resumed, "--concurrency", 2), tmp_path / "resumed.partial.jsonl", 3
    )
    deadline = time.monotonic() + 60
    while servers(folder) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not servers(folder)
    subprocess.run(rayward(*flags, "--out", resumed), check=True, timeout=500)
    assert resumed.read_bytes() == whole.read_bytes()


def servers(folder: Path) -> list[str]:
    """Processes that serve the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if b"--model\0" + os.fsencode(folder) in command and process.name != str(os.getpid()):
            found.append(process.name)
    return found


@pytest.mark.slow
def test_a_server_that_does_not_start_says_why(folder: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="no-such-argument"),
        served(str(folder), CONTEXT, 300, "--no-such-argument"),
    ):
        pass
    with served(str(folder), CONTEXT, 400) as url:
        urllib.request.urlopen(f"{url}/models", timeout=10).close()
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{url}/models", timeout=10)
