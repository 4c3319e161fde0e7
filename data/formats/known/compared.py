"""Formats with two answers and a verdict, or with a tree of answers; see formats.py."""

from __future__ import annotations

from functools import partial

from rayward.data.formats.known.format import Format, make_format
from rayward.data.formats.readers import compared, preferred, trees
from rayward.data.formats.readers.margins import MARGINS

PKU = "prompt response_0 response_1"
MESSAGE = ("text", "role", "deleted", "review_result")
TREE = " ".join(
    (
        "message_tree_id",
        *(f"prompt.{name}" for name in MESSAGE),
        *(f"prompt.replies.{name}" for name in (*MESSAGE, "rank")),
    )
)


def _of_trees(form: Format) -> Format:
    """The format, whose replies have replies of the same fields."""
    replies = form.tree["prompt"]["replies"]
    replies["replies"] = replies
    return form


COMPARED: tuple[Format, ...] = (
    make_format(
        "openai_preference",
        preferred.openai_preference,
        "input preferred_output non_preferred_output",
        reads="id @input.messages input.tools @preferred_output @non_preferred_output",
    ),
    make_format(
        "swift_pairs",
        preferred.swift_pairs,
        "messages rejected_response",
        "messages rejected_messages",
        "query response rejected_response",
        reads="id @messages @query @response @rejected_response @rejected_messages",
    ),
    make_format(
        "response_pairs",
        preferred.response_pairs,
        "instruction chosen_response rejected_response",
        "prompt chosen_response rejected_response",
        reads=f"id instruction input @prompt @chosen_response @rejected_response {MARGINS}",
    ),
    make_format(
        "input_pairs",
        preferred.input_pairs,
        "input chosen rejected",
        never="instruction question prompt messages conversations",
        reads=f"id status @input @chosen @rejected {MARGINS}",
    ),
    make_format(
        "shp",
        compared.shp,
        "history human_ref_A human_ref_B labels",
        reads="post_id domain @history human_ref_A human_ref_B labels",
    ),
    make_format(
        "helpsteer2",
        compared.helpsteer2,
        "prompt response_1 response_2 preference_strength",
        reads="id prompt response_1 response_2 preference_strength",
    ),
    make_format(
        "helpsteer3",
        compared.helpsteer3,
        "context response1 response2 overall_preference",
        reads="id domain @context response1 response2 overall_preference",
    ),
    make_format(
        "webgpt",
        compared.webgpt,
        "question answer_0 answer_1 score_0 score_1",
        reads="id question.full_text question.id answer_0 answer_1 score_0 score_1",
    ),
    # By which answer helps more; the same rows by which is safer, where that is named.
    make_format(
        "pku_saferlhf",
        partial(compared.pku_saferlhf, "better_response_id"),
        f"{PKU} better_response_id",
        reads="id @prompt response_0 response_1 better_response_id",
    ),
    make_format(
        "pku_saferlhf_safer",
        partial(compared.pku_saferlhf, "safer_response_id"),
        reads="id @prompt response_0 response_1 safer_response_id",
    ),
    make_format(
        "summarize_feedback",
        compared.summaries,
        "info summaries choice",
        reads="info.id info.subreddit info.title info.post info.article summaries.text choice",
    ),
    make_format(
        "stack_exchange",
        compared.stack_exchange,
        "question response_j response_k",
        reads="qid question response_j response_k",
    ),
    make_format(
        "arena_votes",
        compared.arena_votes,
        "prompt response_a response_b winner_model_a winner_model_b",
        reads="id prompt response_a response_b winner_model_a winner_model_b",
    ),
    make_format(
        "arena_conversations",
        compared.arena_conversations,
        "conversation_a conversation_b winner",
        reads="id question_id turn @conversation_a @conversation_b winner",
    ),
    _of_trees(
        make_format(
            "oasst_trees",
            trees.oasst_trees,
            "message_tree_id prompt",
            reads=TREE,
        )
    ),
    _of_trees(make_format("oasst_conversations", trees.oasst_conversations, reads=TREE)),
)
