"""`rayward judge page FILE...`: verdicts as one HTML page to read, which needs no network."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rayward.pipelines.judging.options import add_seed, tell_left_out

if TYPE_CHECKING:
    from rayward.pipelines.judging.statistics.verdict_groups import Comparison


def add(actions: argparse._SubParsersAction) -> None:
    """Declare the command."""
    parser = actions.add_parser(
        "page", help="write verdicts as one HTML page: rates, categories, answers and reviews"
    )
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="verdicts.jsonl of judge pairwise, annotations.json of AlpacaEval, or OpenChat's "
        "results (MODEL_VS_BASELINE.jsonl)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="PAGE", help="the page, such as page.html"
    )
    add_seed(parser)
    parser.set_defaults(run_command=_run)


def _run(options: argparse.Namespace) -> int:
    from rayward.data.formats.files.overwriting import refuse_overwriting
    from rayward.pipelines.judging.pages.page_data import page_data
    from rayward.pipelines.judging.pages.page_file import write_page
    from rayward.pipelines.judging.statistics.verdict_groups import comparisons
    from rayward.pipelines.rows.left_out import LeftOut

    refuse_overwriting([options.out], options.files)
    left_out = LeftOut()
    found = comparisons(options.files, left_out, keep_rows=True)
    _check(found, options.files)
    data = page_data(found, options.files, dict(left_out), options.seed)
    tell_left_out(left_out)
    print(write_page(options.out, Path(__file__).parent / "pages" / "page.html", data))
    return 0


def _check(found: Sequence[Comparison], files: Sequence[str]) -> None:
    """ValueError for rows a model, which have no texts to show."""
    if any(verdict.place is not None for each in found for verdict in each.verdicts[:1]):
        raise ValueError(
            f"{', '.join(map(str, files))}: lists of preferences have no answers to show; give the "
            "annotations.json or verdicts.jsonl that they are of"
        )
