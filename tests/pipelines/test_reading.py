"""The records of a config's sources: what is ignored, passed over, and of use for which list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayward.configs.decisive import decisive
from rayward.configs.schema import Config
from rayward.configs.sections.data import Data
from rayward.data.records import Conversation, Prompt, Turn
from rayward.pipelines.cli import main
from rayward.pipelines.rows.left_out import Listing
from rayward.pipelines.rows.reading import read_all

HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def records(folder: Path, name: str, **source: Any) -> tuple[list, dict[str, Any]]:
    data = Data.model_validate({"root": str(folder), name: [{"path": "a.jsonl", **source}]})
    report: dict[str, Any] = {}
    found = [entry.record for entry in read_all(data, name, report, Listing())]
    return found, report["sources"][name]["a.jsonl"]


def test_what_a_source_ignores_and_passes_over_is_in_the_report(tmp_path: Path) -> None:
    tools = {"messages": HI, "tools": "f", "annotator": "Ada"}
    written(tmp_path / "a.jsonl", tools, {"messages": HI, "annotator": "Ada"})
    found, account = records(tmp_path, "conversations")
    assert len(found) == 1 and account["rejected"] == {"text that is no JSON": 1}
    assert account["passed_over"] == {"annotator": 1}
    found, account = records(tmp_path, "conversations", ignore=["tools"])
    assert len(found) == 2 and account["repaired"] == {"ignored tools": 1}
    assert account["passed_over"] == {"annotator": 2} and account["rejected"] == {}


def test_answers_with_a_verdict(tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl", *({"messages": HI, "label": good} for good in (True, False)))
    found, account = records(tmp_path, "conversations")
    assert not found and account["a labelled is no use for data.conversations"] == 2
    found, account = records(tmp_path, "conversations", imitate_good=True)
    assert found == [Conversation((Turn("user", "Hi"), Turn("assistant", "Hello")), "kto")]
    assert account["rejected"] == {"bad answer": 1}
    # Neither answer is a reference: nothing says that the good one is right.
    assert records(tmp_path, "prompts")[0] == [Prompt((Turn("user", "Hi"),), "kto")] * 2


def test_a_source_that_asks_for_nothing_leaves_finished_runs_as_they_are() -> None:
    def settings(**source: Any) -> dict[str, Any]:
        conversations = [{"path": "a.jsonl", **source}]
        config = {"model": {"path": "base"}, "data": {"conversations": conversations}, "sft": {}}
        return decisive(Config.model_validate(config), "prepare")["data"]["conversations"][0]

    assert settings() == {"path": "a.jsonl", "format": "auto", "limit": None}
    assert settings(ignore=["tools"]) == settings() | {"ignore": ["tools"]}
    assert settings(imitate_good=True) == settings() | {"imitate_good": True}


@pytest.mark.parametrize("command", ["check", "convert", "stats", "map"])
def test_the_commands_ignore_what_they_are_told_to(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"messages": HI, "tools": "f", "annotator": "Ada"}] * 4
    rows[0] = {"messages": [HI[0], HI[1] | {"thinking": "A greeting."}]}
    arguments = ["data", command, str(written(tmp_path / "a.jsonl", *rows))]
    if command in ("convert", "map"):
        arguments += ["--out", str(tmp_path / ("m.html" if command == "map" else "out.jsonl"))]
    main(arguments)
    told = capsys.readouterr()
    assert "text that is no JSON" in told.out + told.err
    assert main([*arguments, "--ignore", "tools,system", "--ignore", "thinking"]) == 0
    lines = [line.strip().rsplit(None, 1) for line in capsys.readouterr().out.splitlines()]
    lines = [[name.strip(), *count] for name, *count in filter(None, lines)]
    assert ["repaired: ignored tools", "3"] in lines and ["passed over: annotator", "3"] in lines
    assert ["repaired: ignored thinking", "1"] in lines


def test_render_ignores_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "a.jsonl", {"messages": HI, "tools": "f"})
    arguments = ["data", "render", str(path), "--template", "chatml", "--plain"]
    assert main(arguments) == 1
    assert "1 rows left out: text that is no JSON" in capsys.readouterr().out
    assert main([*arguments, "--ignore", "tools"]) == 0
    assert "[[Hello" in capsys.readouterr().out
