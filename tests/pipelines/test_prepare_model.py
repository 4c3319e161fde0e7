"""The tokenizer, the model and the chat template of a prepare stage: what they are, what is trained
in their words, and what is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from rayward.configs.schema import Config
from rayward.data.records import parts_of
from rayward.data.templates.tokenizer import load_tokenizer
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.folder import Run
from rayward.pipelines.stages import prepare
from tests.data.published import CHATML, ENDLESS, PREFILLED, STRICT, WITH_TOOLS
from tests.pipelines.brought import (
    alpaca,
    asked,
    chat,
    check_account,
    records,
    write,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- tokenizer and model
# -----------------------------------------------------------------------------------


def test_the_tokenizer_knows_the_chat_template_and_how_to_stop(done: Run) -> None:
    renderer = Renderer.of(done.config.model, done.folder / "prepare" / "tokenizer")
    tokenizer = load_tokenizer(done.folder / "prepare" / "tokenizer")
    assert (
        tokenizer.eos_token == renderer.template.end_token
        and [tokenizer.eos_token_id] == renderer.stop_token_ids
    )
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert len(tokenizer) == done.manifest("prepare")["metrics"]["vocabulary"] <= 320
    for record in (*records(done, "evaluation_prompts"), *records(done, "prompts")):
        messages = [{"role": turn.role, "content": turn.content} for turn in record.turns]
        served = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert tokenizer.encode(served, add_special_tokens=False) == renderer.prompt(
            record.turns
        ), "served as trained"


def test_a_model_from_scratch_fits_the_tokenizer(done: Run) -> None:
    from rayward.actors.models.load import load_policy

    assert done.base == str(done.folder / "prepare" / "base")
    model = load_policy(done.base, "float32")
    prompt = Renderer.of(done.config.model, done.base).prompt(records(done, "prompts")[0].turns)
    assert max(prompt) < model.lm.get_input_embeddings().num_embeddings


def test_a_model_that_is_given_keeps_its_tokens_and_learns_to_stop(
    tmp_path: Path, own: Callable[..., Config], tiny_models: Any
) -> None:
    """A base model's tokenizer ends texts in its own way and has no chat template."""
    given = load_tokenizer(tiny_models.policy)
    given.eos_token, given.chat_template = "<s>", None
    given.save_pretrained(tmp_path / "base")
    AutoConfig.from_pretrained(tiny_models.policy).save_pretrained(tmp_path / "base")
    run = Run(
        tmp_path / "run",
        own(model={"path": str(tmp_path / "base"), "scratch": None, "context_tokens": 128}),
    )
    assert prepare.prepare(run) is not None
    assert (
        run.base == str(tmp_path / "base") and not (tmp_path / "run" / "prepare" / "base").exists()
    )
    tokenizer = load_tokenizer(tmp_path / "run" / "prepare" / "tokenizer")
    assert tokenizer.get_vocab() == given.get_vocab()
    assert (
        tokenizer.eos_token == "<|end_of_turn|>"
        and "GPT4 Correct Assistant:" in tokenizer.chat_template
    )


@pytest.mark.parametrize(
    ("template", "rows", "told"),
    [
        (
            "vicuna_v1.1",
            300,
            "model.template vicuna_v1.1: .* needs the token '</s>', which is not among the .* of "
            "this",
        ),
        (
            "openchat_3.5",
            2,
            "is token 2, but the model has 2 embeddings; rayward extend .* makes a model that "
            "has it",
        ),
    ],
)
def test_a_model_without_the_end_of_an_answer_is_refused(
    template: str,
    rows: int,
    told: str,
    tmp_path: Path,
    own: Callable[..., Config],
    tiny_models: Any,
) -> None:
    load_tokenizer(tiny_models.policy).save_pretrained(tmp_path / "base")
    AutoConfig.from_pretrained(tiny_models.policy, vocab_size=rows).save_pretrained(
        tmp_path / "base"
    )
    model = {
        "path": str(tmp_path / "base"),
        "scratch": None,
        "context_tokens": 128,
        "template": template,
    }
    with pytest.raises(StageError, match=told):
        prepare.prepare(Run(tmp_path / "run", own(model=model)))


