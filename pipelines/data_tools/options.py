"""Options that several commands under `rayward data` take."""

from __future__ import annotations

import argparse
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
    """--ignore and --imitate-good: what `read_options` makes of them."""
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
    """What the user asks of the reader."""
    from rayward.data.formats.fields import ReadOptions

    names = {name.strip() for given in options.ignore for name in given.split(",")}
    return ReadOptions(frozenset(names - {""}), options.imitate_good)
