"""Rows of further layouts in common use, made up in the fields of the published data sets, and the
records that they are.
"""

from __future__ import annotations

import json
from typing import Any

from rayward.data.records import Conversation, Preference, Prompt, Ranking, Turn


def ask(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def say(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def said(text: str, role: str, *replies: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A message of a tree."""
    node = {"message_id": text, "text": text, "role": role, "lang": "en", **more}
    return node | {"deleted": False, "review_result": True, "replies": [*replies]}


TREE = {
    "message_tree_id": "t",
    "tree_state": "ready_for_export",
    "prompt": said(
        "q",
        "prompter",
        said("worse", "assistant", rank=1),
        said(
            "a",
            "assistant",
            said("r", "prompter", said("b", "assistant", rank=None)),
            rank=0,
        ),
        said("worst", "assistant", rank=2),
    ),
}

LAYOUT_ROWS: dict[str, dict[str, Any]] = {
    "openai_preference": {
        "input": {
            "messages": [ask("q")],
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "parallel_tool_calls": True,
        },
        "preferred_output": [say("a")],
        "non_preferred_output": [say("b")],
    },
    "swift_pairs": {"messages": [ask("q"), say("a")], "rejected_response": "b"},
    "response_pairs": {
        "instruction": "q",
        "chosen_response": "a",
        "rejected_response": "b",
        "chosen_avg_rating": 4.5,
        "rejected_avg_rating": 3.0,
    },
    "input_pairs": {
        "system": "Be brief.",
        "input": "q",
        "chosen": "a",
        "rejected": "b",
        "status": "swapped",
        "rating": [9, 7],
        "chosen_score": 9.0,
        "rejected_score": 7.0,
    },
    "shp": {
        "post_id": "p1",
        "domain": "askbaking_train",
        "history": "q",
        "human_ref_A": "b",
        "human_ref_B": "a",
        "labels": 0,
        "score_A": 3,
        "score_B": 9,
        "score_ratio": 3.0,
    },
    "helpsteer2": {
        "split": "train",
        "prompt": "q\n<extra_id_1>Assistant\na\n<extra_id_1>User\nr",
        "response_1": "good",
        "response_2": "bad",
        "preference_strength": -2,
        "preference_statement": "1 is right.",
    },
    "helpsteer3": {
        "domain": "general",
        "language": "english",
        "context": [ask("q")],
        "response1": "b",
        "response2": "a",
        "overall_preference": 3,
        "individual_preference": [{"score": 3, "reasoning": "2 is right."}],
    },
    "webgpt": {
        "question": {"dataset": "eli5", "id": "w", "full_text": "q"},
        "answer_0": "a",
        "quotes_0": {"title": ["t"]},
        "score_0": 0.5,
        "answer_1": "b",
        "score_1": -0.5,
    },
    "pku_saferlhf": {
        "prompt": "q",
        "response_0": "b",
        "response_1": "a",
        "is_response_0_safe": True,
        "is_response_1_safe": True,
        "better_response_id": 1,
        "safer_response_id": 0,
    },
    "pku_saferlhf_safer": {
        "prompt": "q",
        "response_0": "a",
        "response_1": "b",
        "better_response_id": 1,
        "safer_response_id": 0,
    },
    "summarize_feedback": {
        "info": {"id": "t3", "post": "I lost it.", "title": "Lost", "subreddit": "help"},
        "summaries": [{"text": " b", "policy": "sup"}, {"text": " a", "policy": "ref"}],
        "choice": 1,
        "worker": "w",
    },
    "stack_exchange": {
        "qid": 7,
        "question": "q",
        "date": "2020",
        "response_j": "a",
        "response_k": "b",
    },
    "arena_votes": {
        "id": 9,
        "model_a": "x",
        "model_b": "y",
        "prompt": json.dumps(["q", "r"]),
        "response_a": json.dumps(["a", "bad"]),
        "response_b": json.dumps(["a", "good"]),
        "winner_model_a": 0,
        "winner_model_b": 1,
        "winner_tie": 0,
    },
    "arena_conversations": {
        "question_id": "c",
        "model_a": "x",
        "model_b": "y",
        "winner": "model_b",
        "conversation_a": [ask("q"), say("b"), ask("r"), say("d")],
        "conversation_b": [ask("q"), say("a"), ask("r"), say("c")],
        "turn": 1,
    },
    "oasst_trees": TREE,
    "oasst_conversations": TREE,
    "query_response": {"query": "q", "response": "a", "type": "GSM_Rephrased"},
    "input_output": {"input": "q", "output": "a"},
    "exchange": {"human": "q", "assistant": "a"},
    "vicuna_questions": {"question_id": 1, "text": "q", "category": "generic"},
    "arena_hard": {
        "question_id": "h",
        "category": "arena-hard-v0.1",
        "cluster": "SQL",
        "turns": [{"content": "q"}],
    },
    "ifeval": {
        "key": 1000,
        "prompt": "q",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{"num_words": None}],
    },
}

Q, QA = (Turn("user", "q"),), (Turn("user", "q"), Turn("assistant", "a"))
FOUR = (*QA, Turn("user", "r"), Turn("assistant", "b"))
TOOL = '[{"type": "function", "function": {"name": "f"}}]'
TO_SUMMARIZE = "SUBREDDIT: r/help\n\nTITLE: Lost\n\nPOST: I lost it.\n\nTL;DR:"

LAYOUT_RECORDS: dict[str, Any] = {
    "openai_preference": Preference(Q, "a", "b", None, "openai_preference", tools=TOOL),
    "swift_pairs": Preference(Q, "a", "b", None, "swift_pairs"),
    "response_pairs": Preference(Q, "a", "b", 1.5, "response_pairs"),
    "input_pairs": Preference((Turn("system", "Be brief."), *Q), "a", "b", 2.0, "input_pairs"),
    "shp": Preference(Q, "a", "b", None, "shp/askbaking_train", "p1"),
    "helpsteer2": Preference(FOUR[:3], "good", "bad", 2.0, "helpsteer2"),
    "helpsteer3": Preference(Q, "a", "b", 3.0, "helpsteer3/general"),
    "webgpt": Preference(Q, "a", "b", 1.0, "webgpt", "w"),
    "pku_saferlhf": Preference(Q, "a", "b", None, "pku_saferlhf"),
    "pku_saferlhf_safer": Preference(Q, "a", "b", None, "pku_saferlhf"),
    "summarize_feedback": Preference(
        (Turn("user", TO_SUMMARIZE),), "a", "b", None, "summarize_feedback/help", "t3"
    ),
    "stack_exchange": Preference(Q, "a", "b", None, "stack_exchange", "7"),
    "arena_votes": Preference(FOUR[:3], "good", "bad", None, "arena", "9"),
    "arena_conversations": Preference(Q, "a", "b", None, "arena", "c"),
    "oasst_trees": Ranking(Q, ("a", "worse", "worst"), "oasst", "t", (1.0, 2.0, 3.0)),
    "oasst_conversations": Conversation(FOUR, "oasst", "t"),
    "query_response": Conversation(QA, "query_response"),
    "input_output": Conversation(QA, "input_output"),
    "exchange": Conversation(QA, "exchange"),
    "vicuna_questions": Prompt(Q, "vicuna/generic", "1"),
    "arena_hard": Prompt(Q, "arena_hard/arena-hard-v0.1", "h"),
    "ifeval": Prompt(
        Q,
        "ifeval",
        "1000",
        reference='{"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"num_words": '
        "null}]}",
    ),
}

# Formats that are used where they are named, and the one that their rows are taken for.
NAMED = {
    "starling_truthful": "arena",
    "starling_verbose": "arena",
    "pku_saferlhf_safer": "pku_saferlhf",
    "oasst_conversations": "oasst_trees",
}
