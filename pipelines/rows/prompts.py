"""Prompts to token rows, each once and with room for an answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rayward.data.ragged import Ragged
from rayward.data.records import Prompt, RowError, Turn
from rayward.pipelines.rows.left_out import IN_PIECES, set_aside
from rayward.pipelines.rows.renderer import Renderer


def fit_prompts(
    records: Iterable[Prompt],
    renderer: Renderer,
    max_new_tokens: int,
    dropped: Counter[str],
    seen: set[tuple[str, str | None]] | None = None,
    repeated: bool = False,
) -> tuple[list[Prompt], Ragged]:
    """Distinct prompts that leave room for an answer, with their rows.

    One is left out where the template would refuse the conversation that an answer makes of it.
    `seen`: the keys of prompts that came before, to which these are added. `repeated`: copies are
    meant, as in what prepare has drawn.
    """
    kept: list[Prompt] = []
    rows: list[list[int]] = []
    seen = set() if seen is None else seen
    for record in records:
        key = prompt_key(record.turns), record.tools
        try:
            row = renderer.prompt_row(record.turns, record.tools)
        except RowError as error:
            set_aside(dropped, record, error)
            continue
        if key in seen and not repeated:
            dropped["duplicate prompt"] += 1
        elif len(row.ids) + max_new_tokens > renderer.context_tokens:
            # A cut prompt would ask something else, and less room would cut the answer.
            dropped["prompt leaves no room for an answer"] += 1
        else:
            seen.add(key)
            # No entry where it is False: a count of 0 would be told.
            dropped.update([IN_PIECES] * row.apart)
            kept.append(record)
            rows.append(row.ids)
    return kept, Ragged.of(rows)


def prompt_key(turns: Sequence[Turn]) -> str:
    """The text that makes two prompts the same."""
    # Control characters between role, content and turns: text with line breaks cannot imitate them.
    return "\x00".join(f"{turn.role}\x01{_said(turn)}" for turn in turns)


def _said(turn: Turn) -> str:
    calls = (f"\x02{call.name}\x02{call.arguments}" for call in turn.tool_calls)
    return turn.content.strip() + "".join(calls)
