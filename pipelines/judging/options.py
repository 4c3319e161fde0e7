"""Options that several commands under `rayward judge` take, and what they tell alike."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayward.pipelines.data_tools.feedback import add_models

if TYPE_CHECKING:
    from rayward.pipelines.rows.left_out import LeftOut

AT_ONCE = 32  # requests
MAX_PRINTED = 5  # rows that were set aside, on the terminal


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json: where the figures go."""
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures there")


def add_seed(parser: argparse.ArgumentParser) -> None:
    """--seed: that of the bootstrap."""
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")


def write_result(out: Path | None, figures: Any) -> None:
    """Write the figures where --json says, and tell so."""
    from rayward.pipelines.run.files import write_json

    if out is not None:
        write_json(out, figures)
        print(out)


def tell_left_out(left_out: LeftOut) -> None:
    """The counts of rows that were set aside by reason, and the first of them with their places."""
    if not left_out:
        return
    total = sum(left_out.values())
    print(f"{total} {'row was' if total == 1 else 'rows were'} set aside:")
    for reason, count in left_out.items():
        print(f"  {count:>6}  {reason}")
    for row in left_out.rows[:MAX_PRINTED]:
        print("{where}: found {found}, expected {expected}".format(**row))
    if len(left_out.rows) > MAX_PRINTED:
        print(f"... and {len(left_out.rows) - MAX_PRINTED} more")


def add_asking(
    parser: argparse.ArgumentParser,
    requests: Mapping[str, dict[str, Any]],
    kinds: str,
    judges: bool = True,
) -> None:
    """Declare what all commands take that ask a model: of one role, with its default fields.

    `kinds`: what the model may be; "" where the command declares it. `judges`: whether its replies
    are read.
    """
    (role,) = requests
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for what is made"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of orders and samples (default 0)"
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="X",
        help=f"most that all replies may cost, at --{role}-price; stops before it is passed",
    )
    if judges:
        parser.add_argument(
            "--unreadable",
            type=int,
            metavar="N",
            help="replies that may not be what was asked for, before it stops (default: a tenth, "
            "and at least 10)",
        )
    add_models(parser, requests, AT_ONCE, kinds)