# ---- templates, classes and segments
# -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template", ["openchat_v2", "openchat_v3.1", "ultralm", "alpaca", "llama2", "chatml"]
)
def test_every_template_is_served_as_trained(
    template: str, tmp_path: Path, own: Callable[..., Config]
) -> None:
    run = Run(
        tmp_path,
        own(model={"template": template, "context_tokens": 160, "scratch": {"vocab_size": 320}}),
    )
    assert prepare.prepare(run) is not None
    renderer = Renderer.of(run.config.model, tmp_path / "prepare" / "tokenizer")
    for record in records(run, "prompts"):
        messages = [{"role": turn.role, "content": turn.content} for turn in record.turns]
        served = renderer.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        assert renderer.tokenizer.encode(served, add_special_tokens=False) == renderer.prompt(
            record.turns
        )


def test_the_model_s_own_template_stays_as_it_is(
    tmp_path: Path, own: Callable[..., Config], tiny_models: Any
) -> None:
    given = load_tokenizer(tiny_models.policy)
    given.eos_token = "<s>"
    given.save_pretrained(tmp_path / "base")
    AutoConfig.from_pretrained(tiny_models.policy).save_pretrained(tmp_path / "base")
    model = {
        "path": str(tmp_path / "base"),
        "scratch": None,
        "context_tokens": 128,
        "template": "tokenizer",
    }
    run = Run(tmp_path / "run", own(model=model))
    assert prepare.prepare(run) is not None
    renderer = Renderer.of(run.config.model, tmp_path / "run" / "prepare" / "tokenizer")
    assert renderer.tokenizer.chat_template == given.chat_template
    assert renderer.tokenizer.eos_token == "<|end_of_turn|>"
    assert renderer.stop_token_ids == [renderer.tokenizer.eos_token_id]


def with_own_template(folder: Path, form: str, tiny_models: Any, **settings: str) -> dict[str, Any]:
    """The tiny model with another chat template, as the section `model`."""
    tokenizer = load_tokenizer(tiny_models.policy)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = form
    tokenizer.save_pretrained(folder)
    AutoConfig.from_pretrained(tiny_models.policy, vocab_size=len(tokenizer)).save_pretrained(
        folder
    )
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return {"path": str(folder), "scratch": None, "context_tokens": 160, "template": "tokenizer"}


def test_rows_that_the_template_cannot_render_are_left_out_and_what_it_does_is_told(
    tmp_path: Path, own: Callable[..., Config], tiny_models: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    briefed = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                *asked(f"Briefly {i}?", "So.")["messages"],
            ]
        }
        for i in range(5)
    ]
    rows = [asked(f"Plain {i}?", "Yes.") for i in range(150)] + briefed
    write(tmp_path, {"conversations": {"mixed.jsonl": rows}})
    source = {"path": str(tmp_path / "conversations" / "mixed.jsonl"), "format": "openai"}
    model = with_own_template(tmp_path / "model", STRICT, tiny_models)
    run = Run(tmp_path / "run", own(model=model, data={"conversations": [source]}))
    assert prepare.prepare(run) is not None
    report = check_account(run)
    left = [row for row in report["left_out"] if row["reason"] == "the chat template raises"]
    assert {row["where"] for row in left} == {f"openai 'Briefly {i}?'" for i in range(5)}
    assert left[0]["found"] == "turns[0] (system): TemplateError: System role not supported"
    first = min(left, key=lambda row: row["line"])
    assert (first["file"], first["line"], first["field"]) == (
        source["path"],
        151,
        "turns[0] (system)",
    )
    assert report["template"]["name"] == "tokenizer" and report["template"]["ends"] == "<|im_end|>"
    printed = capsys.readouterr().out
    for line in report["template"]["told"]:
        assert f"chat template tokenizer: {line}" in printed
    assert any(
        line.startswith("has no system role: such rows are left out")
        for line in report["template"]["told"]
    )


TOOL_MESSAGES = [
    {"role": "user", "content": "How warm is it?"},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "I must look.",
        "tool_calls": [{"type": "function", "function": {"name": "warm", "arguments": "{}"}}],
    },
    {"role": "tool", "content": "It is 12."},
    {"role": "assistant", "content": "12 degrees."},
]


