"""`rayward reward-eval MODEL DATA...`: how far a reward model can be trusted, by source, beside
what chance and length explain; as a table, as JSON and as one HTML page that needs no network.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Sections of RewardBench (arXiv:2403.13787): its average over subsets counts prompts, but math as
# much as all code.
SECTIONS = {
    "chat": "alpacaeval-easy alpacaeval-length alpacaeval-hard mt-bench-easy mt-bench-med",
    "chat hard": "mt-bench-hard llmbar-natural llmbar-adver-neighbor llmbar-adver-GPTInst llmbar-adver-GPTOut "
    "llmbar-adver-manual",
    "safety": "refusals-dangerous refusals-offensive xstest-should-refuse xstest-should-respond donotanswer",
    "math": "math-prm",
    "code": "hep-cpp hep-go hep-java hep-js hep-python hep-rust",
}


CHUNK = 512  # rows of one call, which has cluster.call_timeout_s
SHOWN = 5  # rows that were left out, on the terminal


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("reward-eval", help="measure a reward model on rankings and pairs")
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
    from rayward.data.model_files.hub_models import fetched
    from rayward.pipelines.report.reward_page import write_page
    from rayward.pipelines.run.stage import table, write_json

    options.model, options.second = (
        fetched(options.model),
        options.second and fetched(options.second),
    )
    found = evaluate(options)
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
    rows = [(name, *_row(of)) for name, of in found["sources"].items()]
    table(found["model"], rows, columns)
    for name in ("sections", "left_out"):
        if found[name]:
            table(name.replace("_", " "), found[name])
    for row in found["left_out_rows"][:SHOWN]:
        print("{where}: {reason}: found {found}, expected {expected}".format(**row))
    if (more := len(found["left_out_rows"]) - SHOWN) > 0:
        print(f"... and {more} more" + ("" if options.out else " (--out DIR writes all)"))
    if options.out:
        write_json(options.out / "report.json", found)
        print(write_page(options.out / "report.html", found))
    return 0


def _row(of: dict[str, Any]) -> tuple:
    accuracy = of["accuracy"]
    shown = f"{accuracy['mean']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]"
    matched, error = of["length_matched"]["mean"], of["calibration"]["error"]
    numbers = (accuracy["length_baseline"], matched, of["kendall_tau"], of["top_1"], error)
    return (of["rankings"], accuracy["pairs"], shown, *(round(n, 3) for n in numbers))


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """All measures of the model by source, and of everything together as "all"."""
    from rayward.cluster.connect import connect
    from rayward.configs.sections.machines import Cluster
    from rayward.data.templates.template import find
    from rayward.data.templates.tokenizer import load_tokenizer
    from rayward.pipelines.rows.rankings import ranked_rows
    from rayward.pipelines.rows.renderer import Renderer, check_vocabulary
    from rayward.pipelines.rows.rows import LeftOut
    from rayward.pipelines.run.stage import versions
    from rayward.pipelines.scoring.reward_measures import by_source

    left_out = LeftOut()
    rankings = list(rankings_of(options.data, left_out))

    def ids_for(
        model: str, rankings: list[Any], context: int, seed: int | None
    ) -> tuple[list[Any], Any]:
        tokenizer = load_tokenizer(model)
        check_vocabulary(tokenizer, model)
        return ranked_rows(
            rankings, Renderer(find(options.template), tokenizer, context), seed, left_out
        )

    kept, rows = ids_for(options.model, rankings, options.context, options.seed)
    if not kept:
        raise ValueError(f"no ranking can be scored: {json.dumps(left_out)}; {left_out.rows[:1]}")
    # The second model reads the same answers in the same order in its own tokens, however many they
    # are.
    again = None
    if options.second:
        both, again = ids_for(options.second, kept, sys.maxsize, None)
        # Its template may refuse some: they are left out of both.
        names = {ranking.id for ranking in both}
        kept, rows = (
            both,
            rows.take([index for index, ranking in enumerate(kept) if ranking.id in names]),
        )
        if not kept:
            raise ValueError(
                f"{options.second} can score no ranking: {json.dumps(left_out)}; "
                f"{left_out.rows[:1]}"
            )
    connect(Cluster())
    scores = score(options, options.model, rows.ids)
    second = score(options, options.second, again.ids) if again else None
    sources = by_source(scores, kept, rows, options.seed, second)
    return {
        "model": str(options.model),
        "second": options.second,
        "data": options.data,
        "template": options.template,
        "sources": sources,
        "sections": _sections(sources),
        "left_out": dict(left_out),
        "left_out_rows": left_out.rows,
        "versions": versions(),
    }


def rankings_of(paths: Sequence[str], left_out: Any) -> Any:
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
                    yield replace(record, id=where)
                else:
                    kind = type(record).__name__.lower()
                    left_out.add(
                        where,
                        f"a {kind} has no answers to compare",
                        f"a {kind}",
                        "a ranking or a pair",
                    )


def score(options: argparse.Namespace, model: str, ids: Any) -> Any:
    """One score a row, by as many processes as are asked for."""
    import numpy as np
    from tqdm import tqdm

    from rayward.actors.group import RewardGroup, running
    from rayward.cluster.connect import check_fits
    from rayward.configs.sections.machines import Cluster, Role

    role = Role(
        workers=options.workers,
        cpus=1 / options.workers,
        gpus=options.gpus,
        threads=options.threads,
    )
    check_fits({"reward": role})
    group = RewardGroup(
        str(Path(model).resolve()), options.dtype, 8192 if options.gpus else 1024, role, Cluster()
    )
    with running(group):
        chunks = [range(start, min(start + CHUNK, len(ids))) for start in range(0, len(ids), CHUNK)]
        bar = tqdm(
            chunks,
            desc=f"scores of {Path(model).name}",
            unit="chunk",
            disable=not sys.stderr.isatty(),
        )
        return np.concatenate([group.score(ids.take(chunk)) for chunk in bar])


def _sections(sources: dict[str, Any]) -> dict[str, float]:
    """RewardBench's sections, of the subsets that are there; reasoning is the mean of math and
    code.
    """
    found: dict[str, float] = {}
    for section, names in SECTIONS.items():
        parts = [
            sources[f"rewardbench/{name}"]["accuracy"]
            for name in names.split()
            if f"rewardbench/{name}" in sources
        ]
        if parts:
            found[section] = sum(part["mean"] * part["pairs"] for part in parts) / sum(
                part["pairs"] for part in parts
            )
    reasoning = [found.pop(name) for name in ("math", "code") if name in found]
    if reasoning:
        found["reasoning"] = sum(reasoning) / len(reasoning)
    return found | ({"average of sections": sum(found.values()) / len(found)} if found else {})
