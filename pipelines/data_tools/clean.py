"""`rayward data clean`: saved ShareGPT pages and raw JSON to conversations, on all cores or a
cluster.

Ray Data tasks read and clean the pages; one loop here sifts them in the order of the file names
(data/cleaning/sieve.py), so that neither order nor number of CPUs changes a byte of the result.
Rows of raw JSON follow the pages. Their files are read here, once, and the rows go to tasks, a few
more than there are CPUs at a time.

The data set starts from paths, not from `read_binary_files`, so that a file which cannot be read is
one rejected page instead of a failed run. On a cluster, all nodes need to see the folder.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

    from rayward.data.cleaning.sieve import SieveRules

PAGES_A_TASK = 64  # at most; of rows, too
COLUMNS: dict[str, Any] = {
    "id": "text",
    "model": "text",
    "views": "integer",
    "items": [{"from": "text", "value": "text"}],
}


def add(actions: argparse._SubParsersAction) -> None:
    """Declare the command."""
    parser = actions.add_parser(
        "clean",
        help="ShareGPT pages (*.html) and raw JSON to Markdown conversations, without duplicates",
    )
    parser.add_argument(
        "folder",
        type=Path,
        metavar="DIR",
        help="folder of pages, or of rows whose answers are HTML; folders in it are read, too. Or "
        "one file of such rows",
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
    from rayward.data.formats.convert import rejected_path
    from rayward.data.formats.files.overwriting import refuse_overwriting
    from rayward.pipelines.run.metrics import table

    words = tuple(word for word in options.blocked_word or ["openai"] if word)
    rules = SieveRules(words, options.model, options.language, options.near_duplicates)
    rules.check()
    # So that a wrong folder, and an output that would be read, are told before Ray starts.
    pages, raw = input_files(options.folder)
    written = [options.out, rejected_path(options.out), options.report]
    refuse_overwriting(written, [options.folder, *(options.folder / page for page in pages), *raw])
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
    """Clean the pages and raw rows below `folder`, or of one file, into `out`.

    The others are listed in `out`.rejected.jsonl.

    Needs a Ray that is connected. `cpus`: pages at a time, by default the cluster's CPUs. Returns
    the report: "read" pages and rows, "written" ones, and "rejected" by reason, which add up.
    FileNotFoundError where there is no page; ValueError for rules or a number of `cpus` that cannot
    be. `out` appears last, and whole.
    """
    from tqdm import tqdm

    from rayward.data.cleaning.sieve import Sieve, display_name
    from rayward.data.formats.convert import rejected_path
    from rayward.data.formats.files.containers import rows as rows_of
    from rayward.data.formats.files.outputs import open_output
    from rayward.pipelines.run.files import write_json

    rules.check()
    pages, raw = input_files(folder)
    # Read twice, so that the bar has an end: reading is a small part of the work.
    num_items = len(pages) + sum(1 for file in raw for _ in rows_of(file))
    sieve = Sieve(rules)
    with (
        open_output(out, COLUMNS) as kept,
        open_output(rejected_path(out)) as bad,
    ):
        cleaned: Iterator[tuple[str, dict[str, Any]]] = iter(())
        if pages:
            cleaned = zip(pages, _cleaned(folder, pages, rules, cpus), strict=True)
        if raw:
            cleaned = chain(cleaned, _cleaned_rows(folder, raw, rules, cpus))
        # Of equal pages the first stays, so the sieve has to see them in one order, in one process.
        for name, row in tqdm(cleaned, total=num_items, unit=" pages", disable=None):
            line, refusal = sieve.decide(display_name(name), row)
            if refusal is None:
                kept.write(json.loads(line))
            else:
                bad.write(refusal)
        report = {"read": num_items, "written": sieve.written, "rejected": dict(sieve.rejected)}
        if report["read"] != sieve.written + sieve.rejected.total():
            raise AssertionError(f"not every page is accounted for: {report}")
        if report_path:
            write_json(report_path, report)
    return report


def input_files(folder: Path) -> tuple[list[str], list[Path]]:
    """Paths of the pages below `folder`, relative to it, and of the files of rows; each sorted.

    `folder` may be a file of rows. FileNotFoundError where there is neither.
    """
    from rayward.data.formats.files.containers import data_files

    if folder.is_file():
        return [], [folder]
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, nor a file")
    # A saved page may have a folder of the same name beside it; links to nothing are kept, and
    # become pages that cannot be read.
    pages = (
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in (".html", ".htm") and not path.is_dir()
    )
    files = sorted(path.relative_to(folder).as_posix() for path in pages)
    try:
        raw = data_files(folder)
    except FileNotFoundError:
        raw = []
    if not files and not raw:
        raise FileNotFoundError(
            f"{folder}: no page; expected names that end in .html, or files of rows (.json)"
        )
    return files, raw


def _checked_cpus(cpus: int | None) -> int:
    """`cpus`, or all that Ray has. ValueError for more."""
    import ray

    have = int(ray.cluster_resources().get("CPU", 0))
    if cpus is not None and not 1 <= cpus <= have:
        raise ValueError(f"{cpus} CPUs asked for, Ray has {have}; give 1 to {have}")
    return cpus or have


def _cleaned_rows(
    folder: Path, files: Sequence[Path], rules: SieveRules, cpus: int | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(FILE:LINE, what `clean_raw` made) of each row of each file, in order."""
    import ray

    from rayward.data.formats.files.containers import rows as rows_of

    named = (
        (f"{file.relative_to(folder) if folder != file else file.name}:{line}", value)
        for file in files
        for line, value in rows_of(file)
    )
    task = ray.remote(num_cpus=1)(clean_rows)
    rules_once = ray.put(rules)
    # What is done waits here for its turn, so the number of batches bounds the memory.
    limit = _checked_cpus(cpus)
    waiting: deque[Any] = deque()
    while batch := list(islice(named, PAGES_A_TASK)):
        waiting.append(([name for name, _ in batch], task.remote(batch, rules_once)))
        if len(waiting) > limit:
            names, made = waiting.popleft()
            yield from zip(names, ray.get(made), strict=True)
    for names, made in waiting:
        yield from zip(names, ray.get(made), strict=True)


def clean_rows(
    batch: Sequence[tuple[str, Any]], rules: SieveRules
) -> list[dict[str, str | bytes | None]]:
    """What `clean_raw` makes of each row. Run in a task."""
    from rayward.data.cleaning.sieve import clean_raw

    return [clean_raw(name, value, rules) for name, value in batch]


def _cleaned(
    folder: Path, files: Sequence[str], rules: SieveRules, cpus: int | None
) -> Iterator[dict[str, Any]]:
    """What `clean_file` made of each file, in the order of `files`."""
    import ray.data

    have = _checked_cpus(cpus)
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
    tasks = max(-(-len(files) // PAGES_A_TASK), min(len(files), 2 * have))
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
