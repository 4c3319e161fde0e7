"""`rayward data map`: a picture of what is in data files, as one HTML page that needs no network.

Keeps a seeded sample of the records and hands their texts to data/mapping.py, or first to an
embedding model behind an OpenAI-compatible endpoint; pipelines/data_tools/map_page.py writes the
page.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayward.pipelines.data_tools.options import (
    add_format,
    add_questions,
    add_reading,
    read_options,
)

if TYPE_CHECKING:
    from rayward.data.formats.rows.fields import ReadOptions
    from rayward.data.mapping import Vectors
    from rayward.pipelines.data_tools.map_page import Point

PACKAGES = ("rayward", "numpy", "scikit-learn", "umap-learn", "plotly")
ENDPOINT = re.compile(r"(.+)@(https?://[^@\s]+)")
TEXTS_A_REQUEST = 64
REQUEST_TIMEOUT_S = 120


@dataclass(frozen=True)
class MapSettings:
    """What decides the picture; the options of the same names, which say what each does."""

    dimensions: int = 2
    clusters: int | None = None
    limit: int = 5000
    seed: int = 0
    embedded_characters: int = 6000
    embeddings: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        for name in ("limit", "embedded_characters", "clusters"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {value}: at least 1")
        if self.embeddings and not ENDPOINT.fullmatch(self.embeddings):
            raise ValueError(
                f"--embeddings is {self.embeddings}: expected MODEL@URL, as in "
                "bge-m3@http://host/v1"
            )
        if self.key and not self.embeddings:
            raise ValueError("--key is of use with --embeddings only")
        if self.key and not os.environ.get(self.key):
            raise ValueError(
                f"--key {self.key}: there is no such environment variable, or it is empty"
            )


def add(actions: argparse._SubParsersAction) -> None:
    """Declare the command."""
    parser = actions.add_parser(
        "map", help="a picture of data: similar texts side by side, to search and read"
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="files or folders of rows, or hf:NAME"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="M.html", help="page to write")
    parser.add_argument(
        "--report", type=Path, metavar="R.json", help="write counts, clusters and times as JSON"
    )
    add_format(parser)
    add_questions(parser)
    add_reading(parser)
    parser.add_argument(
        "--dimensions", type=int, choices=(2, 3), default=2, help="of the map (default 2)"
    )
    parser.add_argument(
        "--clusters", type=_clusters, metavar="K", help="how many, or auto (default): best of a few"
    )
    parser.add_argument(
        "--limit", type=int, default=5000, metavar="N", help="records to draw (default 5000)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of sample, vectors and places (default 0)"
    )
    parser.add_argument(
        "--embedded-characters",
        type=int,
        default=6000,
        metavar="N",
        help="read the first N of a text (default 6000)",
    )
    parser.add_argument(
        "--embeddings",
        metavar="MODEL@URL",
        help=(
            "embedding model behind an OpenAI-compatible endpoint, as in "
            "bge-m3@http://127.0.0.1:8000/v1 (default: TF-IDF and SVD, which need no network)"
        ),
    )
    parser.add_argument(
        "--key", metavar="NAME", help="environment variable that holds the endpoint's key"
    )
    parser.set_defaults(run_command=_run)


def _clusters(text: str) -> int | None:
    return None if text == "auto" else int(text)


def _run(options: argparse.Namespace) -> int:
    from rayward.data.formats.files.overwriting import refuse_overwriting
    from rayward.pipelines.run.files import write_json
    from rayward.pipelines.run.metrics import table

    refuse_overwriting([options.out, options.report], [*options.files, options.questions])
    settings = MapSettings(
        **{name: getattr(options, name) for name in MapSettings.__dataclass_fields__}
    )
    asked = read_options(options)
    report = draw(options.files, options.out, settings, options.source, options.questions, asked)
    if options.report:
        write_json(options.report, report)
    account = {name: report[name] for name in ("read", "records", "drawn", "left_out")}
    for what in ("rejected", "repaired", "passed_over"):
        told = what.replace("_", " ")
        account |= {f"{told}: {reason}": count for reason, count in sorted(report[what].items())}
    silhouette = "-" if report["silhouette"] is None else report["silhouette"]
    table("", {**account, "silhouette": silhouette})
    clusters = [(cluster["name"], cluster["size"]) for cluster in report["clusters"]]
    table("", clusters, ("cluster", "records"))
    print(options.out)
    return 0


def draw(
    files: Sequence[str],
    out: Path,
    settings: MapSettings,
    source: str = "auto",
    questions: Path | None = None,
    asked: ReadOptions | None = None,
) -> dict[str, Any]:
    """Write the page of the records in `files` to `out`; the report.

    The seed decides every byte of the page, so times are in the report alone. ValueError where no
    row can be used, and for settings that the data do not allow.
    """
    from rayward.data.mapping import cluster, num_different, place, reduce, term_weights, top_terms
    from rayward.pipelines.data_tools.map_page import parts, write_page
    from rayward.pipelines.run.stage import versions

    seconds: dict[str, float] = {}
    with _timed(seconds, "read"):
        points, counts = sample(files, settings, source, questions, asked)
        whole_texts = ("\n".join(text for _, text in parts(record)) for *_, record in points)
        texts = [text[: settings.embedded_characters] for text in whole_texts]
    with _timed(seconds, "embed"):
        weights_NV, terms = term_weights(texts)
        # The weights of terms are needed in both cases: clusters are named by them.
        if settings.embeddings:
            vectors_ND = embed(texts, settings)
        else:
            vectors_ND = reduce(weights_NV, settings.seed)
    with _timed(seconds, "cluster"):
        clusters = cluster(vectors_ND, settings.clusters, settings.seed)
        topics = top_terms(weights_NV, terms, clusters.cluster_N)
    with _timed(seconds, "place"):
        places_NP = place(vectors_ND, settings.dimensions, settings.seed)
    cluster_of_point = clusters.cluster_N.tolist()
    sizes = Counter(cluster_of_point)
    names = [
        f"{number}: {', '.join(top)}".rstrip(": ") for number, top in enumerate(topics, start=1)
    ]
    report = {
        **counts,
        "drawn": len(points),
        "left_out": counts["records"] - len(points),
        "different": num_different(vectors_ND),
        "clusters": [
            {"name": name, "size": sizes[index], "terms": topics[index]}
            for index, name in enumerate(names)
        ],
        "silhouette": None if clusters.silhouette is None else round(clusters.silhouette, 4),
        "settings": asdict(settings) | {"files": [str(file) for file in files]},
        "versions": versions(PACKAGES),
    }
    # Its own time cannot be in the page, nor can the page's size: both are added below.
    with _timed(seconds, "write"):
        # Rounded, so that the page is smaller; a list for each axis, as plotly.js takes them.
        coordinates = places_NP.round(3).T.tolist()
        write_page(out, report, points, {"names": names, "of": cluster_of_point}, coordinates)
    return {**report, "page_bytes": out.stat().st_size, "seconds": seconds}


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    started_at = time.perf_counter()
    yield
    seconds[phase] = round(time.perf_counter() - started_at, 3)


def sample(
    files: Sequence[str],
    settings: MapSettings,
    source: str = "auto",
    questions: Path | None = None,
    asked: ReadOptions | None = None,
) -> tuple[list[Point], dict[str, Any]]:
    """At most `limit` records, each as likely as any other, in order; counts of all rows.

    Algorithm R (Vitter 1985): record n (from 0) takes a kept one's place with probability
    limit / (n + 1), so that one pass is enough and no more than the sample is held.
    """
    from rayward.data.formats.registry import ACCOUNTS, AS_IT_IS, Report, outcomes
    from rayward.data.values import UnusableError

    rng, report = random.Random(settings.seed), Report()
    kept: list[Point] = []
    number = 0
    for file in files:
        for row in outcomes(file, source, questions, False, asked or AS_IT_IS):
            report.count(row)
            for record in row.records:
                spot = len(kept) if len(kept) < settings.limit else rng.randrange(number + 1)
                if spot < settings.limit:
                    # At the end this adds the record, elsewhere it replaces one.
                    kept[spot : spot + 1] = [(number, row, record)]
                number += 1
    if not kept:
        reasons = [f"{reason} ({count})" for reason, count in report.rejected.items()]
        raise UnusableError(
            f"{' '.join(map(str, files))}: no row to draw of {report.read} read: "
            f"{', '.join(reasons) or 'there are none'}"
        )
    # A replaced place holds a later record: back in the order of the files.
    kept.sort(key=lambda point: point[0])
    counts = {name: dict(getattr(report, name)) for name in ACCOUNTS}
    return kept, {"read": report.read, "records": number, **counts}


def embed(texts: Sequence[str], settings: MapSettings) -> Vectors:
    """Vectors NxD of length 1 from the endpoint of `--embeddings`. ValueError where it fails."""
    import numpy as np
    import openai
    from tqdm import tqdm

    from rayward.data.mapping import unit

    endpoint = ENDPOINT.fullmatch(settings.embeddings or "")
    assert endpoint is not None  # MapSettings has looked
    model, url = endpoint.groups()
    key = os.environ[settings.key] if settings.key else "none"
    client = openai.OpenAI(
        base_url=url.rstrip("/"), api_key=key, timeout=REQUEST_TIMEOUT_S, max_retries=4
    )
    vectors: list[list[float]] = []
    for begin in tqdm(range(0, len(texts), TEXTS_A_REQUEST), unit=" requests", disable=None):
        batch = list(texts[begin : begin + TEXTS_A_REQUEST])
        try:
            answer = client.embeddings.create(model=model, input=batch, encoding_format="float")
        except openai.OpenAIError as error:
            raise ValueError(f"{settings.embeddings}: {error}") from None
        # Nothing says that the vectors come in the order of the texts.
        rows = sorted(answer.data, key=lambda row: row.index)
        if [row.index for row in rows] != list(range(len(batch))):
            raise ValueError(
                f"{settings.embeddings}: {len(batch)} texts were sent, {len(rows)} vectors came "
                "back"
            )
        vectors += [row.embedding for row in rows]
    return unit(np.array(vectors, dtype=np.float64))
