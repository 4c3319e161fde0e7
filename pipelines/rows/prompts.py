"""Prompts to token rows, each once and with room for an answer."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from rayward.data.ragged import Ragged
from rayward.data.records import Prompt, RowError, Turn
from rayward.data.templates.template import Encoded
from rayward.pipelines.rows.left_out import IN_PIECES, set_aside
from rayward.pipelines.rows.renderer import Renderer


class PromptRules:
    """Which prompts are kept, told one after another: each once, and with room for an answer.

    `longest`: tokens of a prompt that leaves room. `repeated`: copies are meant. Of each prompt 16
    bytes are kept.
    """

    def __init__(self, longest: int, dropped: Counter[str], repeated: bool = False) -> None:
        self.longest, self.dropped, self.repeated = longest, dropped, repeated
        self._seen: set[bytes] = set()

    def keeps(self, key: bytes, tokens: int, apart: bool) -> bool:
        """Whether a prompt is kept, counted where it is not. `key`: see `prompt_digest`."""
        if key in self._seen and not self.repeated:
            self.dropped["duplicate prompt"] += 1
        elif tokens > self.longest:
            # A cut prompt would ask something else, and less room would cut the answer.
            self.dropped["prompt leaves no room for an answer"] += 1
        else:
            self._seen.add(key)
            # No entry where it is False: a count of 0 would be told.
            self.dropped.update([IN_PIECES] * apart)
            return True
        return False


def fit_prompts(
    records: Iterable[Prompt],
    renderer: Renderer,
    max_new_tokens: int,
    dropped: Counter[str],
    repeated: bool = False,
) -> tuple[list[Prompt], Ragged]:
    """Distinct prompts that leave room for an answer, with their rows.

    One is left out where the template would refuse the conversation that an answer makes of it.
    `repeated`: copies are meant, as in what prepare has drawn.
    """
    rules = PromptRules(renderer.context_tokens - max_new_tokens, dropped, repeated)
    fitting = [
        (record, row.ids)
        for record, row in rendered_prompts(records, renderer, dropped)
        if rules.keeps(prompt_digest(record), len(row.ids), row.apart)
    ]
    return [record for record, _ in fitting], Ragged.of([ids for _, ids in fitting])


def rendered_prompts(
    records: Iterable[Prompt], renderer: Renderer, dropped: Counter[str]
) -> Iterator[tuple[Prompt, Encoded]]:
    """Prompts and their rows, without those that the template refuses."""
    for record in records:
        try:
            yield record, renderer.prompt_row(record.turns, record.tools)
        except RowError as error:
            set_aside(dropped, record, error)


def prompt_digest(prompt: Prompt) -> bytes:
    """16 bytes that two prompts have in common where they say the same and offer the same tools."""
    offered = f"\x03{prompt.tools}" if prompt.tools else ""
    return hashlib.sha256((prompt_key(prompt.turns) + offered).encode()).digest()[:16]


def prompt_key(turns: Sequence[Turn]) -> str:
    """The text that makes two prompts the same."""
    # Control characters between role, content and turns: text with line breaks cannot imitate them.
    return "\x00".join(f"{turn.role}\x01{_said(turn)}" for turn in turns)


def _said(turn: Turn) -> str:
    calls = (f"\x02{call.name}\x02{call.arguments}" for call in turn.tool_calls)
    return turn.content.strip() + "".join(calls)
