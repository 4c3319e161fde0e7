"""The style of an answer as Arena-Hard counts it: its length, headers, lists and bold texts.

Markdown in blocks of code does not count. Departure: lengths are characters, where Arena-Hard
counts tokens of GPT-4o's tokenizer; both enter as ratios only.
"""

from __future__ import annotations

import re
from typing import NamedTuple

CODE = re.compile(r"```[^`]*```")
HEADERS = re.compile(r"^#{1,6}\s", re.MULTILINE)
LISTS = re.compile(r"^\s*(?:\d+\.|[-*+])\s", re.MULTILINE)
BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")
NAMES = ("length", "headers", "lists", "bold")


class Style(NamedTuple):
    """What an answer looks like."""

    length: int
    headers: int
    lists: int
    bold: int


def style_of(answer: str) -> Style:
    """The counts of an answer."""
    prose = CODE.sub("", answer)
    counts = (len(pattern.findall(prose)) for pattern in (HEADERS, LISTS, BOLD))
    return Style(len(answer), *counts)
