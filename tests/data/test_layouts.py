"""Layouts in common use: what is read of each, what is passed over, what is set aside and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayward.data.formats.beside import read_row
from rayward.data.formats.known.formats import FORMATS
from rayward.data.formats.registry import outcomes, read
from rayward.data.formats.rows.fields import ReadOptions
from rayward.data.records import (
    Conversation,
    Labelled,
    Preference,
    Prompt,
    Ranking,
    Record,
    RowError,
    Turn,
)
from tests.data.examples import detect, run, write_array, write_lines
from tests.data.layout_examples import LAYOUT_ROWS, TREE, ask, said, say
from tests.data.test_cases import read_all

Q, QA = (Turn("user", "q"),), (Turn("user", "q"), Turn("assistant", "a"))
QARB = (*QA, Turn("user", "r"), Turn("assistant", "b"))
A_B = Preference(Q, "a", "b")
CHAT = Conversation(QA)
SPOKEN = [ask("q"), say("a")]
OTHER = [ask("q"), say("b")]
LONG = [*SPOKEN, ask("r"), say("yes")]

# The row, and its record without the source.
READ: dict[str, tuple[dict[str, Any], Record]] = {
    "firefly": (
        {"category": "x", "conversation": [{"human": "q", "assistant": "a"}]},
        CHAT,
    ),
    "sharegpt_by_speakers": (
        {"conversations": [{"human": "q", "gpt": "a"}, {"human": "r", "gpt": "b"}]},
        Conversation(QARB),
    ),
    "sharegpt_a_speaker_each": (
        {"conversations": [{"human": "q"}, {"assistant": "a"}]},
        CHAT,
    ),
    "human_gpt": ({"human": "q", "gpt": "a"}, CHAT),
    "user_assistant": ({"user": "q", "assistant": "a", "system": ""}, CHAT),
    "wildchat": (
        {
            "conversation_hash": "h",
            "model": "m",
            "conversation": [turn | {"language": "English", "toxic": False} for turn in SPOKEN],
            "turn": 1,
        },
        CHAT,
    ),
    "tulu": ({"id": "t", "messages": SPOKEN, "source": "x"}, Conversation(QA, id="t")),
    "rlvr": (
        {"messages": [ask("q")], "ground_truth": "2", "dataset": "gsm8k"},
        Prompt(Q, reference="2"),
    ),
    "metamath": ({"query": "q", "response": "a", "original_question": "x"}, CHAT),
    "swift_history": (
        {"query": "r", "response": "b", "history": [["q", "a"]], "system": "s"},
        Conversation((Turn("system", "s"), *QARB)),
    ),
    "swift_text_pair": ({"query": "q", "response": "a", "rejected_response": "b"}, A_B),
    "swift_turns_pair": (
        {"messages": LONG, "rejected_messages": [*LONG[:3], say("no")]},
        Preference(QARB[:3], "yes", "no"),
    ),
    "zephyr": (
        {
            "prompt": "q",
            "prompt_id": "x",
            "chosen": SPOKEN,
            "rejected": OTHER,
            "messages": SPOKEN,
            "score_chosen": 8.5,
            "score_rejected": 6.0,
        },
        Preference(Q, "a", "b", 2.5),
    ),
    "equal_scores": (
        {"prompt": "q", "chosen": SPOKEN, "rejected": OTHER}
        | {"score_chosen": 7, "score_rejected": 7},
        Preference(Q, "a", "b", 0.0),
    ),
    "capybara_pairs": (
        {
            "prompt": "r",
            "chosen": LONG,
            "rejected": [*LONG[:3], say("no")],
            "rating_chosen": 5,
            "rating_rejected": 4,
        },
        Preference(QARB[:3], "yes", "no", 1.0),
    ),
    "first_question_again": (
        {"prompt": "q", "chosen": LONG, "rejected": [*LONG[:3], say("no")]},
        Preference(QARB[:3], "yes", "no"),
    ),
    "argilla_rating": (
        {"prompt": "q", "chosen": SPOKEN, "rejected": OTHER}
        | {"chosen-rating": 5, "rejected-rating": 2},
        Preference(Q, "a", "b", 3.0),
    ),
    "hh_with_margin": (
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
        | {"margin": 2},
        Preference(Q, "a", "b", 2.0),
    ),
    "llama_factory_pair": ({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, A_B),
    "rm_bench": (
        {
            "id": 1,
            "prompt": "q",
            "chosen": ["a1", "a2", "a3"],
            "rejected": ["b1", "b2", "b3"],
            "domain": "chat",
        },
        Ranking(Q, ("a1", "a2", "a3", "b1", "b2", "b3"), id="1", ranks=(1.0,) * 3 + (4.0,) * 3),
    ),
    "alpaca_farm": (
        {"instruction": "Add.", "input": "1 2", "output_1": "b", "output_2": "a", "preference": 2},
        Preference((Turn("user", "Add.\n\n### Input:\n1 2"),), "a", "b"),
    ),
    "webgpt_text": (
        {"question": "q", "answer_0": "b", "score_0": -1, "answer_1": "a", "score_1": 1},
        Preference(Q, "a", "b", 2.0),
    ),
    "cnn_summary": (
        {
            "info": {"id": "c", "article": "Rain fell.\n"},
            "summaries": [{"text": "a"}, {"text": "b"}],
            "choice": 0,
        },
        Preference((Turn("user", "Article:\n\nRain fell.\n\nTL;DR:"),), "a", "b", id="c"),
    ),
    "arena_one_turn": (
        {"prompt": "q", "response_a": "a", "response_b": "b"}
        | {"winner_model_a": 1, "winner_model_b": 0},
        A_B,
    ),
    "arena_hard_2": (
        {"uid": "u", "category": "c", "subcategory": "s", "prompt": "q"},
        Prompt(Q, id="u"),
    ),
    "prompt_output": ({"prompt": "q", "output": "a"}, CHAT),
    "beavertails": (
        {"prompt": "q", "response": "a", "is_safe": False},
        Labelled(Q, "a", False),
    ),
}


@pytest.mark.parametrize("name", READ)
def test_a_row_of_a_layout(name: str, tmp_path: Path) -> None:
    row, expected = READ[name]
    found, _ = read_all(write_lines(tmp_path / "a.jsonl", [row]))
    assert found == [expected]


@pytest.mark.parametrize(
    "name, passed_over",
    [
        ("openai_preference", ["input.parallel_tool_calls"]),
        ("shp", ["score_A", "score_B", "score_ratio"]),
        ("helpsteer2", ["split", "preference_statement"]),
        ("helpsteer3", ["language", "individual_preference"]),
        ("webgpt", ["question.dataset", "quotes_0"]),
        (
            "pku_saferlhf",
            ["is_response_0_safe", "is_response_1_safe", "safer_response_id"],
        ),
        ("summarize_feedback", ["summaries.policy", "worker"]),
        ("arena_votes", ["model_a", "model_b", "winner_tie"]),
        ("oasst_trees", ["tree_state", "prompt.message_id", "prompt.lang", "prompt.replies.lang"]),
    ],
)
def test_what_is_passed_over(name: str, passed_over: list[str]) -> None:
    _, found = read_row(FORMATS[name], LAYOUT_ROWS[name], [], ReadOptions())
    assert {*passed_over} <= {*found}
    assert len(found) == len({*found}) == len(passed_over) + (name == "oasst_trees")


@pytest.mark.parametrize(
    "name, change, field, reason",
    [
        ("openai_preference", {"input": {"messages": []}}, "input.messages", "no turns"),
        ("openai_preference", {"input": "q"}, "input", "wrong type"),
        ("openai_preference", {"preferred_output": None}, "preferred_output", "missing text"),
        (
            "swift_pairs",
            {"messages": [ask("q")]},
            "messages[0].role",
            "does not end with the assistant",
        ),
        (
            "response_pairs",
            {"rejected_avg_rating": 5.0},
            "rejected_avg_rating",
            "scores contradict the choice",
        ),
        ("input_pairs", {"status": "tie"}, "status", "a tie"),
        ("shp", {"labels": 2}, "labels", "no verdict"),
        ("shp", {"labels": True}, "labels", "no verdict"),
        ("helpsteer2", {"preference_strength": 0}, "preference_strength", "a tie"),
        ("helpsteer3", {"overall_preference": None}, "overall_preference", "wrong type"),
        ("webgpt", {"score_0": -0.5}, "score_0/score_1", "a tie"),
        ("pku_saferlhf", {"better_response_id": None}, "better_response_id", "no verdict"),
        ("summarize_feedback", {"summaries": [{"text": "a"}]}, "summaries", "not two answers"),
        ("summarize_feedback", {"choice": -1}, "choice", "no verdict"),
        ("stack_exchange", {"response_k": " "}, "response_k", "empty text"),
        ("arena_votes", {"winner_model_b": 0}, "winner_model_a/winner_model_b", "a tie"),
        (
            "arena_votes",
            {"response_a": json.dumps(["a"])},
            "response_a",
            "answers do not match the prompts",
        ),
        (
            "arena_votes",
            {"response_a": json.dumps(["other", "bad"])},
            "response_a",
            "answer does not follow the prompt",
        ),
        ("arena_votes", {"response_b": '["a", null]'}, "response_b[1]", "missing text"),
        ("arena_conversations", {"winner": "tie (bothbad)"}, "winner", "a tie"),
        ("arena_conversations", {"winner": "?"}, "winner", "no verdict"),
        (
            "arena_conversations",
            {"turn": 2},
            "conversation_a",
            "answer does not follow the prompt",
        ),
        ("oasst_trees", {"prompt": said("q", "prompter")}, "prompt.replies", "no answered turn"),
        ("oasst_trees", {"prompt": said("a", "assistant")}, "prompt.role", None),
        ("oasst_trees", {"prompt": said("q", "alien")}, "prompt.role", "unknown role"),
        (
            "oasst_trees",
            {"prompt": TREE["prompt"] | {"deleted": True}},
            "prompt",
            "deleted message",
        ),
        ("query_response", {"response": ""}, "response", "empty text"),
        ("input_output", {"input": 1}, "input", "wrong type"),
        ("exchange", {"assistant": None}, "assistant", "missing text"),
        ("vicuna_questions", {"text": None}, "text", "missing text"),
        ("arena_hard", {"turns": []}, "turns", "no turns"),
        ("ifeval", {"kwargs": []}, "kwargs", "lists of other lengths"),
        ("ifeval", {"instruction_id_list": [1]}, "instruction_id_list[0]", "wrong type"),
    ],
)
def test_what_sets_a_row_aside(name: str, change: dict, field: str, reason: str | None) -> None:
    with pytest.raises(RowError) as caught:
        FORMATS[name].convert(LAYOUT_ROWS[name] | change, [])
    assert caught.value.field == field
    assert reason is None or caught.value.reason == reason


# ---- trees


def tree(*replies: dict[str, Any]) -> dict[str, Any]:
    return {"message_tree_id": "t", "prompt": said("q", "prompter", *replies)}


def test_a_tree_is_the_rankings_of_its_ranked_answers() -> None:
    second = said(
        "r",
        "prompter",
        said("c", "assistant", rank=1),
        said("d", "assistant", rank=0),
        said("e", "assistant"),
    )
    row = tree(
        said("b", "assistant", rank=1),
        said("a", "assistant", second, rank=0),
        said("spam", "assistant", rank=2) | {"review_result": False},
    )
    repairs: list[str] = []
    found = FORMATS["oasst_trees"].convert(row, repairs)
    assert found == [
        Ranking(Q, ("a", "b"), "oasst", "t", (1.0, 2.0)),
        Ranking(QARB[:3], ("d", "c"), "oasst", "t", (1.0, 2.0)),
    ]
    assert {*repairs} == {"left out deleted message", "left out answer without a rank"}
    assert FORMATS["oasst_conversations"].convert(row, []) == [
        Conversation((*QARB[:3], Turn("assistant", "d")), "oasst", "t")
    ]


def test_a_tree_without_ranks_is_its_conversations() -> None:
    row = tree(
        said("a", "assistant", said("r", "prompter", said("b", "assistant"))),
        said("c", "assistant", said("unanswered", "prompter")),
    )
    assert FORMATS["oasst_trees"].convert(row, []) == [
        Conversation(QARB, "oasst", "t"),
        Conversation((*Q, Turn("assistant", "c")), "oasst", "t"),
    ]


# ---- bare lists, and rows that are no records


def test_bare_lists_of_turns(tmp_path: Path) -> None:
    shared = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    for number, rows in enumerate(([SPOKEN, LONG], [shared, [ask("q")]])):
        for write, name in ((write_lines, "a.jsonl"), (write_array, "a.json")):
            records, report = run(write(tmp_path / f"{number}{name}", rows))
            assert records[0].turns == QA and report.kept == 2
            assert isinstance(records[1], (Conversation, Prompt)[number])
    # A file that is one conversation.
    assert run(write_array(tmp_path / "one.json", SPOKEN))[0] == [Conversation(QA, "openai")]
    mixed = write_lines(tmp_path / "mixed.jsonl", [SPOKEN, [], ["q"], {"messages": SPOKEN}])
    records, report = run(mixed)
    assert len(records) == 2 and report.rejected == {"wrong type": 2}


@pytest.mark.parametrize(
    "row, why",
    [
        (
            {"prompt": "q", "response": "a", "helpfulness": 4, "correctness": 4},
            "answers with scores, as in HelpSteer 2",
        ),
        (
            {"message_id": "m", "message_tree_id": "t", "parent_id": None, "text": "q"}
            | {"role": "prompter"},
            "messages of trees",
        ),
        ({"prompt": "q", "completions": ["a"], "labels": [True]}, "steps with a verdict"),
        ({"info": {"post": "x"}, "summary": {"text": "a"}}, "scores of single summaries"),
        (ask("q"), "turns in rows of their own"),
    ],
)
def test_rows_that_are_known_and_no_records(row: dict, why: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [row])
    with pytest.raises(ValueError, match=f"a.jsonl: rows with the fields .* fit no known .*{why}"):
        read(path)


@pytest.mark.parametrize(
    "keys",
    [
        "prompt response_0 response_1",
        "prompt response_1 response_2",
        "instruction chosen_response",
        "input output score",
        "query response choices",
        "question_id text",
    ],
)
def test_halves_of_a_layout_are_nothing_else(keys: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [dict.fromkeys(keys.split(), "x")])
    with pytest.raises(ValueError, match="fit no known format"):
        detect(path)


def test_every_layout_keeps_its_account(tmp_path: Path) -> None:
    for name, row in LAYOUT_ROWS.items():
        path = write_lines(tmp_path / f"{name}.jsonl", [row, row | {"annotator": "Ada"}, {"x": 1}])
        found = list(outcomes(path))
        assert [len(outcome.records) > 0 for outcome in found] == [True, True, False], name
        assert "annotator" in found[1].passed_over
