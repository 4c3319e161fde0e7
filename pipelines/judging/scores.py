"""`rayward judge scores FILE...`: mean ratings, and scores and winners of pairs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rayward.pipelines.judging.options import add_json, add_seed, tell_left_out, write_result

if TYPE_CHECKING:
    from rayward.data.judging.judgments import Judgment
    from rayward.pipelines.rows.left_out import LeftOut


def add(actions: argparse._SubParsersAction) -> None:
    """Declare the command."""
    parser = actions.add_parser(
        "scores",
        help="mean ratings of MT-Bench and Vicuna's pair scores, by model, turn and category",
        description="Means are over questions and turns that have a rating; the interval is the 95 "
        "% percentile bootstrap over questions.",
    )
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="judgments of FastChat (model_judgment) or judge single, Vicuna's reviews, OpenChat's "
        "evaluation, verdicts of judge pairwise; folders of these",
    )
    parser.add_argument(
        "--questions",
        metavar="FILE",
        help="question.jsonl with the category of each question_id, where rows do not say it",
    )
    parser.add_argument(
        "--answers",
        nargs="+",
        default=[],
        metavar="FILE",
        help="Vicuna's answers, which say whose an answer_id of a review is",
    )
    add_seed(parser)
    add_json(parser)
    parser.set_defaults(run_command=_run)


def _run(options: argparse.Namespace) -> int:
    from rayward.data.formats.files.overwriting import refuse_overwriting
    from rayward.data.judging.judgments import Rating, Scores, Winners
    from rayward.pipelines.judging.asking.reviews import (
        reviews,
        tell_reviews,
        tell_winners,
        winners,
    )
    from rayward.pipelines.judging.statistics.ratings import ratings, tell_ratings
    from rayward.pipelines.rows.left_out import LeftOut

    refuse_overwriting([options.json], [*options.files, *options.answers, options.questions])
    left_out = LeftOut()
    found = read(options.files, left_out)
    categories = fields_of([options.questions], "question_id", "category")
    names = fields_of(options.answers, "answer_id", "model_id")
    rated = ratings([each for each in found if isinstance(each, Rating)], categories, options.seed)
    scored = reviews([each for each in found if isinstance(each, Scores)], categories, names)
    won = winners([each for each in found if isinstance(each, Winners)], options.seed)
    tell_ratings(rated)
    tell_reviews(scored)
    tell_winners(won)
    tell_left_out(left_out)
    write_result(options.json, {"ratings": rated, "pair_scores": scored, "pair_winners": won})
    return 0


def read(files: Sequence[str], left_out: LeftOut) -> list[Judgment]:
    """The judgments of files; rows that are none are in `left_out`. ValueError: there is none."""
    from rayward.data.judging.annotations import BadRow
    from rayward.data.judging.judgments import judgments
    from rayward.pipelines.judging.statistics.verdict_groups import add_bad_row, no_row

    found: list[Judgment] = []
    for path in files:
        for judgment in judgments(path):
            if isinstance(judgment, BadRow):
                add_bad_row(left_out, judgment)
            else:
                found.append(judgment)
    if not found:
        raise no_row(files, "judgment", left_out)
    return found


def fields_of(files: Sequence[str | None], key: str, field: str) -> dict[Any, str]:
    """A field of the rows of files by another one; rows that lack one are passed over."""
    from rayward.data.formats.files.containers import sources

    named: dict[Any, str] = {}
    for path in filter(None, files):
        for source in sources(path):
            for _, row in source.rows():
                if isinstance(row, dict) and isinstance(row.get(key), int | str):
                    value = row.get(field)
                    if isinstance(value, str):
                        named[row[key]] = value
        if not named:
            raise ValueError(f"{path}: no row with {key} and {field}")
    return named
