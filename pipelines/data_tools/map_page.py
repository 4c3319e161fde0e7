"""The page of `rayward data map`: map_page.html with plotly.js and the records put in; it needs no
network.

The texts are in it as JSON without any "<", and its script shows them as text only, so that no text
can act as markup.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rayward.data.formats.registry import Outcome
from rayward.data.mapping import length_bins
from rayward.data.records import Preference, Prompt, Ranking, Record

SHOWN_CHARACTERS = 4000
COLOURED = 30

Point = tuple[int, Outcome, Record]  # a record, its number among all, and the row that it came from


def parts(record: Record) -> list[tuple[str, str]]:
    """(heading, text) of all that is in a record: its turns, answers from the best on, and what the
    user asks later.
    """
    found: list[tuple[str, str]] = [(turn.role, turn.content) for turn in record.turns]
    if isinstance(record, Preference):
        found += [
            ("answer 1 of 2: chosen", record.chosen),
            ("answer 2 of 2: rejected", record.rejected),
        ]
    elif isinstance(record, Ranking):
        ranks = (
            [f", rank {rank:g}" for rank in record.ranks]
            if record.ranks
            else [""] * len(record.answers)
        )
        for place, (answer, rank) in enumerate(zip(record.answers, ranks, strict=True), start=1):
            found.append((f"answer {place} of {len(record.answers)}{rank}", answer))
    elif isinstance(record, Prompt):
        found += [("user, after the answer", text) for text in record.follow_ups]
    return found


def write_page(
    out: Path,
    about: dict[str, Any],
    points: Sequence[Point],
    clusters: dict[str, Any],
    places: list[list[float]],
) -> None:
    """Write the page. `about`: its foot; `clusters`: "names" and each point's "of"; `places`: one
    list an axis.
    """
    from plotly.offline import get_plotlyjs

    names = [Path(file).name or file for file in about["settings"]["files"]]
    data = {
        "title": ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more",
        "about": about,
        "at": places,
        "colours": [{"title": "cluster", **clusters}, *_colours(points)],
        "rows": [
            {
                "where": f"{row.file}:{row.line}",
                "id": record.id,
                "parts": [
                    (head, text[:SHOWN_CHARACTERS], max(0, len(text) - SHOWN_CHARACTERS))
                    for head, text in parts(record)
                ],
            }
            for _, row, record in points
        ],
    }
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace(
        "<", "\\u003c"
    )
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    before, between, after = re.split(r"/\* (?:plotly|data) \*/", template)
    out.parent.mkdir(parents=True, exist_ok=True)
    half = out.with_name(f".{out.name}.writing")
    try:
        half.write_text("".join((before, get_plotlyjs(), between, text, after)), encoding="utf-8")
        half.replace(out)
    finally:
        half.unlink(missing_ok=True)


def _colours(points: Sequence[Point]) -> Iterator[dict[str, Any]]:
    """What else than the cluster a point's colour can tell: its length, and what is not the same
    for all points.
    """
    lengths = [sum(len(text) for _, text in parts(record)) for *_, record in points]
    names, of = length_bins(lengths)
    yield {"title": "length in characters", "names": names, "of": of, "ordered": True}
    files = {row.file: Path(row.file).name for _, row, _ in points}
    whole = len(set(files.values())) < len(files)
    labels = {
        "file": [row.file if whole else files[row.file] for _, row, _ in points],
        "source": [record.source or "(none)" for *_, record in points],
        "kind": [type(record).__name__.lower() for *_, record in points],
        "quality": [getattr(record, "quality", None) or "(none)" for *_, record in points],
    }
    for title, of_point in labels.items():
        counts = Counter(of_point)
        if len(counts) > 1:
            names = [name for name, _ in counts.most_common(COLOURED)]
            number = {name: index for index, name in enumerate(names)}
            names += [f"{len(counts) - COLOURED} more"] if len(counts) > COLOURED else []
            yield {
                "title": title,
                "names": names,
                "of": [number.get(name, COLOURED) for name in of_point],
            }
