"""`rayward data render`: show a conversation in a chat template, the trained part marked."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from rayward.pipelines.data_tools.options import (
    add_format,
    add_questions,
    add_reading,
    read_options,
)

if TYPE_CHECKING:
    from rayward.data.formats.registry import Report
    from rayward.data.records import Record, Turn


def add(actions: argparse._SubParsersAction) -> None:
    """Declare the commands."""
    parser = actions.add_parser(
        "render", help="show rows in a chat template, what is trained in green"
    )
    parser.add_argument(
        "file", metavar="FILE", help="file or folder of rows, in any format that is known"
    )
    parser.add_argument(
        "--template", required=True, metavar="T", help="chat template; tokenizer is the model's own"
    )
    add_format(parser)
    add_questions(parser)
    add_reading(parser)
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="show what is left after this model's tokenizer"
    )
    parser.add_argument(
        "--ids", action="store_true", help="print the token ids too; needs --tokenizer"
    )
    parser.add_argument(
        "--plain", action="store_true", help="mark what is trained by [[...]] instead of colour"
    )
    parser.add_argument(
        "--limit", type=int, default=5, metavar="N", help="rows to show (default 5)"
    )
    parser.set_defaults(run_command=_render)


def _render(options: argparse.Namespace) -> int:
    from rayward.data.formats.files.token_rows import template_for
    from rayward.data.formats.registry import Report
    from rayward.data.records import RowError
    from rayward.data.templates.known_ids import assert_known_ids
    from rayward.data.templates.pieces import pieces
    from rayward.data.templates.template import encode, find
    from rayward.data.templates.tokenizer import load_tokenizer
    from rayward.data.values import UnusableError
    from rayward.pipelines.data_tools.convert import no_usable_row
    from rayward.pipelines.rows.show import coloured, plain, runs, runs_of_pieces, visible
    from rayward.pipelines.run.terminal import Terminal

    template = find(options.template)
    if not options.tokenizer and (options.ids or template.is_tokenizers):
        raise ValueError(
            f"{'--ids' if options.ids else '--template tokenizer'} needs --tokenizer DIR"
        )
    if options.limit < 1:
        raise ValueError(f"--limit is {options.limit}: at least 1")
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    if tokenizer:
        assert_known_ids(template, tokenizer)
    console, report = Terminal(soft_wrap=True, highlight=False), Report()
    shown = 0
    for record, place in islice(_records(options, report), options.limit):
        for title, turns, wants_answer in _texts(record):
            console.print(f"--- {visible(title)}", style="bold", markup=False)
            worded = template_for(template, record)
            row = None
            try:
                if tokenizer:
                    row = encode(worded, turns, tokenizer, wants_answer, record.tools)
                    stretches = runs(row, tokenizer)
                else:
                    parts = pieces(worded, turns, wants_answer, record.tools)
                    stretches = runs_of_pieces(parts)
            except RowError as error:
                told = f"left out: {place}: {error.reason}: {error}"
                console.print(visible(told), markup=False)
                continue
            shown += 1
            # No markup: "[bold]" in a text is text.
            console.print(plain(stretches) if options.plain else coloured(stretches), markup=False)
            if row and options.ids:
                console.print(str(row.ids), markup=False)
                if not wants_answer:
                    weights = [round(weight, 6) for weight in row.weights]
                    console.print(f"weights {weights}", markup=False)
    for reason, count in report.rejected.items():
        console.print(f"--- {count} rows left out: {reason}", markup=False)
    if not report.kept:
        raise UnusableError(no_usable_row(options.file, report.read, report.rejected))
    if not shown:
        raise UnusableError(f"{options.file}: every row that was looked at was left out")
    return 0


def _records(options: argparse.Namespace, report: Report) -> Iterator[tuple[Record, str]]:
    """The records of the file, each with FILE:LINE; rows are counted in `report` as read."""
    from rayward.data.formats.registry import outcomes

    asked = read_options(options)
    for outcome in outcomes(options.file, options.source, options.questions, False, asked):
        report.count(outcome)
        for record in outcome.records:
            yield record, f"{outcome.file}:{outcome.line}"


def _texts(record: Record) -> Iterator[tuple[str, tuple[Turn, ...], bool]]:
    """(title, turns, whether an answer is asked for) of all that a record is rendered as."""
    from rayward.data.records import Conversation, Labelled, Preference, Prompt, Turn

    name = f"{type(record).__name__.lower()} {record.id}".rstrip()
    if isinstance(record, Conversation | Prompt):
        yield name, record.turns, isinstance(record, Prompt)
        return
    if isinstance(record, Labelled):
        verdict = "good" if record.good else "bad"
        yield f"{name}, {verdict} answer", (*record.turns, Turn("assistant", record.answer)), False
        return
    ranking = record.as_ranking() if isinstance(record, Preference) else record
    for place, answer in enumerate(ranking.answers, start=1):
        yield (
            f"{name}, answer {place} of {len(ranking.answers)}",
            (*record.turns, Turn("assistant", answer)),
            False,
        )
