"""Options that several commands under `rayward data` take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayward.data.formats.mapped import FieldMap


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


def add_fields(parser: argparse.ArgumentParser) -> None:
    """--fields and --roles: rows that no reader knows."""
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


def fields_of(options: argparse.Namespace) -> FieldMap | None:
    """The map that --fields and --roles give, if any. ValueError for one that makes no record."""
    from rayward.data.formats.mapped import field_map

    if not options.fields and not options.roles:
        return None
    return field_map(options.fields, options.roles)
