"""The five records that every reader yields and every stage eats, and what makes them valid.

A conversation is an optional system turn, then user and assistant in turn, the user first.
`Conversation` is text to imitate, `Prompt` text to answer, `Ranking` K answers to a prompt, best
first, `Preference` two; `Labelled` is one answer with a verdict, good or bad.

Records are plain frozen data: building one checks nothing, `validate` checks everything. What is
wrong is a `RowError`: where (`field`), what was there (`found`), what belongs there (`expected`),
and the short `reason` under which a report counts it. Their form on disk: data/record_json.py.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]


class RowError(ValueError):
    """A row, or a part of one, that is not what it should be. `reason` quotes nothing of it."""

    def __init__(self, field: str, found: str, expected: str, reason: str = "") -> None:
        self.field = field
        self.found = found
        self.expected = expected
        # Reports count rows by reason. An index in it would make a reason of its own of every row.
        self.reason = reason or f"{re.sub('[0-9]+', '', field)} is not {expected}"
        super().__init__(f"{self.field}: found {self.found}, expected {self.expected}")

    def as_dict(self) -> dict[str, str]:
        """The error as JSON."""
        return {
            "field": self.field,
            "found": self.found,
            "expected": self.expected,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said. `weight`: its share in the SFT loss, where None stands for the role's.

    The assistant's is 1, that of the others 0.
    """

    role: Role
    content: str
    weight: float | None = None

    @property
    def loss_weight(self) -> float:
        """`weight`, or what None stands for."""
        return float(self.role == "assistant") if self.weight is None else self.weight


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that end with the assistant. `quality`: the source's label, such as a model's name."""

    turns: tuple[Turn, ...]
    source: str = ""
    id: str = ""
    quality: str | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """Turns that end with the user.

    `follow_ups`: what the user says after each answer, as in MT-Bench. `reference`: an answer known
    to be right, for sources of reward that compare.
    """

    turns: tuple[Turn, ...]
    source: str = ""
    id: str = ""
    follow_ups: tuple[str, ...] = ()
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """K >= 2 answers to `turns` (which end with the user), best first; equal `ranks` are ties."""

    turns: tuple[Turn, ...]
    answers: tuple[str, ...]
    source: str = ""
    id: str = ""
    ranks: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to `turns` (which end with the user). `margin`: how much better `chosen` is."""

    turns: tuple[Turn, ...]
    chosen: str
    rejected: str
    margin: float | None = None
    source: str = ""
    id: str = ""

    def as_ranking(self) -> Ranking:
        """The same as a ranking of K = 2. The margin is the distance of its ranks, 1 if unknown."""
        # A margin of 0 is next to a tie, not one: `chosen` is better still, and equal ranks would
        # make no pair to learn from.
        ranks = None if self.margin is None else (1.0, 1.0 + max(self.margin, 1e-6))
        return Ranking(self.turns, (self.chosen, self.rejected), self.source, self.id, ranks)


@dataclass(frozen=True, slots=True)
class Labelled:
    """An answer to `turns` (which end with the user) and whether it is a good one, as KTO has it.

    A bad answer is no text to imitate: nothing makes a `Conversation` of it.
    """

    turns: tuple[Turn, ...]
    answer: str
    good: bool
    source: str = ""
    id: str = ""


Record = Conversation | Prompt | Ranking | Preference | Labelled
KINDS: dict[str, type[Record]] = {
    "conversation": Conversation,
    "prompt": Prompt,
    "ranking": Ranking,
    "preference": Preference,
    "labelled": Labelled,
}


# ---- values of unknown type

# White space, and what has no width: joiners, marks of direction, the soft hyphen, the BOM. `strip`
# without an argument keeps the latter.
BLANK = "".join(chr(code) for code in range(0x3001) if chr(code).isspace()) + (
    "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\u2064\ufeff"
)


def describe(value: object) -> str:
    """`value` in a few words for an error message, however large it is."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else f"{value[:60]!r}... ({len(value)} characters)"
    if isinstance(value, list | tuple | dict):
        return f"{type(value).__name__} of {len(value)}"
    return str(value) if value is None or isinstance(value, bool | float) else type(value).__name__


def surrogate_in(text: str) -> str:
    """The first character that UTF-8 cannot encode, half of a surrogate pair; "" if there is none.

    JSON can hold one as an escape, `\\ud800`. Writing it to a file would raise much later.
    """
    try:
        text.encode()  # runs over every text of every row: ten times as fast as a pattern
    except UnicodeEncodeError as error:
        return text[error.start]
    return ""


def text_of(value: object, field: str) -> str:
    """`value` if it is text that says something and can be written as UTF-8. RowError otherwise."""
    if not isinstance(value, str):
        if isinstance(value, RowError):  # in its place in the row: see data/formats/containers.py
            raise RowError(field, value.found, value.expected, value.reason)
        raise RowError(
            field, describe(value), "text", "missing text" if value is None else "wrong type"
        )
    stripped = value.strip()
    # In two steps, as this runs over every text of every row: few begin with what has no width.
    if not stripped or (stripped[0] in BLANK and not stripped.strip(BLANK)):
        raise RowError(field, describe(value), "text that is not blank", "empty text")
    if found := surrogate_in(value):
        raise RowError(field, f"\\u{ord(found):04x}", "valid Unicode", "invalid Unicode")
    return value


def number_of(value: object, field: str) -> float:
    """`value` as a float if it is a finite number (a bool is not). RowError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float):  # bool is an int in Python
        raise RowError(field, describe(value), "a number", "wrong type")
    if not abs(value) <= sys.float_info.max:  # NaN compares false; an int may be beyond all floats
        raise RowError(field, describe(value), "a finite number", "number not finite")
    return float(value)


