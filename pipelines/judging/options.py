"""Options that several commands under `rayward judge` take, and what they tell alike."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayward.pipelines.rows.left_out import LeftOut

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
