"""`rayward data check`: what is in a file as a reader sees it, and which rows cannot be used."""

from __future__ import annotations

import argparse
import json
import shlex
from collections import Counter
from dataclasses import asdict, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from rayward.pipelines.data_tools.options import (
    add_format,
    add_questions,
    add_reading,
    read_options,
    warn_of_unmet,
)

if TYPE_CHECKING:
    from rayward.data.decontaminate import EvaluationTexts
    from rayward.data.formats.known.formats import Format
    from rayward.data.formats.registry import NoFormatError, Outcome

MAX_PRINTED = 10  # errors
EXAMPLES = 3
SHOWN_CHARACTERS = 100  # of a text in an example
SAMPLED_ROWS = 20  # of each file, to see what its fields become
IGNORED = "ignored "  # so begins a repair that --ignore made


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
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    parser.set_defaults(run_command=_run)


def _run(options: argparse.Namespace) -> int:
    from rayward.data.formats.registry import NoFormatError
    from rayward.data.values import UnusableError

    try:
        account = examine(options)
    except NoFormatError as error:
        account = _unknown(options, error)
    if options.json:
        print(json.dumps(account, ensure_ascii=False, indent=2))
    else:
        _print(account)
    if not account.get("read", 1):
        raise UnusableError(f"{options.input}: there is no row in it")
    return 1 if account["refused"] else 0


def examine(options: argparse.Namespace) -> dict[str, Any]:
    """What is in the rows and what becomes of them, as JSON."""
    from rayward.data.cleaning.markup import HtmlAnswers
    from rayward.data.formats.became import Fields
    from rayward.data.formats.registry import Report, files_of, format_of, outcomes
    from rayward.data.formats.rows.fields import as_object

    asked = read_options(options)
    texts, against = _evaluation_texts(options)
    # Before the sources are opened once more below: it tells mistakes of the caller.
    stream = outcomes(options.input, options.source, options.questions, options=asked)
    opened = {source.name: source for source in files_of(options.input, options.source, asked)}
    report, html, fields = Report(), HtmlAnswers(), Fields()
    formats: dict[str, Format | None] = {}
    examples: list[Any] = []
    refused_rows: list[dict[str, Any]] = []
    first_rows: dict[int, Any] = {}
    for outcome in stream:
        if outcome.file not in formats:
            source = opened[outcome.file]
            formats[outcome.file] = format_of(source, options.source, asked)
            sampled = islice(source.rows(), SAMPLED_ROWS)
            first_rows = {line: as_object(row) for line, row in sampled}
        outcome = _compared(outcome, texts)
        report.count(outcome)
        html.count(outcome.records)
        form, row = formats[outcome.file], first_rows.get(outcome.line)
        if form and outcome.records and isinstance(row, dict):
            fields.count(form, row, outcome.records)
        examples += [_shown(record) for record in outcome.records[: EXAMPLES - len(examples)]]
        if outcome.error is not None and len(refused_rows) < MAX_PRINTED:
            refused_rows.append(asdict(outcome.rejected()))
    asked_for = {name: n for name, n in report.repaired.items() if name.startswith(IGNORED)}
    ignored = Counter(report.passed_over)
    ignored.update({name.removeprefix(IGNORED): n for name, n in asked_for.items()})
    warn_of_unmet(asked, report.passed_over)
    return {
        "input": str(options.input),
        "format": ", ".join(dict.fromkeys(form.name for form in formats.values() if form)) or None,
        "read": report.read,
        "usable": report.kept,
        "fields": fields.as_dict(),
        "ignored": dict(ignored),
        "passed_over": dict(report.passed_over),
        "repaired": {n: c for n, c in report.repaired.items() if n not in asked_for},
        "refused": dict(report.rejected),
        "refused_rows": refused_rows,
        "against": against,
        "examples": examples,
        "html": html.told(str(options.input)),
    }


