"""Options that several commands under `rayward data` take."""

from __future__ import annotations

import argparse
from pathlib import Path


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
