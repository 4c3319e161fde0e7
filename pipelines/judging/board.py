"""`rayward judge board RUN|FILE...`: any number of models over all suites, on one page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayward.pipelines.judging.pages.board_figures import Board, Figure


def add(actions: argparse._SubParsersAction) -> None:
    """Declare the command."""
    parser = actions.add_parser(
        "board", help="compare models and runs over all suites, on one HTML page"
    )
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="RUN|FILE",
        help="run folders; what judge winrate, scores and agreement write with --json; folders or "
        "summary.json of judge pairwise; results of lm-eval",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="PAGE", help="the page")
    parser.set_defaults(run_command=_run)


def _run(options: argparse.Namespace) -> int:
    from rayward.data.formats.files.overwriting import refuse_overwriting
    from rayward.pipelines.judging.pages.board_figures import read
    from rayward.pipelines.report.page import render

    files = [path for path in options.paths if not path.is_dir()]
    refuse_overwriting([options.out], files)
    board = read(options.paths)
    page = render(
        "board.html",
        title="Board",
        suites=suites(board),
        models=models(board),
        judges=board.judges,
        trained=board.trained,
        paths=[str(path) for path in options.paths],
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(page, encoding="utf-8")
    print(options.out)
    return 0


def suites(board: Board) -> list[dict[str, Any]]:
    """Each suite's figures, the best first; of a model with several the last counts."""
    by_suite: dict[str, dict[str, Figure]] = {}
    for figure in board.figures:
        by_suite.setdefault(figure.suite, {})[figure.model] = figure
    return [
        {
            "name": name,
            "figures": [_shown(each) for each in sorted(of.values(), key=lambda each: -each.value)],
        }
        for name, of in by_suite.items()
    ]


def models(board: Board) -> list[dict[str, Any]]:
    """A row a model: its figure in each suite, None where there is none."""
    rows: dict[str, dict[str, Any]] = {}
    every = suites(board)
    for figure in board.figures:
        rows.setdefault(figure.model, {})
    for suite in every:
        for place, figure in enumerate(suite["figures"]):
            rows[figure["model"]][suite["name"]] = {**figure, "best": place == 0}
    return [
        {"model": model, "cells": [of.get(suite["name"]) for suite in every]}
        for model, of in rows.items()
    ]


def _shown(figure: Figure) -> dict[str, Any]:
    """A figure and where its bar and interval lie on the scale, in percent of its width."""
    start, end = figure.scale

    def place(value: float) -> float:
        return min(100.0, max(0.0, 100 * (value - start) / (end - start)))

    low, high = figure.low, figure.high
    interval = None if low is None or high is None else (place(low), place(high) - place(low))
    return {
        "model": figure.model,
        "value": figure.value,
        "low": low,
        "high": high,
        "n": figure.n,
        "width": place(figure.value),
        "interval": interval,
    }
