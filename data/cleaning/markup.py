"""Whether a text is HTML, as ShareGPT's raw answers are, told from its beginning."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rayward.data.records import Conversation

TOLD_FROM = 0.2
"""Share of answers in HTML from which it is told: a few may be answers that are pages."""
# A tag that holds text, at the very beginning: an answer about HTML starts with words, or with the
# back-ticks of a code block.
OPENING = re.compile(r"\s*<(p|div|pre|ol|ul|table|blockquote|span|h[1-6])\b[^<>]*>", re.IGNORECASE)


def is_html(text: str) -> bool:
    """Whether a text begins with a tag that is closed later in it."""
    found = OPENING.match(text)
    return found is not None and f"</{found[1].lower()}>" in text.lower()


@dataclass(slots=True)
class HtmlAnswers:
    """How many answers of conversations are HTML."""

    answers: int = 0
    html: int = 0

    def count(self, records: Iterable[Any]) -> None:
        """Add the answers of the records that are conversations."""
        for record in records:
            if isinstance(record, Conversation):
                texts = [turn.content for turn in record.turns if turn.role == "assistant"]
                self.answers += len(texts)
                self.html += sum(map(is_html, texts))

    def told(self, name: str) -> str:
        """What to say of it, or nothing."""
        if not self.html or self.html < TOLD_FROM * self.answers:
            return ""
        return (
            f"{self.html} of {self.answers} answers are HTML, and would be learned with their "
            f"tags: rayward data clean {name} --out F.jsonl makes Markdown of them"
        )
