"""The passes of prepare: token rows in files are those that the records give, the same in one
process and in several, and a report does not grow with the rows.
"""

from __future__ import annotations

import functools
import json
import operator
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayward.configs.schema import Config
from rayward.data.ragged import Ragged, Rows
from rayward.data.records import Conversation, Turn
from rayward.data.token_columns import MappedRows
from rayward.pipelines.rows import left_out, passes, processes
from rayward.pipelines.rows.conversations import fit_conversations, sft_rows
from rayward.pipelines.rows.mixture import TRAINED
from rayward.pipelines.rows.prepared_file import token_path
from rayward.pipelines.rows.prepared_rows import labelled, prompt_rows, ranked, weighted_rows
from rayward.pipelines.rows.processes import Processes
from rayward.pipelines.rows.prompts import fit_prompts
from rayward.pipelines.rows.ranked import labelled_rows, ranked_rows
from rayward.pipelines.rows.records import prepared
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.rows.spool import CHUNK_ROWS, Entry, Spool
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.files import read_json
from rayward.pipelines.run.folder import Run
from rayward.pipelines.stages import prepare

BAD = '{"messages": [{"role": "alien", "content": "x"}]}'


def sources(root: Path) -> dict[str, list[dict[str, str]]]:
    """Files of all lists, with ties, copies, rows that do not fit and rows that cannot be used."""

    def chat(number: int) -> dict[str, Any]:
        said = [f"Question {number}?", "word " * (number % 90), "And?", f"{number} it is."]
        said[1] = said[1] or "Nothing."
        roles = ("user", "assistant")
        return {
            "messages": [
                {"role": roles[place % 2], "content": text} for place, text in enumerate(said)
            ]
        }

    def ranking(number: int) -> dict[str, Any]:
        ranks = [(1, 1, 2), (1, 2, 3), (2, 1, 1)][number % 3]
        answers = [
            {"answer": f"answer {place} " * (1 + number % 30), "rank": rank}
            for place, rank in enumerate(ranks)
        ]
        return {"prompt": f"\n\nHuman: Ranked {number}?\n\nAssistant: ", "answers": answers}

    def prompt(number: int) -> dict[str, Any]:
        # Every second one twice.
        return {
            "messages": [{"role": "user", "content": f"Prompt {number // 2}?" * (number % 9 + 1)}]
        }

    def label(number: int) -> dict[str, Any]:
        turns = [{"role": "user", "content": f"Labelled {number}?"}]
        answer = "word " * (1 + number % 90)
        return {"kind": "labelled", "turns": turns, "answer": answer, "good": number % 3 == 0}

    files: dict[str, list[dict[str, Any]]] = {
        "conversations": [chat(number) for number in range(700)],
        "preferences": [ranking(number) for number in range(300)],
        "prompts": [prompt(number) for number in range(300)],
        "evaluation_prompts": [prompt(1000 + 2 * number) for number in range(20)],
        # The second source of a list.
        "labels": [label(number) for number in range(200)],
        "more": [{**chat(number), "id": f"more-{number}"} for number in range(2000, 2040)],
    }
    root.mkdir()
    for name, rows in files.items():
        lines = [json.dumps(row) for row in rows]
        if name == "conversations":
            lines[10:10] = [BAD] * 5
        (root / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    lists = {"conversations": ["conversations", "more"], "preferences": ["preferences", "labels"]}
    lists |= {name: [name] for name in ("prompts", "evaluation_prompts")}
    return {name: [{"path": f"{file}.jsonl"} for file in of] for name, of in lists.items()}


@pytest.fixture(scope="module")
def config(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Config]
) -> Callable[..., Config]:
    """A config of these sources; settings of its data are merged over it."""
    root = tmp_path_factory.mktemp("passes") / "data"
    lists = sources(root)
    return lambda **data: tiny_config(
        model={"context_tokens": 256, "scratch": {"vocab_size": 320}},
        data={"toyworld": None, "root": str(root), "heldout_fraction": 0.3, **lists, **data},
        evaluate={"judge": "reward_model", "prompts": 16},
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, config: Callable[..., Config]) -> Run:
    run = Run(tmp_path_factory.mktemp("run"), config())
    assert prepare.prepare(run) is not None
    return run


def same(mapped: Rows, memory: Ragged) -> None:
    taken = mapped.take(range(len(mapped)))
    assert taken.values.dtype == memory.values.dtype
    assert np.array_equal(taken.values, memory.values)
    assert np.array_equal(taken.lengths, memory.lengths)


def test_token_rows_in_files_are_those_of_the_records(done: Run) -> None:
    check_token_rows(done)


