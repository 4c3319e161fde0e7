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

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayward.configs.sections.data import Data, DataSource
from rayward.pipelines.run.metrics import table

TRAINED = ("conversations", "rankings", "judge", "labelled", "prompts")
"""Files of records that are trained on; the others are measured with."""


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
        return _shared(_tempered(rows, temperature), rows)
    return [
        # At least one: a source that is listed is not left out by rounding.
        number if source.epochs is None else max(min(1, number), round(number * source.epochs))
        for source, number in zip(sources, rows, strict=True)
    ]


def _tempered(rows: Sequence[int], temperature: float) -> list[float]:
    """rows^(1/T) over the largest of them. In logs: no float holds 1000^(1/T) for T below 0.01."""
    largest = max(rows, default=0)
    # A logarithm over a T near 0 is -inf, whose exponential is 0.
    with np.errstate(over="ignore"):
        return [
            float(np.exp(np.float64(math.log(number / largest)) / temperature)) if number else 0.0
            for number in rows
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


class Mixture:
    """The account of a file: how many rows of each source fit, and what a pass has of them.

    Rows are told source after source, in the order of the list.
    """

    def __init__(self, data: Data, name: str, list_name: str, seed: int) -> None:
        self.sources: Sequence[DataSource] = getattr(data, list_name)
        self._order = partial(order, data, name, list_name, seed=seed)
        count = max(1, len(self.sources))  # the generated world lists none
        self._rows, self._drawn, self._tokens = [0] * count, [0] * count, [0] * count
        measures = (*(source.weight or source.epochs for source in self.sources), data.temperature)
        self.draws = name in TRAINED and any(measures)
        """Whether the config asks for other rows than each one once."""

    def add(self, source: int, rows: int) -> None:
        """Rows that fit."""
        self._rows[source] += rows

    def take(self, source: int, rows: int, tokens: int) -> None:
        """Rows of the pass."""
        self._drawn[source] += rows
        self._tokens[source] += tokens

    def order(self) -> NDArray[np.int64]:
        """The numbers of the rows of a pass, when all have been added."""
        return self._order(rows=self._rows)

    def parts(self) -> list[Part]:
        """The account by source."""
        figures = zip(self._rows, self._drawn, self._tokens, strict=True)
        return [
            Part(source.path, *counted)
            for source, counted in zip(self.sources, figures, strict=False)
        ]


def unmixed(
    data: Data, account: Mapping[str, Sequence[Mapping[str, Any]]], lists: Mapping[str, str]
) -> Iterator[str]:
    """What to know of files that weights or temperature leave as they are: all of one source.

    `lists`: the list of data that a file's rows are of.
    """
    for name, parts in account.items():
        sources: Sequence[DataSource] = getattr(data, lists[name])
        weighted = any(source.weight for source in sources)
        held = [part["source"] for part in parts if part["rows"]]
        drawn_by_shares = name in TRAINED and (weighted or data.temperature)
        if drawn_by_shares and len(parts) > 1 and len(held) == 1:
            yield (
                f"data.{lists[name]}: {'weight' if weighted else 'temperature'} changes nothing "
                f"in {name}, whose rows are all of {held[0]}: each file of prepare keeps its "
                "number of rows, so only sources of one kind are mixed"
            )


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