def list_of(value: object, field: str) -> Sequence[Any]:
    """`value` if it is a list. RowError otherwise."""
    if not isinstance(value, list | tuple):
        raise RowError(
            field, describe(value), "a list", "missing list" if value is None else "wrong type"
        )
    return value


def object_of(value: object, field: str) -> Mapping[str, Any]:
    """`value` if it is an object with fields. RowError otherwise."""
    if not isinstance(value, dict):
        raise RowError(field, describe(value), "an object", "wrong type")
    return value


def objects_of(value: object, field: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """("field[0]", object), ... of a list of objects. RowError if it is none or an item is none."""
    for index, item in enumerate(list_of(value, field)):
        yield f"{field}[{index}]", object_of(item, f"{field}[{index}]")


# ---- validity


def check_turns(turns: Sequence[Turn], last: Role | None = None, field: str = "turns") -> None:
    """RowError unless `turns` are system (optional), then user and assistant in turn, to `last`."""
    # Values first, order second: the order is read from roles that are known to be roles.
    for index, turn in enumerate(turns):
        where = f"{field}[{index}]"
        if not isinstance(turn.role, str) or turn.role not in ("system", "user", "assistant"):
            raise RowError(
                f"{where}.role", describe(turn.role), "system, user or assistant", "unknown role"
            )
        text_of(turn.content, f"{where}.content")
        if turn.weight is not None and number_of(turn.weight, f"{where}.weight") < 0:
            raise RowError(
                f"{where}.weight", str(turn.weight), "a weight of at least 0", "negative weight"
            )
    roles = [turn.role for turn in turns]
    first = 1 if roles[:1] == ["system"] else 0
    if len(roles) == first:
        raise RowError(field, f"{first} turns", "at least one turn of the user", "no turns")
    for index, role in enumerate(roles[first:]):
        expected = ("user", "assistant")[index % 2]
        if role != expected:
            leading = index == 0 and role == "assistant"
            reason = "assistant first" if leading else "roles do not alternate"
            raise RowError(f"{field}[{first + index}].role", role, expected, reason)
    if last and roles[-1] != last:
        raise RowError(
            f"{field}[{len(turns) - 1}].role", roles[-1], last, f"does not end with the {last}"
        )


def validate(record: Record) -> None:
    """RowError if `record` breaks a rule: roles, blank text, number of answers, order of ranks."""
    check_turns(record.turns, last="assistant" if isinstance(record, Conversation) else "user")
    _check_label(record.source, "source")
    _check_label(record.id, "id")
    if isinstance(record, Conversation) and record.quality is not None:
        text_of(record.quality, "quality")
    elif isinstance(record, Preference):
        text_of(record.chosen, "chosen")
        text_of(record.rejected, "rejected")
        if record.margin is not None and number_of(record.margin, "margin") < 0:
            raise RowError(
                "margin", str(record.margin), "a margin of at least 0", "negative margin"
            )
    elif isinstance(record, Prompt):
        for index, text in enumerate(record.follow_ups):
            text_of(text, f"follow_ups[{index}]")
        if record.reference is not None:
            text_of(record.reference, "reference")
    elif isinstance(record, Labelled):
        text_of(record.answer, "answer")
        if not isinstance(record.good, bool):
            raise RowError("good", describe(record.good), "true or false", "wrong type")
    elif isinstance(record, Ranking):
        _check_ranking(record)


def _check_ranking(ranking: Ranking) -> None:
    if len(ranking.answers) < 2:
        raise RowError(
            "answers", f"{len(ranking.answers)} answers", "at least 2", "too few answers"
        )
    for index, answer in enumerate(ranking.answers):
        text_of(answer, f"answers[{index}]")
    if ranking.ranks is None:
        return
    if len(ranking.ranks) != len(ranking.answers):
        expected = f"{len(ranking.answers)}, one an answer"
        raise RowError(
            "ranks", f"{len(ranking.ranks)} ranks", expected, "ranks do not match the answers"
        )
    ranks = [number_of(rank, f"ranks[{index}]") for index, rank in enumerate(ranking.ranks)]
    # Answers are best first and rank 1 is the best: a falling rank means that either is wrong.
    if ranks != sorted(ranks):
        raise RowError("ranks", str(ranks)[:60], "ranks in rising order", "ranks out of order")


def _check_label(value: object, field: str) -> None:
    if value != "":  # a label may be absent, but what is there must be text
        text_of(value, field)
