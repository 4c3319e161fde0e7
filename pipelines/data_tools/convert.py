"""`rayward data` convert and stats: what is in data files, and from one format to another."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayward.pipelines.data_tools.options import (
    add_format,
    add_questions,
    add_reading,
    read_options,
    warn_of_unmet,
)

if TYPE_CHECKING:
    from rayward.data.formats.files.token_rows import Encode

MAX_PRINTED = 10  # languages


def add(actions: argparse._SubParsersAction) -> None:
    """Declare the commands."""
    convert = actions.add_parser(
        "convert", help="write data in another format, with an account of every row"
    )
    _add_input(convert)
    convert.add_argument(
        "--to", default="rayward", metavar="FORMAT", help="format to write (default rayward)"
    )
    convert.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="file to write: .json, .jsonl (each also with .gz) or .parquet; "
        "rows that cannot be used go to FILE.rejected.jsonl",
    )
    convert.add_argument("--report", type=Path, metavar="FILE", help="write the account as JSON")
    convert.add_argument(
        "--strict", action="store_true", help="stop at the first row that cannot be used"
    )
    convert.add_argument(
        "--template", metavar="T", help="--to openchat_v1: chat template that makes tokens of text"
    )
    convert.add_argument(
        "--tokenizer", metavar="DIR", help="with --template: the model's tokenizer"
    )
    convert.add_argument(
        "--context", type=int, metavar="N", help="with --template: cut to N tokens (default 2048)"
    )
    convert.set_defaults(run_command=_convert)
    stats = actions.add_parser(
        "stats", help="rows, turns, lengths, lexical diversity and duplicates of data"
    )
    _add_input(stats)
    stats.add_argument("--tokenizer", metavar="DIR", help="count tokens with this tokenizer")
    stats.add_argument("--report", type=Path, metavar="FILE", help="write the numbers as JSON")
    stats.set_defaults(run_command=_stats)


def _add_input(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input",
        metavar="IN",
        help="file, folder, - (standard input), or hf:NAME[:CONFIG][:SPLIT] of a data set",
    )
    add_format(parser)
    add_questions(parser)
    add_reading(parser)


def _convert(options: argparse.Namespace) -> int:
    from rayward.data.formats.convert import convert, outputs
    from rayward.data.formats.files.overwriting import refuse_overwriting
    from rayward.data.values import UnusableError
    from rayward.pipelines.run.files import write_json
    from rayward.pipelines.run.metrics import table

    # Before the work: the report would take the place of its own input.
    targets = [*outputs(options.out, options.to), options.report]
    refuse_overwriting(targets, [options.input, options.questions])
    asked = read_options(options)
    encode = _encoder(options.template, options.tokenizer, options.context)
    converted = convert(
        options.input,
        options.out,
        options.source,
        options.to,
        options.questions,
        options.strict,
        encode,
        asked,
    )
    account = converted.as_dict()
    warn_of_unmet(asked, account["passed_over"])
    if options.report:
        write_json(options.report, account)
    if not converted.written:
        raise UnusableError(f"{options.input}: {converted.nothing()}")
    print(f"{options.input} -> {options.out}")
    table("", account_rows(account))
    if account["rejected"]:
        print(f"rejected rows: {options.out}.rejected.jsonl")
    return 0


def no_usable_row(path: str, read: int, rejected: Mapping[str, int]) -> str:
    """What to say of a file of which nothing can be used."""
    why = ", ".join(f"{reason} ({count})" for reason, count in rejected.items())
    return f"{path}: no usable row of {read} read" + f": {why}" * bool(why)


def _encoder(template: str | None, tokenizer: str | None, context: int | None) -> Encode | None:
    """What makes token rows of conversations, where the options ask for it; ValueError for half."""
    if not template and not tokenizer and context is None:
        return None
    if not template or not tokenizer or (context is not None and context < 2):
        raise ValueError(
            "token rows need --template and --tokenizer, and a --context of at least 2 if any"
        )
    from rayward.data.formats.files.token_rows import encoder
    from rayward.data.templates.known_ids import assert_known_ids
    from rayward.data.templates.template import find, stop_token_ids
    from rayward.data.templates.tokenizer import load_tokenizer

    chat_template, loaded = find(template), load_tokenizer(tokenizer)
    assert_known_ids(chat_template, loaded)
    stop_token_ids(chat_template, loaded)  # raises now where no row could be encoded
    return encoder(chat_template, loaded, context or 2048)


def account_rows(account: dict[str, Any]) -> list[tuple[str, int]]:
    """An account as lines of a table."""
    rows: list[tuple[str, int]] = []
    rows += [(name, account[name]) for name in ("read", "usable", "written") if name in account]
    # Without it, "written" could be more than "usable" without a reason.
    if account.get("expanded"):
        rows.append(("written beyond one a row", account["expanded"]))
    for name in ("rejected", "repaired", "passed_over"):
        told = name.replace("_", " ")
        rows += [(f"{told}: {reason}", count) for reason, count in sorted(account[name].items())]
    return rows


def _stats(options: argparse.Namespace) -> int:
    from rayward.data.formats.files.overwriting import refuse_overwriting
    from rayward.data.templates.tokenizer import load_tokenizer
    from rayward.data.values import UnusableError
    from rayward.pipelines.data_tools.stats import PERCENTILES, stats
    from rayward.pipelines.run.files import write_json
    from rayward.pipelines.run.metrics import table

    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    refuse_overwriting([options.report], [options.input, options.questions])
    asked = read_options(options)
    numbers = stats(options.input, options.source, tokenizer, options.questions, asked)
    warn_of_unmet(asked, numbers["passed_over"])
    if options.report:
        write_json(options.report, numbers)
    if not numbers["records"]:
        raise UnusableError(no_usable_row(options.input, numbers["read"], numbers["rejected"]))
    rows = account_rows(numbers)
    rows += [(f"records: {kind}", count) for kind, count in numbers["records"].items()]
    rows += [
        (name, numbers[name])
        for name in ("duplicates", "answers", "mtld")
        if numbers[name] is not None
    ]
    print(options.input)
    table("", rows)
    columns = ("sum", "mean", *(f"p{percent}" for percent in PERCENTILES))
    # A quantity that was not counted, or is not in these records, is a sentence or empty.
    lengths = [
        (name, *(numbers[name][column] for column in columns))
        for name in ("turns", "characters", "answer_characters", "tokens")
        if isinstance(numbers[name], dict) and numbers[name]
    ]
    if lengths:
        table("per record (answer_characters: per answer)", lengths, ("", *columns))
    if numbers["languages"]:
        table("languages", list(numbers["languages"].items())[:MAX_PRINTED])
    if isinstance(numbers["tokens"], str):
        print(f"tokens: {numbers['tokens']}")
    return 0
