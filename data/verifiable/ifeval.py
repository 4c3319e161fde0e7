"""`rayward.data.verifiable.ifeval:ifeval`: how many of a prompt's instructions are followed.

The reference is JSON text with the two fields of IFEval's own rows: {"instruction_id_list": [...],
"kwargs": [{...}, ...]}.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rayward.data.judging.thinking import without_thinking
from rayward.data.verifiable.instructions import CHECKS

LONGEST = 50_000
"""Characters of an answer that are read: some patterns look at each place."""


def ifeval(
    *, completions: Sequence[str], references: Sequence[str | None], **_: Any
) -> list[float | None]:
    """The share of the instructions that an answer follows, 0 to 1 (IFEval's strict way).

    None where the reference names no instructions, or one that is unknown. An empty answer follows
    none.
    """
    return [
        _share(answer, reference) for answer, reference in zip(completions, references, strict=True)
    ]


def ifeval_all(
    *, completions: Sequence[str], references: Sequence[str | None], **_: Any
) -> list[float | None]:
    """1 where an answer follows all of the instructions, else 0; None as `ifeval` has it."""
    shares = ifeval(completions=completions, references=references)
    return [None if share is None else float(share == 1) for share in shares]


def _share(answer: str, reference: str | None) -> float | None:
    instructions = instructions_of(reference)
    if instructions is None:
        return None
    text = without_thinking(answer)[0][:LONGEST]
    if not text:
        return 0.0
    try:
        followed = [CHECKS[name](text, arguments) for name, arguments in instructions]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None  # an argument is missing, or is of another kind
    return sum(followed) / len(followed)


def instructions_of(reference: str | None) -> list[tuple[str, dict[str, Any]]] | None:
    """Names and arguments of the instructions in a reference; None where there are none."""
    try:
        given = json.loads(reference or "")
        names, arguments = given["instruction_id_list"], given["kwargs"]
        pairs = list(zip(names, arguments, strict=True))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not pairs or any(name not in CHECKS or not isinstance(of, dict) for name, of in pairs):
        return None
    # Data sets with one schema for all rows have null for what an instruction does not take.
    return [(name, {k: v for k, v in of.items() if v is not None}) for name, of in pairs]
