"""`rayward judge winrate FILE...`: numbers of AlpacaEval, from its annotations or from ours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayward.pipelines.judging.options import add_json, add_seed, tell_left_out, write_result
from rayward.pipelines.judging.statistics.verdict_groups import Compared

if TYPE_CHECKING:
    from rayward.pipelines.judging.statistics.length_controlled import Published, Refit
    from rayward.pipelines.judging.statistics.verdict_groups import Comparison

CONTROLLED = "length_controlled_winrate"


def add(actions: argparse._SubParsersAction) -> None:
    """Declare the command."""
    parser = actions.add_parser(
        "winrate",
        help="win rates of AlpacaEval from files of verdicts, with intervals",
        description="Rates are in percent. low and high: 95 % percentile bootstrap of the win "
        "rate over instructions, 10,000 draws.",
    )
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="annotations.json of AlpacaEval, verdicts of judge pairwise, or a row a model with "
        "lists of preferences; folders of these; with --weights none is needed",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="length-controlled rates from these published weights of models (JSON, CSV)",
    )
    parser.add_argument(
        "--difficulty",
        type=Path,
        metavar="FILE",
        help="the difficulty of each instruction, in their order: a list of numbers, or rows with "
        "instruction_difficulty",
    )
    parser.add_argument(
        "--instructions",
        type=Path,
        metavar="FILE",
        help="with --refit: the instructions of these difficulties, where files have another order",
    )
    parser.add_argument(
        "--refit",
        action="store_true",
        help="length-controlled rates from weights that are fitted to the verdicts; without "
        "--difficulty by length alone",
    )
    parser.add_argument(
        "--lc-resamples",
        type=int,
        default=0,
        metavar="N",
        help="with --refit: interval of the length-controlled rate from so many fits to resampled "
        "instructions (default 0: none; 200 take a second or two a model)",
    )
    parser.add_argument(
        "--style",
        action="store_true",
        help="also rates without the advantage of length, headers, lists and bold texts, as "
        "Arena-Hard controls style; models with one baseline and judge share the weights of style",
    )
    parser.add_argument(
        "--leaderboard",
        type=Path,
        metavar="FILE",
        help="published rows (JSON, CSV) of the models, to say how far these figures are from them",
    )
    parser.add_argument(
        "--paired",
        nargs=2,
        action="append",
        default=[],
        metavar=("A", "B"),
        help="also the difference of two models on the same instructions; repeatable",
    )
    add_seed(parser)
    add_json(parser)
    parser.set_defaults(run_command=_run)


def _run(options: argparse.Namespace) -> int:
    from rayward.data.formats.files.overwriting import refuse_overwriting
    from rayward.pipelines.judging.pages.winrate_shown import tell, tell_refit
    from rayward.pipelines.judging.statistics.length_controlled import Published
    from rayward.pipelines.judging.statistics.paired import add_pairs
    from rayward.pipelines.judging.statistics.published import compare
    from rayward.pipelines.judging.statistics.style import add_style
    from rayward.pipelines.judging.statistics.verdict_groups import comparisons
    from rayward.pipelines.rows.left_out import LeftOut

    _check(options)
    tables = [options.weights, options.difficulty, options.instructions, options.leaderboard]
    refuse_overwriting([options.json], [*options.files, *tables])
    left_out = LeftOut()
    found = comparisons(options.files, left_out, options.style) if options.files else []
    control = _control(options, [each.of.baseline for each in found])
    rows = [figures(each, control, options.seed) for each in found]
    if isinstance(control, Published) and not options.files:
        rows = [row for model in control.weights if (row := _of_weights(model, control))]
    tell(rows)
    if options.refit:
        tell_refit(options.difficulty)
    if options.style and found:
        add_style(rows, found, options.seed)
    add_pairs(rows, found, options.paired, options.seed)
    if options.leaderboard:
        compare(rows, options.leaderboard)
    tell_left_out(left_out)
    write_result(options.json, rows)
    return 0


def _check(options: argparse.Namespace) -> None:
    """ValueError for options that do not go together."""
    if not options.files and not options.weights:
        raise ValueError("no FILE: give verdicts, or --weights and --difficulty")
    if options.weights and options.refit:
        raise ValueError("--weights are published ones and --refit makes others: give one of them")
    if options.weights and not options.difficulty:
        raise ValueError("--weights needs --difficulty, the file that its weights belong to")
    if options.difficulty and not (options.weights or options.refit):
        raise ValueError("--difficulty is of use with --weights or --refit only")
    if options.lc_resamples < 0 or (options.lc_resamples and not options.refit):
        raise ValueError("--lc-resamples is of use with --refit only, and at least 0")
    if options.instructions and not (options.refit and options.difficulty):
        raise ValueError("--instructions is of use with --refit and --difficulty only")


def _control(options: argparse.Namespace, baselines: list[str]) -> Published | Refit | None:
    """What makes the length-controlled rates."""
    from rayward.pipelines.judging.statistics.length_controlled import Published, Refit

    if options.refit:
        resamples, seed = options.lc_resamples, options.seed
        return Refit(options.difficulty, options.instructions, resamples, seed)
    if options.weights:
        published = Published(options.weights, options.difficulty)
        published.check(baselines, options.weights)
        return published
    return None


def figures(comparison: Comparison, control: Published | Refit | None, seed: int) -> dict[str, Any]:
    """What AlpacaEval's leaderboard says of a model, with the interval of its win rate."""
    from rayward.algorithms.judging.win_rates import win_rate
    from rayward.pipelines.judging.statistics.length_controlled import Refit

    of, verdicts = comparison.of, comparison.verdicts
    rate = win_rate(comparison.preferences, seed)
    controlled: dict[str, Any] = {}
    if isinstance(control, Refit):
        controlled = control.figures(comparison)
    elif control and control.is_for(of.baseline):
        controlled = control.figures(of.model)
    # An answer that is missing has no length.
    lengths = [verdict.length_2 for verdict in verdicts if verdict.length_2 is not None]
    return {
        **_row(of),
        **rate,
        "avg_length": int(sum(lengths) / len(lengths)) if lengths else None,
        "n_missing": len(verdicts) - rate["n_total"],
        **controlled,
    }


def _of_weights(model: str, published: Published) -> dict[str, Any]:
    """What published weights alone say of a model."""
    row = _row(Compared(model, published.baseline or "", ""))
    return {**row, **published.figures(model)}


def _row(of: Compared) -> dict[str, Any]:
    """A model's row before anything is known of it, in the order in which it is written."""
    return {
        "model": of.model,
        "win_rate": None,
        "standard_error": None,
        "discrete_win_rate": None,
        CONTROLLED: None,
        "n_total": 0,
        "avg_length": None,
        "low": None,
        "high": None,
        "baseline": of.baseline,
        "annotator": of.annotator,
        "n_missing": 0,
        "lc_standard_error": None,
    }