@pytest.mark.parametrize("place", [True, False])
def test_rows_with_tools_are_rendered_or_named(
    place: bool, tmp_path: Path, own: Callable[..., Config], tiny_models: Any
) -> None:
    """With a place for them they are rows like others; a template of the table has none."""
    rows: list[dict[str, Any]] = [asked(f"Plain {i}?", "Yes.") for i in range(150)]
    tool = {"type": "function", "function": {"name": "warm", "parameters": {}}}
    rows += [asked("Offered?", "Yes.") | {"tools": [tool]}]
    rows += [{"messages": TOOL_MESSAGES}, {"messages": TOOL_MESSAGES, "tools": [tool]}]
    rows += [{"messages": [*TOOL_MESSAGES[:1], {"role": "assistant", "content": "12.",
                                                "reasoning": "It is warm."}]}]  # fmt: skip
    write(tmp_path, {"conversations": {"mixed.jsonl": rows}})
    path = str(tmp_path / "conversations" / "mixed.jsonl")
    settings: dict[str, Any] = {"data": {"conversations": [{"path": path, "format": "openai"}]}}
    if place:
        form = WITH_TOOLS["plain"]
        settings["model"] = with_own_template(tmp_path / "model", form, tiny_models)
    run = Run(tmp_path / "run", own(**settings))
    assert prepare.prepare(run) is not None
    report = check_account(run)
    left = [row for row in report["left_out"] if row.get("file") == path]
    files = [*records(run, "conversations"), *records(run, "sft_heldout")]
    kept = [record for record in files if any(parts_of(record.turns, record.tools))]
    if place:
        assert not left and len(kept) == 4
        return
    assert not kept
    expected = [
        (row["line"], row["field"], row["expected"].partition(" (ignore ")[0]) for row in left
    ]
    assert sorted(expected) == [
        (151, "tools", "a template with a place for tools"),
        (152, "turns[1].reasoning", "a template with a place for reasoning"),
        (153, "tools", "a template with a place for tools"),
        (154, "turns[1].reasoning", "a template with a place for reasoning"),
    ]


def test_a_template_for_which_no_row_works_stops_with_the_counts(
    tmp_path: Path, own: Callable[..., Config], tiny_models: Any
) -> None:
    briefed = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                *asked(f"Briefly {i}?", "So.")["messages"],
            ]
        }
        for i in range(40)
    ]
    write(tmp_path, {"conversations": {"briefed.jsonl": briefed}})
    source = {"path": str(tmp_path / "conversations" / "briefed.jsonl"), "format": "openai"}
    model = with_own_template(tmp_path / "model", STRICT, tiny_models)
    with pytest.raises(
        StageError,
        match=r"conversations: 0 rows are left.*left out: \d+ x the chat template raises",
    ):
        prepare.prepare(Run(tmp_path / "run", own(model=model, data={"conversations": [source]})))


def test_a_folder_whose_class_reads_it_otherwise_is_read_as_its_tokenizer_says(
    tmp_path: Path, own: Callable[..., Config], tiny_models: Any
) -> None:
    """As DeepSeek R1's distilled models are published: Llama's class beside a byte-level
    tokenizer.json.
    """
    model = with_own_template(
        tmp_path / "model", CHATML, tiny_models, tokenizer_class="LlamaTokenizer"
    )
    run = Run(tmp_path / "run", own(model=model))
    assert prepare.prepare(run) is not None
    told = json.loads((tmp_path / "run" / "prepare" / "report.json").read_text())["template"][
        "told"
    ]
    assert told[0].startswith("the tokenizer: by its class, LlamaTokenizer, 'Hello there' is ")
    assert told[0].endswith("; it is read as tokenizer.json says")
    saved = load_tokenizer(tmp_path / "run" / "prepare" / "tokenizer")
    assert (
        saved("Hello there 12").input_ids
        == load_tokenizer(tiny_models.policy)("Hello there 12").input_ids
    )


def test_an_end_token_that_is_a_word_like_others_becomes_special_in_the_run(
    tmp_path: Path, own: Callable[..., Config], tiny_models: Any
) -> None:
    """Before, a user who wrote it stopped prepare."""
    model = with_own_template(tmp_path / "model", CHATML, tiny_models)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = tmp_path / "model" / name
        saved = json.loads(path.read_text())
        for token in saved.get("added_tokens", []):
            token["special"] = not token["content"].startswith("<|im_")
        for token in saved.get("added_tokens_decoder", {}).values():
            token["special"] = not token["content"].startswith("<|im_")
        saved.pop("extra_special_tokens", None)
        path.write_text(json.dumps(saved))
    assert (
        load_tokenizer(tmp_path / "model")("<|im_end|>", split_special_tokens=True).input_ids[1:]
        == []
    )
    rows = [asked(f"What is <|im_end|> {i}?", "An end.") for i in range(150)]
    write(tmp_path, {"conversations": {"mixed.jsonl": rows}})
    data = {
        "conversations": [
            {"path": str(tmp_path / "conversations" / "mixed.jsonl"), "format": "openai"}
        ]
    }
    run = Run(tmp_path / "run", own(model=model | {"template": "chatml"}, data=data))
    assert prepare.prepare(run) is not None
    told = json.loads((tmp_path / "run" / "prepare" / "report.json").read_text())["template"][
        "told"
    ]
    assert told[0].startswith("'<|im_end|>', '<|im_start|>' become special in the run")
    with pytest.raises(
        StageError, match="were it special: rayward extend MODEL --token '<.im_end.>' --out DIR"
    ):
        prepare.prepare(Run(tmp_path / "other", own(model=model, data=data)))