def _unknown(options: argparse.Namespace, error: NoFormatError) -> dict[str, Any]:
    """What to say of rows that fit no format: their fields, and a map to try."""
    from rayward.data.formats.proposal import as_options, propose

    rows = [row for _, row in islice(error.source.rows(), SAMPLED_ROWS) if isinstance(row, dict)]
    mapped = propose(rows)
    command = ["rayward", "data", "check", error.source.name]
    return {
        "input": str(options.input),
        "format": None,
        "fields": {},
        "ignored": {},
        "refused": {"rows fit no known format": len(rows)},
        "refused_rows": [],
        "examples": rows[:EXAMPLES],
        "error": str(error),
        "proposed": {"fields": dict(mapped.fields), "roles": dict(mapped.roles)}
        if mapped
        else None,
        "command": shlex.join([*command, *as_options(mapped)]) if mapped else None,
    }


def _shown(record: Any) -> dict[str, Any]:
    from rayward.data.formats.files.token_rows import TokenRow
    from rayward.data.record_json import to_json

    if isinstance(record, TokenRow):
        return {"kind": "tokens", "ids": len(record.ids)}
    return to_json(record)


def _print(account: dict[str, Any]) -> None:
    from rayward.pipelines.data_tools.convert import account_rows
    from rayward.pipelines.rows.contamination import not_compared
    from rayward.pipelines.rows.show import visible
    from rayward.pipelines.run.metrics import table

    if "error" in account:
        print(account["error"])
        if account["command"]:
            print(f"perhaps:\n{account['command']}")
        else:
            print(
                "no map could be guessed from their names: give --fields, as in "
                "--fields prompt=FIELD,response=FIELD"
            )
        return
    print(account["input"])
    print(f"format: {account['format'] or 'none'}")
    for name, what in account["fields"].items():
        print(f"  {name} -> {what}")
    # What is ignored beyond what is passed over was asked for.
    asked = Counter(account["ignored"]) - Counter(account["passed_over"])
    asked_for = {IGNORED + name: count for name, count in asked.items()}
    counts = {"rejected": account["refused"], "repaired": account["repaired"] | asked_for}
    counts["passed_over"] = account["passed_over"]
    table("", account_rows({"read": account["read"], "usable": account["usable"], **counts}))
    for row in account["refused_rows"]:
        found = f"{row['field']}: found {row['found']}, expected {row['expected']}"
        print(f"{row['file']}:{row['line']}: {found}")
    if (more := sum(account["refused"].values()) - len(account["refused_rows"])) > 0:
        print(f"... and {more} more")
    for number, example in enumerate(account["examples"], start=1):
        print(f"row {number} as read: {visible(_in_short(example))}")
    for line in not_compared(account["against"]):
        print(line)
    if account["html"]:
        print(account["html"])


def _in_short(example: Any) -> str:
    """A record as one line, long texts cut."""
    if isinstance(example, dict):
        if {"role", "content"} <= example.keys():
            weight = f" (weight {example['weight']:g})" if "weight" in example else ""
            return f"{example['role']}{weight}: {_in_short(example['content'])}"
        return "; ".join(
            _in_short(value) if name == "turns" else f"{name} {_in_short(value)}"
            for name, value in example.items()
        )
    if isinstance(example, list):
        return " | ".join(map(_in_short, example))
    text = " ".join(str(example).split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def _evaluation_texts(
    options: argparse.Namespace,
) -> tuple[EvaluationTexts | None, dict[str, Any]]:
    """The texts of the evaluation sets that are given, and the account of each."""
    from rayward.data.decontaminate import NGRAM, EvaluationTexts
    from rayward.data.formats.registry import NoFormatError
    from rayward.pipelines.rows.contamination import add_file, require_texts

    if not options.against:
        if options.ngram is not None:
            raise ValueError("--ngram is of use with --against FILE only")
        return None, {}
    texts = EvaluationTexts(NGRAM if options.ngram is None else options.ngram)
    try:
        accounts = {path: add_file(texts, path) for path in options.against}
    except NoFormatError as error:  # else it would be taken for one of the input
        raise ValueError(f"--against: {error}") from error
    require_texts(texts)
    return texts, accounts


def _compared(outcome: Outcome, texts: EvaluationTexts | None) -> Outcome:
    """The outcome, or that of a row that is set aside for what it shares with an evaluation set."""
    from rayward.data.formats.files.token_rows import TokenRow
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
