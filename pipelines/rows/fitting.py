"""A chunk of records to what the files of the prepare stage hold of it: lines, and token rows.

It knows no other chunk, so chunks may be fitted in any process. What depends on the rows before is
decided by the driver, in order: see `prepared_file.py`.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayward.configs.sections.model import Model
from rayward.configs.sections.training import Sft
from rayward.data.record_json import to_json
from rayward.data.records import Record
from rayward.data.templates.template import Encoded
from rayward.data.token_columns import token_batch
from rayward.pipelines.rows.conversations import fit_conversations
from rayward.pipelines.rows.labelled import fit_labelled
from rayward.pipelines.rows.left_out import LeftOut, Places
from rayward.pipelines.rows.prompts import prompt_digest, rendered_prompts
from rayward.pipelines.rows.rankings import fit_rankings
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.rows.splitting import FILES, NAMES, NOWHERE
from rayward.pipelines.rows.spool import Entry

if TYPE_CHECKING:
    import pyarrow


class Line(NamedTuple):
    """A record's line of a file, without its id: what is before it and after it."""

    before: str
    after: str
    id: str
    source: str


class PromptRow(NamedTuple):
    """What decides whether a prompt is kept: see `PromptRules`."""

    key: bytes
    tokens: int
    apart: bool


@dataclass
class Fitted:
    """What the records of one source in a chunk give to one file."""

    file: str
    source: int
    lines: list[Line]
    tokens: pyarrow.RecordBatch
    dropped: Counter[str]
    left_out: list[dict[str, Any]]
    prompts: list[PromptRow] = field(default_factory=list)
    """Of files of prompts: one for each line."""

    @property
    def starts(self) -> NDArray[np.int64]:
        """[lines + 1] where the token rows of each line begin, and the last one's end."""
        rows = self.tokens.num_rows
        if "place" not in self.tokens.schema.names:
            return np.arange(rows + 1)
        return np.append(np.flatnonzero(self.tokens.column("place").to_numpy() == 0), rows)

    @property
    def token_count(self) -> int:
        """Tokens of all rows."""
        return len(self.tokens.column("ids").flatten())

    def take(self, lines: Sequence[int]) -> Fitted:
        """Some of the lines in the given order, a line may come several times, with their rows."""
        starts = self.starts
        rows = [row for line in lines for row in range(starts[line], starts[line + 1])]
        return replace(
            self,
            lines=[self.lines[line] for line in lines],
            tokens=self.tokens.take(rows),
            prompts=[self.prompts[line] for line in lines] if self.prompts else [],
        )


@dataclass(frozen=True)
class Fitter:
    """Fits chunks with a tokenizer."""

    renderer: Renderer
    sft: Sft

    @classmethod
    def of(cls, model: Model, tokenizer_folder: Path, sft: Sft) -> Fitter:
        """With the tokenizer of a folder: how another process makes its own."""
        return cls(Renderer.of(model, tokenizer_folder), sft)

    def __call__(self, chunk: bytes, files: bytes) -> list[Fitted]:
        """What each file gets of a chunk, by source. `files`: the number of each record's file."""
        entries: list[Entry] = pickle.loads(chunk)
        parts: dict[tuple[int, int], list[Entry]] = {}
        for entry, number in zip(entries, files, strict=True):
            if number != NOWHERE:
                parts.setdefault((number, entry.source), []).append(entry)
        return [
            self._fit(NAMES[number], source, parts[number, source])
            for number, source in sorted(parts)
        ]

    def _fit(self, file: str, source: int, entries: list[Entry]) -> Fitted:
        dropped = LeftOut(Places(entries))
        records = [entry.record for entry in entries]
        prompts: list[PromptRow] = []
        kept: list[Any]
        rows: list[Encoded]
        more: dict[str, Any] = {}
        if FILES[file] == "conversations":
            kept, rows = fit_conversations(records, self.renderer, dropped, self.sft)
        elif file in ("labelled", "labelled_heldout"):  # the same list has two kinds of records
            kept, rows = fit_labelled(records, self.renderer, dropped)
            more = _labels(kept)
        elif FILES[file] == "preferences":
            kept, ranked = fit_rankings(records, self.renderer, dropped)
            rows = [row for ranking in ranked for row in ranking]
            more = _ranks(kept)
        else:
            pairs = list(rendered_prompts(records, self.renderer, dropped))
            kept, rows = [record for record, _ in pairs], [row for _, row in pairs]
            prompts = [
                PromptRow(prompt_digest(record), len(row.ids), row.apart) for record, row in pairs
            ]
        tokens = token_batch([row.ids for row in rows], [row.weights for row in rows], more)
        lines = [_line(record) for record in kept]
        return Fitted(file, source, lines, tokens, Counter(dropped), dropped.rows, prompts)


def _ranks(rankings: list[Any]) -> dict[str, pyarrow.Array]:
    """Columns of rankings: of each answer its place in its ranking, and its rank if it has one."""
    import pyarrow

    places = [place for ranking in rankings for place in range(len(ranking.answers))]
    ranks = [
        rank for ranking in rankings for rank in ranking.ranks or [None] * len(ranking.answers)
    ]
    return {
        "place": pyarrow.array(places, pyarrow.int32()),
        "rank": pyarrow.array(ranks, pyarrow.float64()),
    }


def _labels(labelled: list[Any]) -> dict[str, pyarrow.Array]:
    """A column of labelled answers: which are good."""
    import pyarrow

    return {"good": pyarrow.array([record.good for record in labelled], pyarrow.bool_())}


def _line(record: Record) -> Line:
    # With an id of some kind, to see where it stands among the fields.
    row = to_json(replace(record, id="?"))
    names = list(row)
    place = names.index("id")
    before, after = (
        json.dumps({name: row[name] for name in part}, ensure_ascii=False)
        for part in (names[:place], names[place + 1 :])
    )
    more = f", {after[1:]}" if len(names) > place + 1 else "}"
    return Line(f'{before[:-1]}, "id": ', more, record.id, record.source)
