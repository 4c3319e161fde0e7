"""`rayward data clean`: saved ShareGPT pages to conversations, on all cores or a cluster.

Ray Data tasks read and clean the pages; one loop here sifts them in the order of the file names
(data/cleaning/sieve.py), so that neither order nor number of CPUs changes a byte of the result.

The data set starts from paths, not from `read_binary_files`, so that a file which cannot be read is
one rejected page instead of a failed run. On a cluster, all nodes need to see the folder.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

    from rayward.data.cleaning.sieve import SieveRules

PAGES_A_TASK = 64  # at most
COLUMNS: dict[str, Any] = {
    "id": "text",
    "model": "text",
    "views": "integer",
    "items": [{"from": "text", "value": "text"}],
}


def add(actions: argparse._SubParsersAction) -> None:
    """Declare the command."""
    parser = actions.add_parser(
        "clean", help="ShareGPT pages (*.html) to Markdown conversations, without duplicates"
    )
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="folder of pages; folders in it are read, too"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="F", help="ShareGPT jsonl to write"
    )
    parser.add_argument(
        "--report", type=Path, metavar="R.json", help="write the account of all pages there"
    )
    parser.add_argument(
        "--model", metavar="LABEL", help='keep pages of this model only, as in "Model: GPT-4"'
    )
    parser.add_argument(
        "--blocked-word",
        action="append",
        metavar="WORD",
        help=(
            "leave out conversations that have it in them; repeatable (default openai; '' alone: "
            "no such rule)"
        ),
    )
    parser.add_argument(
        "--near-duplicates",
        type=float,
        metavar="S",
        help="leave out what is similar by S or more, as in 0.8",
    )
    parser.add_argument(
        "--language", metavar="CODE", help="keep conversations in this language only, as in en"
    )
    parser.add_argument("--cpus", type=int, metavar="N", help="CPUs to use (default all)")
    parser.add_argument(
        "--address", help="Ray address to join; without it RAY_ADDRESS, or else a local Ray"
    )
    parser.set_defaults(run_command=_run)


def _run(options: argparse.Namespace) -> int:
    from rayward.cluster.connect import connect
    from rayward.configs.sections.machines import Cluster
    from rayward.data.cleaning.sieve import SieveRules
    from rayward.pipelines.run.metrics import table

    words = tuple(word for word in options.blocked_word or ["openai"] if word)
    rules = SieveRules(words, options.model, options.language, options.near_duplicates)
    rules.check()
    page_files(options.folder)  # so that a wrong folder is told before Ray starts
    connect(Cluster(address=options.address))
    report = clean(options.folder, options.out, rules, options.cpus, options.report)
    table(
        str(options.out),
        {"read": report["read"], "written": report["written"], **report["rejected"]},
    )
    return 0


def clean(
    folder: Path,
    out: Path,
    rules: SieveRules,
    cpus: int | None = None,
    report_path: Path | None = None,
) -> dict[str, Any]:
    """Clean the pages below `folder` into `out`, and list the others in `out`.rejected.jsonl.

    Needs a Ray that is connected. `cpus`: pages at a time, by default the cluster's CPUs. Returns
    the report: "read" pages, "written" rows, and "rejected" by reason, which add up.
    FileNotFoundError where there is no page; ValueError for rules or a number of `cpus` that cannot
    be. `out` appears last, and whole.
    """
    from tqdm import tqdm

    from rayward.data.cleaning.sieve import Sieve, display_name
    from rayward.data.formats.outputs import open_output
    from rayward.pipelines.run.files import write_json

    rules.check()
    files = page_files(folder)
    sieve = Sieve(rules)
    with (
        open_output(out, COLUMNS) as kept,
        open_output(out.with_name(f"{out.name}.rejected.jsonl")) as bad,
    ):
        rows = tqdm(
            _cleaned(folder, files, rules, cpus), total=len(files), unit=" pages", disable=None
        )
        # Of equal pages the first stays, so the sieve has to see them in one order, in one process.
        for file, row in zip(files, rows, strict=True):
            line, refusal = sieve.decide(display_name(file), row)
            if refusal is None:
                kept.write(json.loads(line))
            else:
                bad.write(refusal)
        report = {"read": len(files), "written": sieve.written, "rejected": dict(sieve.rejected)}
        if report["read"] != sieve.written + sieve.rejected.total():
            raise AssertionError(f"not every page is accounted for: {report}")
        if report_path:
            write_json(report_path, report)
    return report


def page_files(folder: Path) -> list[str]:
    """Paths of the pages below `folder`, relative to it, sorted. FileNotFoundError for none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    # A saved page may have a folder of the same name beside it; links to nothing are kept, and
    # become pages that cannot be read.
    pages = (
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in (".html", ".htm") and not path.is_dir()
    )
    files = sorted(path.relative_to(folder).as_posix() for path in pages)
    if not files:
        raise FileNotFoundError(f"{folder}: no page; expected names that end in .html")
    return files


def _cleaned(
    folder: Path, files: Sequence[str], rules: SieveRules, cpus: int | None
) -> Iterator[dict[str, Any]]:
    """What `clean_file` made of each file, in the order of `files`."""
    import ray
    import ray.data

    have = int(ray.cluster_resources().get("CPU", 0))
    if cpus is not None and not 1 <= cpus <= have:
        raise ValueError(f"{cpus} CPUs asked for, Ray has {have}; give 1 to {have}")
    # A copy: other data sets of this process keep their settings.
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # As bytes: a file's name need not be UTF-8, and Arrow's strings have to be.
    root = os.fsencode(folder.resolve())
    items = [
        {"index": index, "path": root + b"/" + os.fsencode(file)}
        for index, file in enumerate(files)
    ]
    # At least two tasks for a CPU, so that a slow one does not leave the others idle for long.
    tasks = max(-(-len(files) // PAGES_A_TASK), min(len(files), 2 * (cpus or have)))
    # The data set keeps the context that it was made in, also outside of this block.
    with ray.data.DataContext.current(context):
        data = ray.data.from_items(items, override_num_blocks=tasks).map_batches(
            clean_batch,
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.TaskPoolStrategy(size=cpus),
            num_cpus=1,
            fn_args=(rules,),
        )
    due = 0
    for batch in data.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in batch.to_pylist():
            if row["index"] != due:
                raise AssertionError(f"page {due} was due, page {row['index']} came")
            due += 1
            yield row


def clean_batch(batch: pyarrow.Table, rules: SieveRules) -> pyarrow.Table:
    """A table of `index` and `path` to one of `index` and what `clean_file` made. Run in a task."""
    import pyarrow

    from rayward.data.cleaning.sieve import clean_file

    # The schema is given, since a batch of rejected pages alone would have columns without a type.
    # Large strings have 64-bit offsets: a batch of long conversations may pass 2 GiB.
    texts = ("row", "hash", "model", "language", "error")
    columns = [
        ("index", pyarrow.int64()),
        ("signature", pyarrow.binary()),
        *((name, pyarrow.large_string()) for name in texts),
    ]
    rows = [
        {"index": row["index"], **clean_file(os.fsdecode(row["path"]), rules)}
        for row in batch.to_pylist()
    ]
    return pyarrow.Table.from_pylist(rows, pyarrow.schema(columns))
