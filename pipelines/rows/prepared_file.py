"""A file of the prepare stage as it is written: records in NAME.jsonl, token rows in NAME.arrow.

What is fitted comes in the order of the records. Here everything is done that looks at the rows
before: ids of their own, each prompt once, and which rows of a source a pass has.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from types import TracebackType

import numpy as np

from rayward.data.token_columns import TokenFile
from rayward.pipelines.rows.fitting import Fitted
from rayward.pipelines.rows.left_out import Listing
from rayward.pipelines.rows.mixture import Mixture
from rayward.pipelines.rows.prompts import PromptRules
from rayward.pipelines.rows.spool import CHUNK_ROWS, Chunks


class Ids:
    """Ids of rows, each given once: of each row 8 bytes are kept.

    Rows that come without one, or with one seen before, get a number. Later stages find the prompt
    of an answer by its id.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._rows = 0

    def of(self, label: str, source: str) -> str:
        """The id of the next row, which came with `label`, or "" for none."""
        if not label or self._is_known(label):
            label = f"{label or source or 'row'}#{self._rows}"
            while self._is_known(label):  # somebody's own ids look like that
                label += "#"
        self._seen.add(_mark(label))
        self._rows += 1
        return label

    def _is_known(self, label: str) -> bool:
        # Two ids of one mark, which hardly happens, cost the second a number, and no more.
        return _mark(label) in self._seen


def _mark(label: str) -> int:
    return int.from_bytes(blake2b(label.encode(), digest_size=8).digest(), "big")


class PreparedFile:
    """One file at work. `kept`: records that fit; `rows`: records written; `dropped`: counts by
    rule. `mixture`: where it draws, the rows wait until all of them are there.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        longest_prompt: int,
        dropped: Counter[str],
        left_out: Listing,
        mixture: Mixture,
    ) -> None:
        self.name = name
        self.kept = self.rows = 0
        self.dropped, self.left_out, self.mixture = dropped, left_out, mixture
        self._waiting = Chunks(folder) if mixture.draws else None
        self._rules = PromptRules(longest_prompt, dropped)
        self._ids = Ids()
        self._tokens = TokenFile(token_path(folder, name))
        self._lines = (folder / f"{name}.jsonl").open("w", encoding="utf-8")

    def __enter__(self) -> PreparedFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._lines.close()
        self._tokens.__exit__(kind, error, at)
        if self._waiting is not None:
            self._waiting.drop()

    def add(self, fitted: Fitted) -> None:
        """What the next chunk gives."""
        self.dropped.update(fitted.dropped)
        for row in fitted.left_out:
            self.left_out.add(row)
        if fitted.prompts:
            kept = [n for n, row in enumerate(fitted.prompts) if self._rules.keeps(*row)]
            if len(kept) < len(fitted.lines):
                fitted = fitted.take(kept)
        self.kept += len(fitted.lines)
        self.mixture.add(fitted.source, len(fitted.lines))
        if self._waiting is None:
            self._write(fitted)
        else:
            self._waiting.add(replace(fitted, left_out=[], prompts=[]), len(fitted.lines))

    def draw(self) -> None:
        """After the last chunk: write what a pass has of the rows that wait."""
        if self._waiting is None:
            return
        rows = self.mixture.order()
        chunk_of = np.searchsorted(self._waiting.starts, rows, side="right") - 1
        # Rows of one chunk come one after another, so that each is read once a pass.
        ends = np.append(np.flatnonzero(np.diff(chunk_of)) + 1, len(rows))
        start = 0
        for end in ends.tolist() if len(rows) else []:
            number = int(chunk_of[start])
            fitted: Fitted = pickle.loads(self._waiting[number])
            own = (rows[start:end] - self._waiting.starts[number]).tolist()
            # Of few rows very many copies may be asked for.
            for first in range(0, len(own), CHUNK_ROWS):
                self._write(fitted.take(own[first : first + CHUNK_ROWS]))
            start = end

    def _write(self, fitted: Fitted) -> None:
        for line in fitted.lines:
            label = json.dumps(self._ids.of(line.id, line.source), ensure_ascii=False)
            self._lines.write(f"{line.before}{label}{line.after}\n")
        self._tokens.add(fitted.tokens)
        self.rows += len(fitted.lines)
        self.mixture.take(fitted.source, len(fitted.lines), fitted.token_count)


def token_path(folder: Path, name: str) -> Path:
    """The token rows beside NAME.jsonl."""
    return folder / f"{name}.arrow"