def check_token_rows(done: Run) -> None:
    """Token rows are those that the records of the same file give, in its order."""
    renderer = Renderer.of_run(done)
    for name in ("conversations", "sft_heldout"):
        records = prepared(done, name)
        ids, weights = sft_rows(fit_conversations(records, renderer, Counter(), done.config.sft)[1])
        rows = weighted_rows(done, name, renderer)
        same(rows.ids, ids)
        same(rows.weights, weights)
        assert len(ids) == len(records) > 5
    for name in ("rankings", "heldout", "judge"):
        for seed in (0, 1):
            memory = ranked_rows(prepared(done, name), renderer, seed)[1]
            mapped = ranked(done, name, renderer, seed)
            assert isinstance(memory.ids, Ragged) and isinstance(memory.answers, Ragged)
            same(mapped.ids, memory.ids)
            same(mapped.answers, memory.answers)
            assert np.array_equal(mapped.sizes, memory.sizes) and len(memory.sizes) > 20
            assert np.array_equal(mapped.ranks, memory.ranks)
            assert mapped.ranks.dtype == memory.ranks.dtype
    for name in ("labelled", "labelled_heldout"):
        memory = labelled_rows(prepared(done, name), renderer)
        mapped = labelled(done, name, renderer)
        assert isinstance(memory.ids, Ragged) and isinstance(memory.answers, Ragged)
        assert isinstance(mapped.ids, MappedRows)
        same(mapped.ids, memory.ids)
        same(mapped.answers, memory.answers)
        assert np.array_equal(mapped.good, memory.good) and 0 < memory.good.sum() < len(memory.ids)
        assert len(memory.ids) > 20
    room = done.config.rollout.max_new_tokens
    for name in ("prompts", "evaluation_prompts"):
        records, rows_of_prompts = prompt_rows(done, name, renderer)
        assert isinstance(rows_of_prompts, MappedRows)
        kept, memory_of_prompts = fit_prompts(records, renderer, room, Counter(), repeated=True)
        same(rows_of_prompts, memory_of_prompts)
        assert kept == records == prepared(done, name)


def test_what_is_drawn_has_its_token_rows(
    done: Run, config: Callable[..., Config], tmp_path: Path
) -> None:
    """Sources of several chunks, and one of few rows with very many copies."""
    data = {
        "conversations": [
            {"path": "conversations.jsonl", "epochs": 0.7},
            {"path": "more.jsonl", "epochs": 30},
        ],
        "preferences": [
            {"path": "preferences.jsonl", "epochs": 2.5},
            {"path": "labels.jsonl", "epochs": 0.5},
        ],
        "prompts": [{"path": "prompts.jsonl", "epochs": 1.5}],
    }
    run = Run(tmp_path / "run", config(**data))
    assert prepare.prepare(run) is not None
    check_token_rows(run)
    reports = [read_json(made.folder / "prepare" / "report.json") for made in (done, run)]
    for name, parts in reports[1]["mixture"].items():
        trained = name in TRAINED
        for part, plain in zip(parts, reports[0]["mixture"][name], strict=True):
            epochs = next(
                (s["epochs"] for of in data.values() for s in of if s["path"] == part["source"]), 1
            )
            assert part["rows"] == plain["rows"] == plain["drawn"]
            assert part["drawn"] == (round(part["rows"] * epochs) if trained else part["rows"])
        path = token_path(run.folder / "prepare", name)
        assert sum(part["tokens"] for part in parts) == MappedRows(path, "ids").lengths.sum()
        rows = prepared(run, name)
        assert len(rows) == len({row.id for row in rows}) == sum(part["drawn"] for part in parts)
    more = [row for row in prepared(run, "conversations") if row.id.startswith("more")]
    times = Counter(row.turns[0].content for row in more)
    assert len(times) > 20 and set(times.values()) == {30}
    assert len(more) > 2 * CHUNK_ROWS


def test_rows_of_an_earlier_version_s_run_are_made_of_its_records(
    done: Run, tmp_path: Path
) -> None:
    older = Run(tmp_path / "run", done.config)
    shutil.copytree(done.folder, older.folder)
    for path in (older.folder / "prepare").glob("*.arrow"):
        path.unlink()
    renderer = Renderer.of_run(older)
    rows = weighted_rows(older, "conversations", renderer)
    assert isinstance(rows.ids, Ragged)
    same(weighted_rows(done, "conversations", renderer).ids, rows.ids)
    memory = ranked(older, "rankings", renderer, 3).ids
    assert isinstance(memory, Ragged)
    same(ranked(done, "rankings", renderer, 3).ids, memory)