def test_the_pad_token_ends_no_answer(
    tmp_path: Path, own: Callable[..., Config], tiny_models: Any
) -> None:
    """Nor does the end token change what the template writes of a system turn."""
    form = CHATML.replace(
        "{{ '<|im_start|>' +", "{{ (eos_token if m.role == 'system' else '') + '<|im_start|>' +", 1
    )
    assert form != CHATML
    model = with_own_template(tmp_path / "model", form, tiny_models, pad_token="<|im_end|>")
    run = Run(tmp_path / "run", own(model=model))
    assert prepare.prepare(run) is not None
    saved = load_tokenizer(tmp_path / "run" / "prepare" / "tokenizer")
    assert saved.convert_tokens_to_ids("<|im_end|>") not in (None, saved.pad_token_id)
    assert saved.eos_token == load_tokenizer(tmp_path / "model").eos_token != "<|im_end|>"


@pytest.mark.parametrize(
    ("form", "settings", "told"),
    [
        (
            PREFILLED,
            {},
            "asks for an answer elsewhere than it writes it: turns.1. .assistant.: found "
            ".*'<think>",
        ),
        (
            ENDLESS.replace("'</s>'", "'.'"),
            {},
            "no special token ends an answer: a model trained so never learns to stop",
        ),
    ],
)
def test_words_that_cannot_be_trained_are_refused(
    form: str,
    settings: dict[str, str],
    told: str,
    tmp_path: Path,
    own: Callable[..., Config],
    tiny_models: Any,
) -> None:
    model = with_own_template(tmp_path / "model", form, tiny_models, **settings)
    with pytest.raises(StageError, match=f"model.path .*model.*: .*{told}"):
        prepare.prepare(Run(tmp_path / "run", own(model=model)))


def test_segments_and_classes_are_in_the_report(tmp_path: Path, own: Callable[..., Config]) -> None:
    labelled = [
        chat(f"Label {i}?", f"Said {i}. " * 9, "More?", f"More {i}. " * 9, "End?", "Yes.")
        for i in range(150)
    ]
    rows = [
        row | {"model": "Model: GPT-4" if i % 3 else "Model: GPT-3.5"}
        for i, row in enumerate(labelled)
    ]
    write(tmp_path, {"conversations": {"labelled.jsonl": rows}})
    source = {"path": str(tmp_path / "conversations" / "labelled.jsonl")}
    quality = {"conditioning": True, "weighting": True}
    run = Run(
        tmp_path / "run",
        own(
            data={"conversations": [source]},
            sft={"long_conversations": "segment", "quality": quality},
        ),
    )
    assert prepare.prepare(run) is not None
    report = check_account(run)
    assert report["classes"] == {
        "expert": {"Model: GPT-4": 100},
        "sub_optimal": {"Model: GPT-3.5": 50},
    }
    rules = [report["rules"].get(name, {}) for name in ("conversations", "sft_heldout")]
    divided = sum(rule.get("kept, divided into segments", 0) for rule in rules)
    further = sum(rule.get("kept, further segments", 0) for rule in rules)
    kept = report["kept"]["conversations"] + report["kept"]["sft_heldout"]
    assert 100 < divided <= further and kept == 150 + further
    said = " ".join(
        turn.content for record in records(run, "conversations") for turn in record.turns
    )
    assert all(
        f"Said {i}." in said and f"More {i}." in said for i in range(150) if f"Label {i}?" in said
    )


def test_a_data_set_by_its_name_is_a_source(tmp_path: Path, own: Callable[..., Config]) -> None:
    write(
        tmp_path,
        {"conversations": {"rows.jsonl": [alpaca(f"Instruction {i}.") for i in range(40)]}},
    )
    source = {"path": f"hf:{tmp_path / 'conversations' / 'rows.jsonl'}"}
    run = Run(tmp_path / "run", own(data={"conversations": [source]}))
    assert prepare.prepare(run) is not None
    assert check_account(run)["sources"]["conversations"][source["path"]]["read"] == 40
