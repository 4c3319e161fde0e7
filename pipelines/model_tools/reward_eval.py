"""`rayward reward-eval MODEL DATA...`: how far a reward model can be trusted, by source.

Beside what chance and length explain; as a table, as JSON and as one HTML page that needs no
network.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from rayward.actors.training.rankings import RankedRows
    from rayward.data.ragged import Ragged
    from rayward.data.records import Ranking
    from rayward.pipelines.rows.left_out import LeftOut

# Sections of RewardBench (arXiv:2403.13787): its average over subsets counts prompts, but math as
# much as all code.
SECTIONS = {
    "chat": "alpacaeval-easy alpacaeval-length alpacaeval-hard mt-bench-easy mt-bench-med",
    "chat hard": "mt-bench-hard llmbar-natural llmbar-adver-neighbor llmbar-adver-GPTInst "
    "llmbar-adver-GPTOut llmbar-adver-manual",
    "safety": "refusals-dangerous refusals-offensive xstest-should-refuse xstest-should-respond "
    "donotanswer",
    "math": "math-prm",
    "code": "hep-cpp hep-go hep-java hep-js hep-python hep-rust",
}

CHUNK_ROWS = 512  # rows of one call, which has cluster.call_timeout_s
MAX_PRINTED = 5  # rows that were left out, on the terminal


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "reward-eval",
        help="measure a reward model on rankings and pairs",
        description="Files of RewardBench, RewardBench 2 and RM-Bench are known by their columns, "
        "and get the figures of these benchmarks beside.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder or hub name of the reward model")
    parser.add_argument(
        "data", nargs="+", metavar="DATA", help="files, folders or hf:NAME of rankings and pairs"
    )
    parser.add_argument("--second", metavar="MODEL", help="another reward model, for agreement")
    parser.add_argument(
        "--template", default="tokenizer", help="chat template (default: the model's own)"
    )
    parser.add_argument(
        "--context",
        type=int,
        default=2048,
        metavar="N",
        help="longest answer in tokens (default 2048)",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes that score (default 1)"
    )
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs for each (default 0)")
    parser.add_argument(
        "--threads", type=int, default=2, help="compute threads of each on the CPU (default 2)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write report.json and report.html there"
    )
    parser.set_defaults(run_command=_run)


def _run(options: argparse.Namespace) -> int:
    from rayward.data.formats.files.overwriting import refuse_overwriting
    from rayward.data.model_files.hub_models import fetched
    from rayward.pipelines.report.reward_page import bench_table, write_page
    from rayward.pipelines.run.files import write_json
    from rayward.pipelines.run.metrics import table

    if options.out:
        written = [options.out / "report.json", options.out / "report.html"]
        refuse_overwriting(written, options.data)
    options.model = fetched(options.model)
    options.second = options.second and fetched(options.second)
    report = evaluate(options)
    columns = (
        "source",
        "rankings",
        "pairs",
        "accuracy [95 %]",
        "longer",
        "length-matched",
        "tau",
        "top-1",
        "ECE",
    )
    rows = [(name, *_row(measures)) for name, measures in report["sources"].items()]
    table(report["model"], rows, columns)
    if report["sections"]:
        table("RewardBench", report["sections"])
    for name, figures in report["benches"].items():
        table(*bench_table(name, figures))
        if figures["missing"]:
            print(f"{name}: no row of {', '.join(figures['missing'])}")
    if report["left_out"]:
        table("left out", report["left_out"])
    for row in report["left_out_rows"][:MAX_PRINTED]:
        print("{where}: {reason}: found {found}, expected {expected}".format(**row))
    if (more := len(report["left_out_rows"]) - MAX_PRINTED) > 0:
        print(f"... and {more} more" + ("" if options.out else " (--out DIR writes all)"))
    if options.out:
        write_json(options.out / "report.json", report)
        print(write_page(options.out / "report.html", report))
    return 0


def _row(measures: dict[str, Any]) -> tuple:
    """The columns of a source after its name."""
    accuracy = measures["accuracy"]
    interval = f"{accuracy['mean']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]"
    numbers = (
        accuracy["length_baseline"],
        measures["length_matched"]["mean"],
        measures["kendall_tau"],
        measures["top_1"],
        measures["calibration"]["error"],
    )
    rounded = (round(number, 3) for number in numbers)
    return (measures["rankings"], accuracy["pairs"], interval, *rounded)


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """All measures of the model by source, and of everything together as "all"."""
    from rayward.cluster.connect import connect
    from rayward.configs.sections.machines import Cluster
    from rayward.data.templates.template import find
    from rayward.data.templates.tokenizer import load_tokenizer
    from rayward.data.values import UnusableError
    from rayward.pipelines.rows.left_out import LeftOut
    from rayward.pipelines.rows.ranked import ranked_rows
    from rayward.pipelines.rows.renderer import Renderer, check_vocabulary
    from rayward.pipelines.run.stage import versions
    from rayward.pipelines.scoring.benches import by_bench
    from rayward.pipelines.scoring.reward_measures import by_source

    left_out = LeftOut()
    rankings = list(rankings_of(options.data, left_out))

    def ids_for(
        model: str, rankings: list[Ranking], context: int, seed: int | None
    ) -> tuple[list[Ranking], RankedRows]:
        tokenizer = load_tokenizer(model)
        check_vocabulary(tokenizer, model)
        renderer = Renderer(find(options.template), tokenizer, context)
        return ranked_rows(rankings, renderer, seed, left_out)

    kept, rows = ids_for(options.model, rankings, options.context, options.seed)
    if not kept:
        raise UnusableError(
            f"no ranking can be scored: {json.dumps(left_out)}; {left_out.rows[:1]}"
        )
    # The second model reads the same answers in the same order in its own tokens: without a limit,
    # since it must drop none of them, and without a seed, since ties are in an order already.
    second_rows = None
    if options.second:
        both, second_rows = ids_for(options.second, kept, sys.maxsize, None)
        # Its template may refuse some: they are left out of both.
        names = {ranking.id for ranking in both}
        rows = rows.take([index for index, ranking in enumerate(kept) if ranking.id in names])
        kept = both
        if not kept:
            raise UnusableError(
                f"{options.second} can score no ranking: {json.dumps(left_out)}; "
                f"{left_out.rows[:1]}"
            )
    connect(Cluster())
    scores = score(options, options.model, rows.ids.take(range(len(rows.ids))))
    second = None
    if second_rows:
        second_ids = second_rows.ids.take(range(len(second_rows.ids)))
        second = score(options, options.second, second_ids)
    sources = by_source(scores, kept, rows, options.seed, second)
    each = iter(scores.tolist())
    scores_of = {
        ranking.id: {answer.strip(): next(each) for answer in ranking.answers} for ranking in kept
    }
    return {
        "model": str(options.model),
        "second": options.second,
        "data": options.data,
        "template": options.template,
        "sources": sources,
        "sections": _sections(sources),
        "benches": by_bench(options.data, scores_of, left_out, options.seed),
        "left_out": dict(left_out),
        "left_out_rows": left_out.rows,
        "versions": versions(),
    }


def rankings_of(paths: Sequence[str], left_out: LeftOut) -> Iterator[Ranking]:
    """The rankings and pairs of files, with FILE:LINE as their id; others are in `left_out`."""
    from dataclasses import replace

    from rayward.data.formats.registry import outcomes
    from rayward.data.records import Preference, Ranking

    for path in paths:
        for outcome in outcomes(path, token_files=False):
            where = f"{outcome.file}:{outcome.line}"
            if error := outcome.error:
                left_out.add(
                    f"{where}: {error.field}", f"row: {error.reason}", error.found, error.expected
                )
            for record in outcome.records:
                record = record.as_ranking() if isinstance(record, Preference) else record
                if isinstance(record, Ranking):
                    # The ids of data need not be unique, and the second model is matched by them.
                    yield replace(record, id=where)
                    continue
                kind = f"a {type(record).__name__.lower()}"
                rule = f"{kind} has no answers to compare"
                left_out.add(where, rule, kind, "a ranking or a pair")


def score(options: argparse.Namespace, model: str, ids: Ragged) -> np.ndarray:
    """One score a row [B], by as many processes as are asked for."""
    import numpy as np
    from tqdm import tqdm

    from rayward.actors.frozen_groups import RewardGroup
    from rayward.actors.group import running
    from rayward.configs.sections.machines import Cluster, Role

    role = Role(
        workers=options.workers,
        cpus=1 / options.workers,  # one in all, so that any number fits any machine
        gpus=options.gpus,
        threads=options.threads,
    )
    folder = str(Path(model).resolve())  # actors have working directories of their own
    micro_batch_tokens = 8192 if options.gpus else 1024
    group = RewardGroup(folder, options.dtype, micro_batch_tokens, role, Cluster())
    with running(group):
        starts = range(0, len(ids), CHUNK_ROWS)
        chunks = [range(start, min(start + CHUNK_ROWS, len(ids))) for start in starts]
        bar = tqdm(
            chunks,
            desc=f"scores of {Path(model).name}",
            unit="chunk",
            disable=not sys.stderr.isatty(),
        )
        return np.concatenate([group.score(ids.take(chunk)) for chunk in bar])


def _sections(sources: dict[str, Any]) -> dict[str, float]:
    """RewardBench's sections, of the subsets that are there."""
    accuracies: dict[str, float] = {}
    for section, names in SECTIONS.items():
        parts = [
            sources[f"rewardbench/{name}"]["accuracy"]
            for name in names.split()
            if f"rewardbench/{name}" in sources
        ]
        if parts:
            correct = sum(part["mean"] * part["pairs"] for part in parts)
            accuracies[section] = correct / sum(part["pairs"] for part in parts)
    # Math counts as much as all of code, which has more pairs.
    reasoning = [accuracies.pop(name) for name in ("math", "code") if name in accuracies]
    if reasoning:
        accuracies["reasoning"] = sum(reasoning) / len(reasoning)
    if accuracies:
        accuracies["average of sections"] = sum(accuracies.values()) / len(accuracies)
    return accuracies
