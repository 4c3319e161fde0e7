"""How much of each source is in a pass over a list of data, and which of its rows.

    as it is     every row once
    epochs E     every row E times: whole passes, and of the rest as many rows, drawn by the seed
    weight w     the list keeps its number of rows N, and the source has N w / (sum of w) of them
    temperature  as weights of rows^(1/T): 1 changes nothing, more makes the shares more equal

`limit` comes before all of them: a source has the rows that it leaves. A source that is to have
more rows than it holds has each one as often as any other, up to one. The formula of temperature is
that of mT5 (Xue et al. 2021, section 3.2; their alpha is 1 / T); they draw rows one by one, while
here the numbers of rows are exact.

It is done to the rows that are trained, after held-out ones have been put aside: no copy of a row
gets to the other side, and what is measured has every row once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayward.configs.sections.data import LISTS, Data, DataSource
from rayward.data.ragged import Ragged
from rayward.data.templates.template import Encoded
from rayward.pipelines.run.metrics import table

TRAINED = ("conversations", "rankings", "judge", "labelled", "prompts")
"""Files of records that are trained on; the others are measured with."""

Rows = Ragged | Sequence[Encoded] | Sequence[Sequence[Encoded]]


@dataclass(frozen=True)
class Part:
    """The rows of one source in a file of records: how many it has, how many are drawn of them."""

    source: str
    rows: int
    drawn: int
    tokens: int

    def as_dict(self) -> dict[str, Any]:
        """The part as JSON. `epochs`: how often a pass has each of its rows, on average."""
        epochs = round(self.drawn / self.rows, 4) if self.rows else 0.0
        return {
            "source": self.source,
            "rows": self.rows,
            "drawn": self.drawn,
            "epochs": epochs,
            "tokens": self.tokens,
        }


def counts(
    sources: Sequence[DataSource], rows: Sequence[int], temperature: float | None
) -> list[int]:
    """Rows of each source in one pass, of the `rows` that each holds."""
    if any(source.weight is not None for source in sources):
        return _shared([source.weight or 0.0 for source in sources], rows)
    if temperature is not None and len(sources) > 1:
        return _shared([number ** (1 / temperature) for number in rows], rows)
    return [
        # At least one: a source that is listed is not left out by rounding.
        number if source.epochs is None else max(min(1, number), round(number * source.epochs))
        for source, number in zip(sources, rows, strict=True)
    ]


def _shared(weights: Sequence[float], rows: Sequence[int]) -> list[int]:
    """The sum of `rows` in shares of `weights`, by largest remainder; none of a source without."""
    total = sum(rows)
    held = np.array([w if n else 0.0 for w, n in zip(weights, rows, strict=True)], np.float64)
    if not total:
        return [0] * len(rows)
    # By the largest, so that no weight is beyond what a float divides.
    exact = total * (held / held.max()) / (held / held.max()).sum()
    taken = np.floor(exact + 1e-9).astype(np.int64)
    # Stable: of equal remainders the first source has the row.
    for index in np.argsort(taken - exact, kind="stable")[: total - int(taken.sum())]:
        taken[index] += 1
    return [int(number) for number in taken]


def drawn(rows: int, count: int, seed: Sequence[int]) -> NDArray[np.int64]:
    """`count` of the row numbers 0 to `rows` - 1: each as often as any other, up to one.

    In the order of the rows, pass by pass. The rows of the part of a pass depend on `seed` alone.
    """
    if not rows:
        return np.zeros(0, np.int64)
    passes, rest = divmod(count, rows)
    some = np.sort(np.random.default_rng(seed).permutation(rows)[:rest])
    return np.concatenate([np.tile(np.arange(rows), passes), some]).astype(np.int64)


def order(
    data: Data, name: str, list_name: str, rows: Sequence[int], seed: int
) -> NDArray[np.int64]:
    """Row numbers of a pass over the file `name`, in which `rows` of each source lie in turn."""
    sources: Sequence[DataSource] = getattr(data, list_name)
    taken = list(rows)
    if sources and name in TRAINED:  # the generated world has none
        taken = counts(sources, rows, data.temperature)
    starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
    # Another draw for each file and source.
    marks = [seed, TRAINED.index(name)] if name in TRAINED else [seed]
    passes = [
        starts[index] + drawn(number, taken[index], [*marks, index])
        for index, number in enumerate(rows)
    ]
    return np.concatenate(passes) if passes else np.zeros(0, np.int64)


class Sources:
    """Which source each record is from."""

    def __init__(self, records: Mapping[str, Sequence[Any]], report: Mapping[str, Any]) -> None:
        """`report`: that of `read_all`, with the number of records of each source, in order."""
        self._of: dict[int, int] = {}  # by identity: equal rows stand in several sources
        self._numbers: dict[str, int] = {}
        for name in LISTS:
            read = report.get("sources", {}).get(name, {})
            numbers = [entry.get("records", 0) for entry in read.values()]
            self._numbers[name] = len(numbers)
            if len(numbers) > 1:
                sources = np.repeat(np.arange(len(numbers)), numbers).tolist()
                self._of |= dict(zip(map(id, records[name]), sources, strict=True))

    def parts(self, list_name: str, records: list[Any]) -> list[list[Any]]:
        """The records of each source, in order; all in one where there is one, or none."""
        if self._numbers[list_name] < 2:
            return [records]
        parts: list[list[Any]] = [[] for _ in range(self._numbers[list_name])]
        for record in records:
            parts[self._of[id(record)]].append(record)
        return parts


def mixed(
    data: Data,
    name: str,
    list_name: str,
    parts: Sequence[list[Any]],
    fit: Callable[[list[Any]], tuple[list[Any], Rows]],
    seed: int,
) -> tuple[list[Any], list[Any], list[Part]]:
    """(what fits, what a pass has of it, the account) of the file `name`, source by source."""
    kept: list[Any] = []
    rows: list[int] = []
    lengths: list[int] = []
    for part in parts:
        fitting, encoded = fit(part)
        kept += fitting
        rows.append(len(fitting))
        lengths += _lengths(encoded)
    pass_rows = order(data, name, list_name, rows, seed)
    ends = np.cumsum(rows)
    source_of = np.searchsorted(ends, pass_rows, side="right")
    tokens = np.array(lengths, np.int64)[pass_rows] if len(pass_rows) else np.zeros(0, np.int64)
    sources: Sequence[DataSource] = getattr(data, list_name)
    account = [
        Part(
            source.path,
            rows[index],
            int((source_of == index).sum()),
            int(tokens[source_of == index].sum()),
        )
        for index, source in enumerate(sources)
    ]
    return kept, [kept[row] for row in pass_rows], account


def show(account: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Print what is drawn of each source, where there are any."""
    columns = ("source", "rows", "drawn", "tokens")
    rows = [
        (name.replace("_", " "), *(part[column] for column in columns))
        for name, parts in account.items()
        for part in parts
    ]
    if rows:
        table("sources", rows, ("", *columns))


def _lengths(encoded: Rows) -> list[int]:
    """Tokens of each row; of a ranking, those of all its answers' rows."""
    if isinstance(encoded, Ragged):
        return [int(length) for length in encoded.lengths]
    return [
        len(row.ids) if isinstance(row, Encoded) else sum(len(answer.ids) for answer in row)
        for row in encoded
    ]
