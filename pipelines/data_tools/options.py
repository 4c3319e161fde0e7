"""Options that several commands under `rayward data` take."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayward.data.formats.fields import ReadOptions


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
    from rayward.data.formats.fields import ReadOptions
    from rayward.data.formats.mapped import field_map

    names = {name.strip() for given in options.ignore for name in given.split(",")}
    asked = ReadOptions(frozenset(names - {""}), options.imitate_good)
    if not options.fields and not options.roles:
        return asked
    mapped = field_map(options.fields, options.roles)
    return replace(asked, fields=mapped.fields, roles=mapped.roles)
