"""A chunk of records to what the files of the prepare stage hold of it: lines, and token rows.

It knows no other chunk, so chunks may be fitted in any process. What depends on the rows before is
decided by the driver, in order: see `prepared_file.py`.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rayward.configs.sections.model import Model
from rayward.configs.sections.training import Sft
from rayward.data.record_json import to_json
from rayward.data.records import Record
from rayward.data.templates.template import Encoded
from rayward.data.token_columns import token_batch
from rayward.pipelines.rows.conversations import fit_conversations
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
    """What a chunk gives to one file."""

    file: str
    lines: list[Line]
    tokens: pyarrow.RecordBatch
    dropped: Counter[str]
    left_out: list[dict[str, Any]]
    prompts: list[PromptRow] = field(default_factory=list)
    """Of files of prompts: one for each line."""


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
        """What each file gets of a chunk. `files`: the number of each record's file."""
        entries: list[Entry] = pickle.loads(chunk)
        return [
            self._fit(
                NAMES[number],
                [entry for entry, file in zip(entries, files, strict=True) if file == number],
            )
            for number in sorted({*files} - {NOWHERE})
        ]

    def _fit(self, file: str, entries: list[Entry]) -> Fitted:
        dropped = LeftOut(Places(entries))
        records = [entry.record for entry in entries]
        prompts: list[PromptRow] = []
        kept: list[Any]
        rows: list[Encoded]
        more: dict[str, Any] = {}
        if FILES[file] == "conversations":
            kept, rows = fit_conversations(records, self.renderer, dropped, self.sft)
        elif FILES[file] == "preferences":
            kept, ranked = fit_rankings(records, self.renderer, dropped)
            rows = [row for ranking in ranked for row in ranking]
            more = _ranks(kept)
        else:
            pairs = list(rendered_prompts(records, self.renderer, dropped))
            kept, rows = [record for record, _ in pairs], [row for _, row in pairs]
            prompts = [
                PromptRow(prompt_digest(record.turns), len(row.ids), row.apart)
                for record, row in pairs
            ]
        tokens = token_batch([row.ids for row in rows], [row.weights for row in rows], more)
        lines = [_line(record) for record in kept]
        return Fitted(file, lines, tokens, Counter(dropped), dropped.rows, prompts)


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
