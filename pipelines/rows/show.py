"""A row as a person reads it: its text with the trained part marked, in colour or in [[...]]."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING

from rich.text import Text

from rayward.data.templates.template import Encoded, Piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Run = tuple[str, bool]  # text, whether it is trained
ROWS, CHARACTERS = 3, 1000
# What a terminal would obey: control characters but tab and line break, and marks that reverse the
# direction of writing.
CONTROLS = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069]"
)


def visible(text: str) -> str:
    """A text for a terminal, which would obey some of its characters and hide others."""
    return CONTROLS.sub(lambda match: repr(match[0])[1:-1], text)


def runs(row: Encoded, tokenizer: PreTrainedTokenizerBase) -> list[Run]:
    """The text of a row's tokens, cut where training begins and ends.

    It is decoded from the ids, so it is what the model gets, not what was meant.
    """
    pairs = zip(row.ids, row.weights, strict=True)
    stretches = [
        (trained, [i for i, _ in group])
        for trained, group in groupby(pairs, lambda pair: pair[1] > 0)
    ]
    return [
        (visible(tokenizer.decode(ids, skip_special_tokens=False)), trained)
        for trained, ids in stretches
    ]


def runs_of_pieces(pieces: Iterable[Piece]) -> list[Run]:
    """The same without a tokenizer, from the template's pieces."""
    grouped = groupby(pieces, lambda piece: piece.weight > 0)
    return [
        (visible("".join(piece.text for piece in group)), trained) for trained, group in grouped
    ]


def coloured(stretches: Iterable[Run]) -> Text:
    """The trained part green, all else dim."""
    line = Text()
    for text, trained in stretches:
        line.append(text, style="green" if trained else "dim")
    return line


def plain(stretches: Iterable[Run]) -> str:
    """The trained part in [[...]]."""
    return "".join(f"[[{text}]]" if trained else text for text, trained in stretches)


def show_batch(batch: list[Encoded], tokenizer: PreTrainedTokenizerBase) -> None:
    """Print the first rows of an optimizer step as they are trained, before a wrong mask costs."""
    from rayward.pipelines.run.terminal import Terminal

    console = Terminal(width=110)
    console.print(
        f"first optimizer step, {min(ROWS, len(batch))} of its {len(batch)} rows, the trained "
        "part in green:"
    )
    for row in batch[:ROWS]:
        line = coloured(runs(row, tokenizer))
        console.print("  ", line if len(line) <= CHARACTERS else line[:CHARACTERS] + " ...")
