"""`rayward judge agreement LABELS...`: how far a judge can be trusted, beside people and length."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rayward.pipelines.judging.options import add_json, tell_left_out, write_result

if TYPE_CHECKING:
    from rayward.data.judging.labels import LabelledPair, Rejudged
    from rayward.pipelines.rows.left_out import LeftOut

NO_LABEL = "no label: no answer has more than half of the labellers"


def add(actions: argparse._SubParsersAction) -> None:
    """Declare the command."""
    parser = actions.add_parser(
        "agreement",
        help="hold judges against human labels or another judge, and against length",
        description="Intervals: 95 % percentile bootstrap over prompts. The judge that takes the "
        "longer answer is always measured with the others.",
    )
    parser.add_argument(
        "labels",
        nargs="+",
        metavar="LABELS",
        help="PandaLM's test set, rankings or pairs in any format (best first), or verdicts",
    )
    parser.add_argument(
        "--verdicts",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="verdicts of judges on these pairs, as judge pairwise writes them",
    )
    parser.add_argument(
        "--rankings",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="rankings of the same answers made again: rows with order, the earlier ranks from "
        "the judge's best to its worst",
    )
    parser.add_argument(
        "--pairs", type=int, metavar="N", help="of so many pairs, drawn by the seed (default: all)"
    )
    parser.add_argument(
        "--write",
        type=Path,
        metavar="DIR",
        help="write question.jsonl, first.jsonl and second.jsonl there, for judge pairwise",
    )
    parser.add_argument("--seed", type=int, default=0, help="of drawing pairs and of the bootstrap")
    add_json(parser)
    parser.set_defaults(run_command=_run)


def _run(options: argparse.Namespace) -> int:
    from rayward.data.formats.files.overwriting import refuse_overwriting
    from rayward.pipelines.judging.pages.measures_shown import tell
    from rayward.pipelines.judging.statistics.labelled_pairs import write_pairs
    from rayward.pipelines.judging.statistics.measures import measure, of_humans, of_rankings
    from rayward.pipelines.rows.left_out import LeftOut

    written = [options.json]
    if options.write:
        written += [
            options.write / name for name in ("question.jsonl", "first.jsonl", "second.jsonl")
        ]
    refuse_overwriting(written, [*options.labels, *options.verdicts, *options.rankings])
    left_out = LeftOut()
    pairs = read_pairs(options.labels, options.seed, left_out)
    report = {
        "labels": options.labels,
        "pairs": len(pairs),
        "humans": of_humans(pairs, options.seed),
    }
    kept = labelled_only(pairs, left_out)
    kept = drawn(kept, options.pairs, options.seed)
    again = read_rankings(options.rankings, left_out)
    report |= {
        "labelled": len(kept),
        "prompts": len({pair.group for pair in kept}),
        "label_ties": sum(pair.label() == 0.5 for pair in kept),
        "judges": measure(kept, options.verdicts, again, options.seed, left_out),
        "rankings": of_rankings(again, options.seed),
    }
    tell(report)
    tell_left_out(left_out)
    if options.write:
        write_pairs(options.write, kept)
        print(
            f"{options.write}: {len(kept)} pairs. rayward judge pairwise "
            f"{options.write}/second.jsonl {options.write}/first.jsonl --questions "
            f"{options.write}/question.jsonl asks a judge about them"
        )
    write_result(options.json, report)
    return 0


def read_pairs(files: Sequence[str], seed: int, left_out: LeftOut) -> list[LabelledPair]:
    """The labelled pairs of files; rows that hold none are in `left_out`.

    Where the same id comes again, which two files of the same name have, it gets a number.
    ValueError: there is no pair.
    """
    from dataclasses import replace

    from rayward.data.judging.annotations import BadRow
    from rayward.data.judging.labels import labelled_pairs
    from rayward.pipelines.judging.statistics.verdict_groups import add_bad_row, no_row

    found: dict[str, LabelledPair] = {}
    for path in files:
        for pair in labelled_pairs(path, seed):
            if isinstance(pair, BadRow):
                add_bad_row(left_out, pair)
                continue
            if not pair.labels:
                left_out.add(f"{path}: {pair.id}", "no label: a verdict is missing", "null", "one")
                continue
            name, number = pair.id, 1
            while name in found:
                number += 1
                name = f"{pair.id}-again-{number}"
            found[name] = replace(pair, id=name)
    if not found:
        raise no_row(files, "labelled pair", left_out)
    return list(found.values())


def labelled_only(pairs: list[LabelledPair], left_out: LeftOut) -> list[LabelledPair]:
    """The pairs on which most labellers agree; the others are in `left_out`."""
    kept = [pair for pair in pairs if pair.label() is not None]
    for _ in range(len(pairs) - len(kept)):
        left_out.add("labels", NO_LABEL, "as many for another", "a majority")
    return kept


def read_rankings(files: Sequence[str], left_out: LeftOut) -> list[Rejudged]:
    """The rankings of files that were made again; rows that hold none are in `left_out`."""
    from rayward.data.judging.annotations import BadRow
    from rayward.data.judging.labels import rejudged
    from rayward.pipelines.judging.statistics.verdict_groups import add_bad_row, no_row

    found: list[Rejudged] = []
    for path in files:
        for each in rejudged(path):
            if isinstance(each, BadRow):
                add_bad_row(left_out, each)
            else:
                found.append(each)
    if files and not found:
        raise no_row(files, "ranking", left_out)
    return found


def drawn(pairs: list[LabelledPair], count: int | None, seed: int) -> list[LabelledPair]:
    """So many of them by the seed, in their order. ValueError: there are fewer."""
    if count is None:
        return pairs
    if not 1 <= count <= len(pairs):
        raise ValueError(f"--pairs is {count}, but there are {len(pairs)} labelled pairs")
    chosen = random.Random(seed).sample(range(len(pairs)), count)
    return [pairs[index] for index in sorted(chosen)]
