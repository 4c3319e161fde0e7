"""`rayward data check`: what is in a file as a reader sees it, and which rows cannot be used."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rayward.pipelines.data_tools.options import (
    add_format,
    add_questions,
    add_reading,
    read_options,
)

if TYPE_CHECKING:
    from rayward.data.decontaminate import EvaluationTexts
    from rayward.data.formats.registry import Outcome

MAX_PRINTED = 10  # errors
EXAMPLES = 3


def add(actions: argparse._SubParsersAction) -> None:
    """Declare the command."""
    parser = actions.add_parser(
        "check", help="say what a file holds, which rows cannot be used, and why; status 1 if any"
    )
    parser.add_argument(
        "input",
        metavar="IN",
        help="file, folder, - (standard input), or hf:NAME[:CONFIG][:SPLIT] of a data set",
    )
    add_format(parser)
    add_questions(parser)
    add_reading(parser)
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="FILE",
        help="an evaluation set: rows that share long n-grams with it are set aside; repeatable",
    )
    parser.add_argument(
        "--ngram", type=int, metavar="N", help="with --against: words in a row (default 13)"
    )
    parser.set_defaults(run_command=_run)


def _run(options: argparse.Namespace) -> int:
    from rayward.data.cleaning.markup import HtmlAnswers
    from rayward.data.formats.registry import Report, outcomes
    from rayward.pipelines.data_tools.convert import account_rows
    from rayward.pipelines.run.metrics import table

    texts = _evaluation_texts(options)
    report, lines, html = Report(), list[str](), HtmlAnswers()
    for outcome in outcomes(
        options.input, options.source, options.questions, options=read_options(options)
    ):
        outcome = _compared(outcome, texts)
        report.count(outcome)
        html.count(outcome.records)
        if outcome.error is not None and len(lines) < MAX_PRINTED:
            lines.append(f"{outcome.file}:{outcome.line}: {outcome.error}")
    print(options.input)
    table("", account_rows({"usable": report.kept, **report.as_dict()}))
    for line in lines:
        print(line)
    if (more := report.rejected.total() - len(lines)) > 0:
        print(f"... and {more} more")
    if told := html.told(options.input):
        print(told)
    return 1 if report.rejected else 0


def _evaluation_texts(options: argparse.Namespace) -> EvaluationTexts | None:
    from rayward.data.decontaminate import NGRAM, EvaluationTexts
    from rayward.pipelines.rows.contamination import add_file

    if not options.against:
        if options.ngram is not None:
            raise ValueError("--ngram is of use with --against FILE only")
        return None
    texts = EvaluationTexts(NGRAM if options.ngram is None else options.ngram)
    for path in options.against:
        add_file(texts, path)
    return texts


def _compared(outcome: Outcome, texts: EvaluationTexts | None) -> Outcome:
    """The outcome, or that of a row that is set aside for what it shares with an evaluation set."""
    from dataclasses import replace

    from rayward.data.formats.token_rows import TokenRow
    from rayward.data.records import RowError
    from rayward.pipelines.rows.contamination import told

    if texts is None:
        return outcome
    for record in outcome.records:
        if isinstance(record, TokenRow):
            raise ValueError(
                f"{outcome.file}: token ids have no words to compare; --against is of no use"
            )
        if shared := texts.shared_with(record):
            why = told(shared, texts.n)
            error = RowError("row", why["found"], why["expected"], why["rule"])
            return replace(outcome, records=(), error=error)
    return outcome
