"""`rayward.data.verifiable.exact:exact`: whether an answer says what the reference says."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from rayward.data.judging.thinking import without_thinking


def exact(
    *, completions: Sequence[str], references: Sequence[str | None], **_: Any
) -> list[float | None]:
    """1 where an answer is its reference, but for white space and what was thought before, else 0.

    None where there is no reference.
    """
    return [
        None if reference is None else float(_plain(answer) == _plain(reference))
        for answer, reference in zip(completions, references, strict=True)
    ]


def _plain(text: str) -> str:
    """In composed characters, and with single spaces."""
    return " ".join(unicodedata.normalize("NFC", without_thinking(text)[0]).split())
