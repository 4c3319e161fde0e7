"""Which of many cleaned pages stay: rules for one page, rules that compare pages, their account.

Exact duplicates go first, as in OpenChat, where the filter by model is a second program; near ones
go last, so that a page which is filtered out never takes a similar one with it. Of equal pages the
first stays.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayward.data.cleaning.clean import BLOCKED_WORDS, Page, clean_page, clean_row
from rayward.data.cleaning.language import language, languages
from rayward.data.cleaning.near_duplicates import NearDuplicates, content_hash, signature
from rayward.data.records import RowError

DUPLICATE = "duplicate"
NEAR_DUPLICATE = "near duplicate"
OTHER_MODEL = "other model"
OTHER_LANGUAGE = "other language"
UNREADABLE = "unreadable file"


@dataclass(frozen=True, slots=True)
class SieveRules:
    """What to keep. None: no such rule. `near_duplicates`: from which similarity a page repeats."""

    blocked_words: tuple[str, ...] = BLOCKED_WORDS
    model: str | None = None
    language: str | None = None
    near_duplicates: float | None = None

    def check(self) -> None:
        """ValueError for rules under which nothing would stay."""
        if "" in self.blocked_words:
            raise ValueError("a blocked word of no letters is in every page; give words, or none")
        if self.near_duplicates is not None and not 0 < self.near_duplicates < 1:
            raise ValueError(
                f"near duplicates by {self.near_duplicates:g}: give a similarity between 0 and 1, "
                "as in 0.8"
            )
        if self.language is not None and self.language not in languages():
            known = ", ".join(sorted(languages()))
            raise ValueError(f"language {self.language!r} is not known; known are {known}")


def clean_file(path: str, rules: SieveRules) -> dict[str, str | bytes | None]:
    """One page, by the rules that need no other page.

    Either "error", the entry for the rejected pages as JSON; or "row", the line to write, with
    "hash" and "model", and "language" and "signature" where a rule asks for them.
    """
    try:
        page = clean_page(Path(path).read_bytes(), rules.blocked_words)
    except OSError as error:  # one file that is gone or forbidden must not stop a run of millions
        refusal = RowError("file", str(error.strerror), "a file to read", UNREADABLE)
        return {"error": json.dumps(refusal.as_dict())}
    except RowError as error:
        return {"error": json.dumps(error.as_dict())}
    return _kept(page, display_name(Path(path).stem), rules)


def clean_raw(name: str, value: object, rules: SieveRules) -> dict[str, str | bytes | None]:
    """`clean_file` for a row of ShareGPT's raw JSON. `name`: its id where it has none."""
    try:
        page = clean_row(value, rules.blocked_words)
    except RowError as error:
        return {"error": json.dumps(error.as_dict())}
    return _kept(page, name, rules)


def _kept(page: Page, name: str, rules: SieveRules) -> dict[str, str | bytes | None]:
    row = page.as_row()
    if not page.id:
        row = {"id": name, **row}
    # This runs in many processes at once. The hash and the signature are what the one process that
    # compares needs of a page, so that it need not compute them for all.
    return {
        "row": json.dumps(row, ensure_ascii=False),
        "hash": content_hash(page.items),
        "model": page.model,
        "language": language(text for _, text in page.items) if rules.language else None,
        "signature": signature(page.items) if rules.near_duplicates is not None else None,
    }


def display_name(file: str) -> str:
    """A file's name as text, even where it is not UTF-8."""
    return os.fsencode(file).decode("utf-8", "backslashreplace")


@dataclass
class Sieve:
    """The rules that compare pages, and the account: `written` and `rejected` add up to all pages.

    Pages are compared with those that came before, so they must come in one order, to one object.
    """

    rules: SieveRules
    written: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    seen: dict[bytes, str] = field(default_factory=dict)
    """The first file of each conversation, by its hash of 32 bytes."""
    near: NearDuplicates | None = None

    def __post_init__(self) -> None:
        if self.rules.near_duplicates is not None:
            self.near = NearDuplicates(self.rules.near_duplicates)

    def decide(self, file: str, row: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
        """(the line to write, None), or ("", the entry for the rejected).

        `row` is what `clean_file` made of `file`.
        """
        if row.get("error"):
            error: RowError | None = RowError(**json.loads(row["error"]))
        else:
            error = self._compare(file, row)
        if error is None:
            self.written += 1
            return row["row"], None
        self.rejected[error.reason] += 1
        return "", {"file": file, **error.as_dict()}

    def _compare(self, file: str, row: dict[str, Any]) -> RowError | None:
        # A page stays in `seen` even where a rule below refuses it, as in OpenChat.
        first = self.seen.setdefault(bytes.fromhex(row["hash"]), file)
        if first != file:
            found = f"the conversation of {first}"
            return RowError("items", found, "one that is not there yet", DUPLICATE)
        for name, reason in (("model", OTHER_MODEL), ("language", OTHER_LANGUAGE)):
            wanted = getattr(self.rules, name)
            if wanted is not None and row[name] != wanted:
                return RowError(name, row[name] or "nothing", wanted, reason)
        if self.near is None:
            return None
        nearest = self.near.find_or_add(file, row["signature"])
        if nearest is None:
            return None
        other, similarity = nearest
        expected = f"less than {self.near.threshold:g}"
        return RowError(
            "items", f"similarity {similarity:.2f} to {other}", expected, NEAR_DUPLICATE
        )
