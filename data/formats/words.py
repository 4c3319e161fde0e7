"""A row as no more than what is said in it, for those who compare texts and train nothing.

Training has no use for a question about a picture, or for one whose reference answer is any of
three; whoever looks for its words elsewhere has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayward.data.formats.known.format import Format
from rayward.data.formats.rows.meaning import (
    MEANING_OF,
    MEDIA,
    REASONING,
    REFERENCE,
    TOOLS,
    VERDICT,
    WEIGHT,
)
from rayward.data.formats.rows.turns import MEDIA_PARTS

WORDLESS = (MEDIA, WEIGHT, TOOLS, REASONING)


def words_only(form: Format, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without media, weights, tools and reasoning, and several reference answers as one
    text. What tells its format stays, as do verdicts that its format reads.
    """
    telling = frozenset().union(*form.keys)
    kept: dict[str, Any] = {}
    for name, value in row.items():
        meaning = MEANING_OF.get(name)
        unread_verdict = meaning is VERDICT and name not in form.tree
        if name in telling or not (meaning in WORDLESS or unread_verdict):
            kept[name] = _in_one(value) if meaning is REFERENCE else _words(value)
    return kept


def _words(value: Any) -> Any:
    """The value without wordless fields and parts, at whatever depth."""
    if isinstance(value, list | tuple):
        return [_words(item) for item in value if not _is_media(item)]
    if not isinstance(value, dict):
        return value
    return {
        name: _words(inner) for name, inner in value.items() if MEANING_OF.get(name) not in WORDLESS
    }


def _is_media(part: Any) -> bool:
    if not isinstance(part, dict) or isinstance(part.get("text"), str):
        return False
    return str(part.get("type", "")).startswith(MEDIA_PARTS)


def _in_one(references: Any) -> Any:
    """Several texts as one, a line each; anything else as it is."""
    if isinstance(references, dict):  # verl's reward_model
        return {name: _in_one(value) for name, value in references.items()}
    several = isinstance(references, list | tuple) and len(references) > 1
    if several and all(isinstance(item, str | int | float) for item in references):
        return "\n".join(map(str, references))
    return references
