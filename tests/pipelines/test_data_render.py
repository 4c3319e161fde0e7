"""`rayward data render`: rows as text, marks and ids, and what SFT prints of its first batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayward.data.records import Turn
from rayward.data.templates.jinja import jinja
from rayward.data.templates.pieces import pieces
from rayward.data.templates.template import encode, find
from rayward.data.templates.tokenizer import train_tokenizer
from rayward.pipelines.cli import main
from rayward.pipelines.rows.show import coloured, plain, runs, runs_of_pieces, show_batch
from tests.data.published import WITH_TOOLS

EOT = "<|end_of_turn|>"
CHAT = (
    Turn("user", "Hi [b]x[/b]"),
    Turn("assistant", "日本 😀"),
    Turn("user", "And?"),
    Turn("assistant", "Fine."),
)
SHOWN = (
    f"GPT4 Correct User: Hi [b]x[/b]{EOT}GPT4 Correct Assistant:[[ 日本 😀{EOT}]]"
    f"GPT4 Correct User: And?{EOT}GPT4 Correct Assistant:[[ Fine.{EOT}]]"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizer = train_tokenizer([turn.content for turn in CHAT], 300, (EOT,), 128)
    tokenizer.chat_template = jinja(find("openchat_3.5"))
    return tokenizer


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": turn.role, "content": turn.content} for turn in CHAT]},
        {"messages": [{"role": "user", "content": "Only asked?"}]},
        {"prompt": "Which?", "chosen": "this", "rejected": "that"},
        {"messages": [{"role": "alien", "content": "x"}]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_calls_and_results_are_shown_as_they_are_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = train_tokenizer(["warm"], 300, ("<|im_end|>", "<|im_start|>"), 512)
    tokenizer.chat_template = WITH_TOOLS["plain"]
    tokenizer.save_pretrained(tmp_path / "model")
    call = {"type": "function", "function": {"name": "warm", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Warm?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "12"},
        {"role": "assistant", "content": "Yes."},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": messages, "tools": [{"name": "warm"}]}))
    options = [str(path), "--plain", "--template"]
    assert main(["data", "render", *options, "tokenizer", "--tokenizer", f"{tmp_path}/model"]) == 0
    shown = capsys.readouterr().out
    assert '[[<call>{"name": "warm", "arguments": {}}</call><|im_end|>]]' in shown
    assert "<result>12</result><|im_end|>" in shown and "[[Yes.<|im_end|>]]" in shown
    assert main(["data", "render", *options, "chatml"]) == 1
    assert (
        f"left out: {path}:1: the chat template has no place for tools" in capsys.readouterr().out
    )


def test_marks_from_pieces_and_from_tokens_agree(tokenizer: Any) -> None:
    template = find("openchat_3.5")
    assert plain(runs_of_pieces(pieces(template, CHAT))) == SHOWN
    row = encode(template, CHAT, tokenizer)
    assert plain(runs(row, tokenizer)) == "<s>" + SHOWN
    line = coloured(runs(row, tokenizer))
    assert line.plain == "<s>" + SHOWN.replace("[[", "").replace("]]", "")
    green = [line.plain[span.start : span.end] for span in line.spans if span.style == "green"]
    assert green == [f" 日本 😀{EOT}", f" Fine.{EOT}"]


def test_a_terminal_is_told_nothing_by_data(tokenizer: Any) -> None:
    turns = (Turn("user", "Hi\x1b[2J\r there\u202e"), Turn("assistant", "two\nlines\t\x07"))
    row = encode(find("openchat_3.5"), turns, tokenizer)
    for said in (
        plain(runs(row, tokenizer)),
        plain(runs_of_pieces(pieces(find("openchat_3.5"), turns))),
    ):
        assert r"Hi\x1b[2J\r there\u202e" in said and "two\nlines\t" + r"\x07" in said
        assert not set(said) & set("\x1b\r\x07\u202e")


def test_the_first_batch_is_shown_before_it_is_trained(
    tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    template = find("openchat_3.5")
    long = encode(template, (Turn("user", "Why?"), Turn("assistant", "because " * 400)), tokenizer)
    show_batch([encode(template, CHAT, tokenizer), long, long, long], tokenizer)
    shown = capsys.readouterr().out
    assert shown.startswith("first optimizer step, 3 of its 4 rows, the trained part in green:")
    assert "日本 😀" in shown and shown.count("Why?") == 2 and shown.count(" ...") == 2
    show_batch([long], tokenizer)
    assert "1 of its 1 rows" in capsys.readouterr().out


def test_rows_of_every_kind(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "render", "--template", "openchat_3.5", "--plain", str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "--- conversation",
        SHOWN,
        "--- prompt",
        f"GPT4 Correct User: Only asked?{EOT}GPT4 Correct Assistant:",
        "--- preference, answer 1 of 2",
        f"GPT4 Correct User: Which?{EOT}GPT4 Correct Assistant:[[ this{EOT}]]",
        "--- preference, answer 2 of 2",
        f"GPT4 Correct User: Which?{EOT}GPT4 Correct Assistant:[[ that{EOT}]]",
        "--- 1 rows left out: unknown role",
    ]


@pytest.mark.parametrize("template", ["openchat_3.5", "tokenizer"])
def test_ids_and_weights(
    template: str, file: Path, tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.save_pretrained(tmp_path / "model")
    options = ["--tokenizer", str(tmp_path / "model"), "--ids", "--plain", "--limit", "1"]
    assert main(["data", "render", "--template", template, str(file), *options]) == 0
    title, shown, ids, weights = capsys.readouterr().out.splitlines()
    row = encode(find("openchat_3.5"), CHAT, tokenizer)
    assert (title, shown) == ("--- conversation", "<s>" + SHOWN)
    assert (
        json.loads(ids) == row.ids and json.loads(weights.removeprefix("weights ")) == row.weights
    )


def test_rows_that_a_template_cannot_render_are_left_out_with_the_turn(
    file: Path, tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.chat_template = jinja(find("openchat_3.5")).replace(
        "{% endfor %}",
        "{{ raise_exception('no more than one') if messages | length > 2 }}{% endfor %}",
    )
    tokenizer.save_pretrained(tmp_path / "model")
    options = ["--tokenizer", str(tmp_path / "model"), "--plain"]
    assert main(["data", "render", "--template", "tokenizer", str(file), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == (
        f"left out: {file}:1: the chat template raises: turns[2] (user): found TemplateError: no "
        "more than one, expected a turn that the chat template renders"
    )
    assert lines[3] == f"<s>GPT4 Correct User: Only asked?{EOT}GPT4 Correct Assistant:"
    out = tmp_path / "tokens.json"
    convert = [
        "data",
        "convert",
        str(file),
        "--to",
        "openchat_v1",
        "--out",
        str(out),
        "--template",
        "tokenizer",
    ]
    assert main([*convert, *options[:2]]) == 1, "no row is left"
    reasons = [
        json.loads(line)["reason"] for line in (tmp_path / "tokens.json.rejected.jsonl").open()
    ]
    assert reasons[0] == "the chat template raises"


@pytest.mark.parametrize("options, told", [
    (["--template", "vicuna"], "unknown chat template 'vicuna'; known: vicuna_v1.1"),
    (["--template", "tokenizer"], "--template tokenizer needs --tokenizer DIR"),
    (["--template", "chatml", "--ids"], "--ids needs --tokenizer DIR"),
    (["--template", "chatml", "--limit", "0"], "--limit is 0: at least 1")])  # fmt: skip
def test_mistakes(
    options: list[str], told: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "render", *options, str(file)]) == 2
    assert told in capsys.readouterr().err
