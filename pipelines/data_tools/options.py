"""Options that several commands under `rayward data` take."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayward.data.formats.rows.fields import ReadOptions


def add_format(parser: argparse.ArgumentParser) -> None:
    """--from: the format of the rows that are read."""
    parser.add_argument(
        "--from",
        dest="source",
        default="auto",
        metavar="FORMAT",
        help="format of the rows (default: told from the rows)",
    )


def add_questions(parser: argparse.ArgumentParser) -> None:
    """--questions: the file that MT-Bench's answers need."""
    parser.add_argument(
        "--questions", type=Path, metavar="FILE", help="MT-Bench: the questions of model answers"
    )


def add_reading(parser: argparse.ArgumentParser) -> None:
    """--fields, --roles, --ignore and --imitate-good: what `read_options` makes of them."""
    parser.add_argument(
        "--fields",
        default="",
        metavar="TARGET=FIELD,...",
        help="rows in no known format: where what is wanted stands, as in prompt=question,"
        "response=answer,system=sys? (with ?: not in every row) or messages=chat,"
        "message.role=speaker,message.content=text; a field may be a path, choices[0].message",
    )
    parser.add_argument(
        "--roles",
        default="",
        metavar="NAME=ROLE,...",
        help="with --fields: what names of speakers stand for, as in customer=user,agent=assistant",
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="FIELD",
        help="do without a field, such as tools, that would set its row aside; may be repeated, "
        "or several with commas",
    )
    parser.add_argument(
        "--imitate-good",
        action="store_true",
        help="take good answers of labelled rows (KTO) as conversations; bad ones are set aside",
    )


def read_options(options: argparse.Namespace) -> ReadOptions:
    """What the user asks of the reader. ValueError for fields that make no record."""
    from rayward.data.formats.mapped import field_map
    from rayward.data.formats.rows.fields import ReadOptions

    names = {name.strip() for given in options.ignore for name in given.split(",")}
    asked = ReadOptions(frozenset(names - {""}), options.imitate_good)
    if not options.fields and not options.roles:
        return asked
    mapped = field_map(options.fields, options.roles)
    return replace(asked, fields=mapped.fields, roles=mapped.roles)


def warn_of_unmet(asked: ReadOptions, passed_over: Iterable[str]) -> None:
    """Say which names of --ignore no row has and nothing knows: mistyped ones, mostly.

    After all rows have been read. `passed_over`: fields that rows have and nobody reads.
    """
    from rayward.data.formats.known.formats import FORMATS
    from rayward.data.formats.rows.meaning import MEANING_OF

    read = {name for form in FORMATS.values() for path in form.reads for name in path.split(".")}
    known = read | MEANING_OF.keys() | asked.met | set(passed_over)
    for name in sorted(asked.ignore - known):
        # What stands in a field that is not read is not looked at.
        outer = {*passed_over, *asked.met}
        if name.split(".")[0] not in outer and name.split(".")[-1] not in MEANING_OF:
            print(f"--ignore {name}: no row has a field of that name", file=sys.stderr)