def test_several_processes_write_the_same_bytes(
    done: Run, config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "PARALLEL_BYTES", 0)
    run = Run(tmp_path / "run", config(processes=2))
    started: list[int] = []
    start = processes.subprocess.Popen

    def counted(*arguments: Any, **more: Any) -> Any:
        process = start(*arguments, **more)
        started.append(process.pid)
        return process

    monkeypatch.setattr(processes.subprocess, "Popen", counted)
    assert prepare.prepare(run) is not None
    assert len(started) == 2
    before, after = done.folder / "prepare", run.folder / "prepare"
    files = [*before.glob("*.jsonl"), *before.glob("*.arrow"), before / "report.json"]
    assert len(files) > 14
    for path in files:
        assert path.read_bytes() == (after / path.name).read_bytes(), path.name
    assert run.manifest("prepare")["fingerprint"] == done.manifest("prepare")["fingerprint"]


def test_a_report_lists_few_rows_and_a_file_all(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(left_out, "LISTED", 3)
    run = Run(tmp_path / "run", config())
    assert prepare.prepare(run) is not None
    report = read_json(run.folder / "prepare" / "report.json")
    rows = [json.loads(line) for line in (run.folder / "prepare/rejected_rows.jsonl").open()]
    assert [row["line"] for row in rows] == [11, 12, 13, 14, 15]
    assert report["rejected_rows"] == rows[:3]
    assert "the first of 5 rows only; rejected_rows.jsonl" in " ".join(report["warnings"])


def test_results_come_in_order_and_errors_as_they_are() -> None:
    divided = (functools.partial, operator.truediv, 60)
    with Processes(2, ["json"]) as pool:
        pool.make(*divided)
        found = list(pool.map((number,) for number in range(1, 50)))
        assert found == [60 / number for number in range(1, 50)]
    with pytest.raises(ZeroDivisionError), Processes(2) as pool:
        pool.make(*divided)
        list(pool.map((number,) for number in range(50)))
    with pytest.raises(StageError, match="status 7"), Processes(1) as pool:
        pool.make(functools.partial, os._exit, 7)
        list(pool.map([()]))
    with Processes(1):
        pass  # ends without having been told what to do


def test_a_spool_gives_back_what_came_in_chunks_of_few_rows_and_little_text(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    records = [
        Conversation((Turn("user", "q" * length), Turn("assistant", "a", 0.5)), "s", str(number))
        for number, length in enumerate([10] * 600 + [1 << 20] * 5)
    ]
    for number, record in enumerate(records):
        spool.add(Entry(record, "f.jsonl", number + 1))
    spool.close()
    assert list(spool.records()) == records
    chunks = [(start, count) for _, start, count in spool.numbered_chunks()]
    assert chunks == [(0, 256), (256, 256), (512, 90), (602, 2), (604, 1)]
    assert spool.size_bytes > 5 << 20 and not list(tmp_path.iterdir())


def test_a_run_elsewhere_takes_what_was_kept_of_the_same(
    done: Run,
    config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RAYWARD_CACHE", str(tmp_path / "cache"))
    first, second = Run(tmp_path / "a", config()), Run(tmp_path / "b", config())
    manifest = prepare.prepare(first)
    assert "taken from" not in capsys.readouterr().out
    again = prepare.prepare(second)
    assert "taken from" in capsys.readouterr().out
    assert manifest is not None and again is not None
    assert (
        manifest["metrics"] == again["metrics"] and again["fingerprint"] == manifest["fingerprint"]
    )
    names = {path.relative_to(first.folder) for path in first.folder.rglob("*") if path.is_file()}
    assert names == {
        path.relative_to(second.folder) for path in second.folder.rglob("*") if path.is_file()
    }
    rows = Path("prepare/conversations.arrow")
    assert (first.folder / rows).samefile(second.folder / rows)
    # Made again it does not write into the files of the other run.
    before = (second.folder / rows).read_bytes()
    stage = second.folder / "prepare" / "manifest.json"
    stage.unlink()
    monkeypatch.delenv("RAYWARD_CACHE")
    assert prepare.prepare(Run(second.folder, config(heldout_fraction=0.2))) is not None
    assert (first.folder / rows).read_bytes() == before
    # Other data is other rows.
    root = tmp_path / "other"
    lists = sources(root)
    (root / "prompts.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "?"}]})
    )
    monkeypatch.setenv("RAYWARD_CACHE", str(tmp_path / "cache"))
    assert prepare.prepare(Run(tmp_path / "c", config(root=str(root), **lists))) is not None
    assert "taken from" not in capsys.readouterr().out
