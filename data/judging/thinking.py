"""What a model thought before it answered, apart from the answer that is judged."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


def without_thinking(text: str) -> tuple[str, str]:
    """(answer, what was thought before it), "" where nothing was.

    A template may write the opening mark itself, so the closing one alone ends a thought, too. One
    that was cut leaves no answer. Marks within an answer stay.
    """
    before, close, after = text.partition(CLOSE)
    if close and before.count(OPEN) <= 1 and not before.partition(OPEN)[0].strip():
        return after.strip(), before.replace(OPEN, "").strip()
    if close and OPEN not in before:
        return after.strip(), before.strip()
    if not close and text.lstrip().startswith(OPEN):
        return "", text.replace(OPEN, "", 1).strip()
    return text.strip(), ""
