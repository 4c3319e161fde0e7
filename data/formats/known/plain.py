"""Formats of a question and its answer in plain columns, and of questions; see formats.py.

NO_FORMAT names rows that are known and are no records, and why.
"""

from __future__ import annotations

from functools import partial

from rayward.data.formats.known.format import Format, make_format
from rayward.data.formats.readers import questions

# Of rows that hold more than the two fields: pairs, scored answers, tasks with choices.
OTHERS = (
    "score scores rating helpfulness chosen rejected rejected_response choices options "
    "prompt messages conversations conversation instruction question"
)
EXCHANGES = [f"{asked} {said}" for asked in questions.ASKED for said in questions.SAID]

PLAIN: tuple[Format, ...] = (
    make_format(
        "query_response",
        partial(questions.flat, "query", "response", "query_response"),
        "query response",
        never=OTHERS,
        reads="id @query @response",
    ),
    make_format(
        "input_output",
        partial(questions.flat, "input", "output", "input_output"),
        "input output",
        never=OTHERS,
        reads="id @input @output",
    ),
    make_format(
        "exchange",
        questions.exchange,
        *EXCHANGES,
        never=OTHERS,
        reads="id " + " ".join(f"@{name}" for name in (*questions.ASKED, *questions.SAID)),
    ),
    make_format(
        "vicuna_questions",
        questions.vicuna_questions,
        "question_id text category",
        never="model_id answer_id review_id score choices",
        reads="question_id text category",
    ),
    make_format(
        "arena_hard",
        questions.arena_hard,
        "question_id cluster turns",
        "uid category subcategory prompt",
        reads="question_id uid category turns.content prompt",
    ),
    make_format(
        "ifeval",
        questions.ifeval,
        "prompt instruction_id_list kwargs",
        reads="key prompt instruction_id_list kwargs",
    ),
)

NO_FORMAT: tuple[tuple[frozenset[str], str], ...] = tuple(
    (frozenset(names.split()), why)
    for names, why in (
        (
            "prompt response helpfulness correctness",
            "answers with scores, as in HelpSteer 2, are none to imitate, and one alone is no "
            "comparison; its file of preferences has pairs",
        ),
        (
            "message_id message_tree_id text role",
            "these are messages of trees, as in OASST, in rows of their own, and no row has its "
            "question; the files of whole trees are read",
        ),
        (
            "prompt completions labels",
            "these are steps with a verdict each, as for process reward models; records have one "
            "verdict an answer",
        ),
        (
            "info summary",
            "these are scores of single summaries; the files of comparisons are read",
        ),
        (
            "role content",
            'these are turns in rows of their own; a conversation is one row, {"messages": [...]} '
            "or a list of its turns",
        ),
    )
)
