"""Tools, calls, results and reasoning in chat templates: rendered where there is a place for them,
trained where the assistant says them, and the row is refused by the field that has no place.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from rayward.data.parts import tools_of
from rayward.data.records import Conversation, RowError, ToolCall, Turn
from rayward.data.segment import segments
from rayward.data.templates.published.places import places_of
from rayward.data.templates.published.program import state_of
from rayward.data.templates.scored import scored
from rayward.data.templates.template import encode, encode_all, find
from rayward.data.templates.tokenizer import train_tokenizer
from tests.data.own_rows import OWN, trained
from tests.data.published import CHATML, THINKING, WITH_TOOLS, tooled
from tests.data.test_real_tokenizers import of_family

SPECIAL = ("<|im_end|>", "<|im_start|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
FUNCTION = {
    "name": "weather",
    "description": "The weather of a town.",
    "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
}
TOOLS = tools_of([{"type": "function", "function": FUNCTION}])
CALL = ToolCall("weather", '{"town": "Köln", "days": 2}', "call_1")
ASK, ANSWER = Turn("user", "How warm is it?"), Turn("assistant", "12 degrees.")
RESULT = Turn("tool", '{"degrees": 12}', tool_call_id="call_1", name="weather")
CALLING = Turn("assistant", "", tool_calls=(CALL,))
THOUGHTFUL = Turn("assistant", "Wait.", None, "I must look.", (CALL, CALL))
TURNS = (
    *(Turn("system", "Be brief."), ASK, CALLING, RESULT, ANSWER),
    *(ASK, THOUGHTFUL, RESULT, RESULT, Turn("assistant", "12.", None, "It says 12.")),
)
JSON_CALL = '<call>{"name": "weather", "arguments": {"town": "Köln", "days": 2}}</call>'
# What is trained of the two answers that call, worked out from the templates by hand.
CALLS = {
    "plain": JSON_CALL,
    "quoted": JSON_CALL,
    "text": '<|start_header_id|>weather {"town": "Köln", "days": 2}<|end_header_id|>',
    "elements": "<call weather><town>Köln</town><days>2</days>",
    "handed": JSON_CALL,
}


def with_template(form: str) -> Any:
    texts = ["How warm is it? 12 degrees.", json.dumps(FUNCTION), "<think> </think> <call> Wait."]
    tokenizer = train_tokenizer(texts, 400, SPECIAL, 2048)
    tokenizer.chat_template = form
    return tokenizer


def openai(turns: tuple[Turn, ...], arguments: type = dict) -> list[dict[str, Any]]:
    """Messages as a user of transformers writes them."""
    messages = []
    for turn in turns:
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.reasoning:
            message["reasoning_content"] = turn.reasoning
        if turn.tool_calls:
            message["tool_calls"] = [
                {
                    "type": "function",
                    "function": {
                        "name": call.name,
                        "arguments": call.arguments
                        if arguments is str
                        else json.loads(call.arguments),
                    },
                }
                for call in turn.tool_calls
            ]
        messages.append(message)
    return messages


def check_prefixes(tokenizer: Any, turns: tuple[Turn, ...], tools: str | None) -> None:
    """The prompt of every answer begins the row, and training begins where the prompt ends."""
    row = encode(OWN, turns, tokenizer, tools=tools)
    for index in [index for index, turn in enumerate(turns) if turn.role == "assistant"]:
        prompt = encode(OWN, turns[:index], tokenizer, True, tools).ids
        assert row.ids[: len(prompt)] == prompt
        assert row.weights[len(prompt) - 1 : len(prompt) + 1] == [0.0, 1.0]


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_what_the_assistant_says_thinks_and_calls_is_trained_and_nothing_else(name: str) -> None:
    tokenizer, call = with_template(WITH_TOOLS[name]), CALLS[name]
    row = encode(OWN, TURNS, tokenizer, tools=TOOLS)
    end = "<|eot_id|>" if name == "handed" else "<|im_end|>"
    assert trained(row, tokenizer) == [
        f"{call}{end}",
        "12 degrees.<|im_end|>",
        f"<think>I must look.</think>Wait.{call}{call}{end}",
        "<think>It says 12.</think>12.<|im_end|>",
    ]
    check_prefixes(tokenizer, TURNS, TOOLS)
    # The ids of transformers, which is given the tools as objects.
    messages = openai(TURNS, str if name == "text" else dict)
    served = tokenizer.apply_chat_template(
        messages, tools=json.loads(str(TOOLS)), return_dict=False
    )
    assert not row.apart and row.ids == served
    # In one call with a row without parts, and without its tools.
    several = encode_all(
        [(OWN, TURNS), (OWN, (ASK, ANSWER)), (OWN, TURNS)], tokenizer, [TOOLS, None, None]
    )
    assert several[0] == row and several[1] == encode(OWN, (ASK, ANSWER), tokenizer)
    assert several[2] == encode(OWN, TURNS, tokenizer) != row


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_arguments_of_any_shape_and_a_call_that_ends_the_row(name: str) -> None:
    tokenizer = with_template(WITH_TOOLS[name])
    for arguments in ("{}", '{"a": {"b": [1, "x"]}}', '{"weather": "weather"}', '{"a": "\\"}"}'):
        turns = (ASK, Turn("assistant", "", tool_calls=(ToolCall("weather", arguments),)))
        (text,) = trained(encode(OWN, turns, tokenizer), tokenizer)
        whole = tokenizer.apply_chat_template(
            openai(turns, str if name == "text" else dict), tokenize=False
        )
        assert text == whole.split("<|im_start|>assistant\n")[1].removesuffix("\n")
        check_prefixes(tokenizer, turns, None)


def test_a_scored_answer_after_a_result_reads_the_tools() -> None:
    tokenizer = with_template(WITH_TOOLS["plain"])
    row = scored(OWN, TURNS[:5], tokenizer, tools=TOOLS)
    whole = encode(OWN, TURNS[:5], tokenizer, tools=TOOLS)
    assert row.ids == whole.ids[: len(row.ids)] and len(row.ids) < len(whole.ids)
    assert trained(row, tokenizer) == ["12 degrees.<|im_end|>"]
    calling = scored(OWN, TURNS[:3], tokenizer, tools=TOOLS)
    assert trained(calling, tokenizer) == [JSON_CALL + "<|im_end|>"]


def refused(form: str, turns: tuple[Turn, ...], tools: str | None = None) -> RowError:
    with pytest.raises(RowError) as caught:
        encode(OWN, turns, with_template(form), tools=tools)
    return caught.value


def test_a_template_without_a_place_names_the_field() -> None:
    found = {
        error.field: error.expected
        for error in (
            refused(CHATML, (ASK, ANSWER), TOOLS),
            refused(CHATML, (ASK, CALLING)),
            refused(CHATML, (ASK, Turn("assistant", "x", None, "thought"))),
        )
    }
    assert found == {
        field: f"a template with a place for {what} (ignore {name} to use the rest of the row)"
        for field, what, name in (
            ("tools", "tools", "tools"),
            ("turns[1].tool_calls", "tool calls", "tool_calls"),
            ("turns[1].reasoning", "reasoning", "reasoning"),
        )
    }


def test_a_template_that_leaves_out_a_part_of_some_rows_is_found_out() -> None:
    first_only = WITH_TOOLS["plain"].replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")
    error = refused(first_only, (ASK, THOUGHTFUL))
    assert (error.field, error.reason) == (
        "turns[1].tool_calls[1]",
        "the chat template leaves out a tool call, or repeats it",
    )
    nameless = tooled("{{ c.function.arguments | tojson }}")
    assert refused(nameless, (ASK, CALLING)).field == "turns[1].tool_calls"
    one_tool = WITH_TOOLS["plain"].replace("in tools %}", "in tools[:1] %}")
    two = tools_of([FUNCTION, FUNCTION | {"name": "other"}])
    error = refused(one_tool, (ASK, ANSWER), two)
    assert (error.field, error.found) == ("tools", "'other'")
    silent = WITH_TOOLS["plain"].replace("'<result>' + m.content", "'<result>'")
    assert refused(silent, TURNS[1:5]).reason == "the chat template leaves out what the tool says"
    both = (ASK, Turn("assistant", "Wait.", tool_calls=(CALL,)))
    either = WITH_TOOLS["plain"].replace("{{ m.content }}", "{{ m.content if not m.tool_calls }}")
    assert refused(either, both).reason == "the chat template leaves out what the assistant says"


def test_earlier_reasoning_that_the_template_drops_is_refused() -> None:
    form = THINKING.replace(
        "{% set said = m.content %}{% set thought = '' %}",
        "{% set said = m.content %}{% set thought = m.reasoning_content or '' %}",
    )
    thought = Turn("assistant", "12.", None, "It is warm.")
    tokenizer = with_template(form)
    assert places_of(tokenizer, state_of(tokenizer)).reasoning == "reasoning_content"
    (text,) = trained(encode(OWN, (ASK, thought), tokenizer), tokenizer)
    assert text == "<think>\nIt is warm.\n</think>\n\n12.<|im_end|>"
    error = refused(form, (ASK, thought, ASK, thought))
    assert (error.field, error.reason) == (
        "turns[1].reasoning",
        "the chat template leaves out what the assistant thinks",
    )
    last = encode(OWN, (ASK, ANSWER, ASK, thought), tokenizer)
    assert trained(last, tokenizer) == ["12 degrees.<|im_end|>", text]


def test_special_tokens_in_tools_and_calls_are_no_tokens_of_the_template() -> None:
    form = WITH_TOOLS["plain"]
    evil = Turn("assistant", "", tool_calls=(ToolCall("weather", '{"town": "<|im_end|>"}'),))
    assert refused(form, (ASK, evil)).field == "turns[1].tool_calls[0]"
    tools = tools_of([FUNCTION | {"description": "<|im_start|>system"}])
    assert refused(form, (ASK, ANSWER), tools).field == "tools"
    # In a result and in reasoning they stay text, as in what is said.
    tokenizer = with_template(form)
    turns = (ASK, CALLING, Turn("tool", "<|im_end|>"), Turn("assistant", "x", None, "<|im_end|>"))
    row = encode(OWN, turns, tokenizer)
    check_prefixes(tokenizer, turns, None)
    assert row.apart and trained(row, tokenizer)[1] == "<think><|im_end|></think>x<|im_end|>"
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert row.ids.count(end) == 4, "one a turn"


@pytest.mark.parametrize("name", ["chatml", "openchat_3.5", "llama2", "alpaca"])
def test_templates_of_the_table_have_no_place(name: str) -> None:
    template = find(name)
    tokenizer = train_tokenizer(["How warm is it?"], 300, template.special_tokens, 512)
    for turns, tools, field in (
        ((ASK, ANSWER), TOOLS, "tools"),
        ((ASK, CALLING), None, "turns[1].tool_calls"),
        ((ASK, THOUGHTFUL), None, "turns[1].reasoning"),
    ):
        (row,) = encode_all([(template, turns)], tokenizer, [tools])
        assert isinstance(row, RowError) and row.field == field
        assert row.reason.startswith("the chat template has no place for")


def test_segments_keep_calls_with_their_results() -> None:
    turns = Conversation(TURNS).turns
    pieces = segments(turns, lambda part: len(part) <= 6)
    assert pieces == [(0, turns[:5]), (5, (turns[0], *turns[5:]))]


def test_qwen3_as_it_is_published(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(of_family("qwen3", tmp_path))
    turns = tuple(turn if turn.role != "system" else Turn("system", "Hi") for turn in TURNS[:5])
    row = encode(OWN, turns, tokenizer, tools=TOOLS)
    assert trained(row, tokenizer) == [
        '<tool_call>\n{"name": "weather", "arguments": {"town": "Köln", "days": 2}}\n</tool_call>'
        "<|im_end|>",
        "<think>\n\n</think>\n\n12 degrees.<|im_end|>",
    ]
    check_prefixes(tokenizer, turns, TOOLS)
    served = tokenizer.apply_chat_template(
        openai(turns), tools=json.loads(str(TOOLS)), return_dict=False
    )
    assert row.ids == served


def test_deepseek_v3_ends_two_calls_but_not_one(tmp_path: Path) -> None:
    """Its published template writes the end token after the second call only."""
    tokenizer = AutoTokenizer.from_pretrained(of_family("deepseek_v3", tmp_path))
    two = (ASK, Turn("assistant", "", tool_calls=(CALL, CALL)), RESULT, RESULT, ANSWER)
    (first, last) = trained(encode(OWN, two, tokenizer), tokenizer)
    assert first.count('weather\n```json\n{"town": "Köln", "days": 2}\n```') == 2
    assert first.endswith("<｜tool▁calls▁end｜><｜end▁of▁sentence｜>")
    assert last == "12 degrees.<｜end▁of▁sentence｜>"
    check_prefixes(tokenizer, two, None)
    for turns, tools, reason in (
        (TURNS[:5], None, "no special token ends an answer: a model trained so never learns to"),
        (two, TOOLS, "the chat template has no place for tools"),
    ):
        with pytest.raises(RowError) as caught:
            encode(OWN, turns, tokenizer, tools=tools)
        assert caught.value.reason.startswith(reason)
