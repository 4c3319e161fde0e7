"""A file of the prepare stage as it is written: records in NAME.jsonl, token rows in NAME.arrow.

What is fitted comes in the order of the records. Here everything is done that looks at the rows
before: ids of their own, and each prompt once.
"""

from __future__ import annotations

import json
from collections import Counter
from hashlib import blake2b
from pathlib import Path
from types import TracebackType

from rayward.data.token_columns import TokenFile
from rayward.pipelines.rows.fitting import Fitted
from rayward.pipelines.rows.left_out import Listing
from rayward.pipelines.rows.prompts import PromptRules


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
    """One file at work. `rows`: records written; `dropped`: counts by rule."""

    def __init__(
        self,
        folder: Path,
        name: str,
        longest_prompt: int,
        dropped: Counter[str],
        left_out: Listing,
    ) -> None:
        self.rows = 0
        self.dropped, self.left_out = dropped, left_out
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

    def add(self, fitted: Fitted) -> None:
        """What the next chunk gives."""
        self.dropped.update(fitted.dropped)
        for row in fitted.left_out:
            self.left_out.add(row)
        lines, tokens = fitted.lines, fitted.tokens
        if fitted.prompts:
            kept = [n for n, row in enumerate(fitted.prompts) if self._rules.keeps(*row)]
            if len(kept) < len(lines):
                lines, tokens = [lines[n] for n in kept], tokens.take(kept)
        for line in lines:
            label = json.dumps(self._ids.of(line.id, line.source), ensure_ascii=False)
            self._lines.write(f"{line.before}{label}{line.after}\n")
        self._tokens.add(tokens)
        self.rows += len(lines)


def token_path(folder: Path, name: str) -> Path:
    """The token rows beside NAME.jsonl."""
    return folder / f"{name}.arrow"
