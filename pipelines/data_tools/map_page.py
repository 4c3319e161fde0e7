"""The page of `rayward data map`: map_page.html with plotly.js and the records put in.

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

from rayward.data.formats.files.outputs import unfinished_name
from rayward.data.formats.registry import Outcome
from rayward.data.mapping import length_bins
from rayward.data.records import Labelled, Preference, Prompt, Ranking, Record

SHOWN_CHARACTERS = 4000  # of each text; the page says how many more there are
MAX_COLOURS = 30  # names with a colour of their own; the others share one

Point = tuple[int, Outcome, Record]  # a record, its number among all, and the row that it came from


def parts(record: Record) -> list[tuple[str, str]]:
    """(heading, text) of all in a record: turns, answers best first, what the user asks later."""
    texts: list[tuple[str, str]] = [("tools", record.tools)] if record.tools else []
    for turn in record.turns:
        if turn.reasoning is not None:
            texts.append((f"{turn.role}, reasoning", turn.reasoning))
        if turn.content.strip():
            texts.append((turn.role, turn.content))
        texts += [(f"{turn.role}, calls {call.name}", call.arguments) for call in turn.tool_calls]
    if isinstance(record, Preference):
        texts += [
            ("answer 1 of 2: chosen", record.chosen),
            ("answer 2 of 2: rejected", record.rejected),
        ]
    elif isinstance(record, Ranking):
        ranks = [""] * len(record.answers)
        if record.ranks:
            ranks = [f", rank {rank:g}" for rank in record.ranks]
        for place, (answer, rank) in enumerate(zip(record.answers, ranks, strict=True), start=1):
            texts.append((f"answer {place} of {len(record.answers)}{rank}", answer))
    elif isinstance(record, Labelled):
        texts.append((f"answer, {'good' if record.good else 'bad'}", record.answer))
    elif isinstance(record, Prompt):
        texts += [("user, after the answer", text) for text in record.follow_ups]
    return texts


def write_page(
    out: Path,
    report: dict[str, Any],
    points: Sequence[Point],
    clusters: dict[str, Any],
    places: list[list[float]],
) -> None:
    """Write the page. `report`: for its foot; `places`: a list of coordinates for each axis.

    `clusters`: their "names", and in "of" the number of each point's cluster.
    """
    from plotly.offline import get_plotlyjs

    names = [Path(file).name or file for file in report["settings"]["files"]]
    data = {
        "title": ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more",
        "about": report,
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
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A "</script>" in a record would end the page's script; the escape is the same JSON string.
    text = text.replace("<", "\\u003c")
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    before, between, after = re.split(r"/\* (?:plotly|data) \*/", template)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_name(out)
    try:
        page = "".join((before, get_plotlyjs(), between, text, after))
        unfinished.write_text(page, encoding="utf-8")
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)


def _colours(points: Sequence[Point]) -> Iterator[dict[str, Any]]:
    """What a point's colour can tell beside its cluster: its length, and what differs by point."""
    lengths = [sum(len(text) for _, text in parts(record)) for *_, record in points]
    names, bin_of_point = length_bins(lengths)
    yield {"title": "length in characters", "names": names, "of": bin_of_point, "ordered": True}
    files = {row.file: Path(row.file).name for _, row, _ in points}
    # Files of the same name in two folders need their paths.
    ambiguous = len(set(files.values())) < len(files)
    labels = {
        "file": [row.file if ambiguous else files[row.file] for _, row, _ in points],
        "source": [record.source or "(none)" for *_, record in points],
        "kind": [type(record).__name__.lower() for *_, record in points],
        "quality": [getattr(record, "quality", None) or "(none)" for *_, record in points],
    }
    for title, label_of_point in labels.items():
        counts = Counter(label_of_point)
        if len(counts) > 1:
            names = [name for name, _ in counts.most_common(MAX_COLOURS)]
            number = {name: index for index, name in enumerate(names)}
            if len(counts) > MAX_COLOURS:
                names.append(f"{len(counts) - MAX_COLOURS} more")
            yield {
                "title": title,
                "names": names,
                "of": [number.get(label, MAX_COLOURS) for label in label_of_point],
            }
