"""The five records that every reader yields and every stage eats, and what makes them valid.

A conversation is an optional system turn, then user and assistant in turn, the user first. After
an answer that calls tools may come their results, turns of the role "tool", and the next answer.
`Conversation` is text to imitate, `Prompt` text to answer, `Ranking` K answers to a prompt, best
first, `Preference` two; `Labelled` is one answer with a verdict, good or bad.

Records are plain frozen data: building one checks nothing, `validate` checks everything. What is
wrong is a `RowError`: where (`field`), what was there (`found`), what belongs there (`expected`),
and the short `reason` under which a report counts it. Their form on disk: data/record_json.py.

What most records lack are parts: tools, calls of tools with their results, and reasoning. Not every
format or template has a place for them: `parts_of` names them, `without` takes one out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeVar

from rayward.data.parts import ToolCall, check_calls, check_tools, tool_names
from rayward.data.values import (
    BLANK,
    RowError,
    describe,
    list_of,
    number_of,
    object_of,
    objects_of,
    surrogate_in,
    text_of,
)

__all__ = [
    "BLANK",
    "KINDS",
    "PARTS",
    "Conversation",
    "Labelled",
    "Preference",
    "Prompt",
    "Ranking",
    "Record",
    "Role",
    "RowError",
    "ToolCall",
    "Turn",
    "check_turns",
    "describe",
    "list_of",
    "number_of",
    "object_of",
    "objects_of",
    "parts_of",
    "surrogate_in",
    "text_of",
    "validate",
    "without",
]

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said. `weight`: its share in the SFT loss, where None stands for the role's.

    The assistant's is 1, that of the others 0. The assistant alone has `reasoning`, which it
    thought before it said `content`, and `tool_calls`, with which `content` may be blank. A turn of
    the role "tool" is the result of a call: `tool_call_id` and `name` may say of which.
    """

    role: Role
    content: str
    weight: float | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""

    @property
    def loss_weight(self) -> float:
        """`weight`, or what None stands for."""
        return float(self.role == "assistant") if self.weight is None else self.weight

    def __repr__(self) -> str:
        """Without parts that are absent: half-done files of `data rank` know their rows by it."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        always = ("role", "content", "weight")
        shown = (f"{name}={value!r}" for name, value in given.items() if value or name in always)
        return f"Turn({', '.join(shown)})"


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that end with the assistant. `quality`: the source's label, such as a model's name.

    `tools`, here and below: the schemas of the tools on offer, as JSON text (`parts.tools_of`).
    """

    turns: tuple[Turn, ...]
    source: str = ""
    id: str = ""
    quality: str | None = None
    tools: str | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """Turns that end with the user, or with results of tools.

    `follow_ups`: what the user says after each answer, as in MT-Bench. `reference`: an answer known
    to be right, for sources of reward that compare.
    """

    turns: tuple[Turn, ...]
    source: str = ""
    id: str = ""
    follow_ups: tuple[str, ...] = ()
    reference: str | None = None
    tools: str | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """K >= 2 answers to `turns` (which end as a prompt's), best first; equal `ranks` are ties."""

    turns: tuple[Turn, ...]
    answers: tuple[str, ...]
    source: str = ""
    id: str = ""
    ranks: tuple[float, ...] | None = None
    tools: str | None = None


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to `turns` (which end as a prompt's). `margin`: how much better `chosen` is."""

    turns: tuple[Turn, ...]
    chosen: str
    rejected: str
    margin: float | None = None
    source: str = ""
    id: str = ""
    tools: str | None = None

    def as_ranking(self) -> Ranking:
        """The same as a ranking of K = 2. The margin is the distance of its ranks, 1 if unknown."""
        # A margin of 0 is next to a tie, not one: `chosen` is better still, and equal ranks would
        # make no pair to learn from.
        ranks = None if self.margin is None else (1.0, 1.0 + max(self.margin, 1e-6))
        answers = (self.chosen, self.rejected)
        return Ranking(self.turns, answers, self.source, self.id, ranks, self.tools)


@dataclass(frozen=True, slots=True)
class Labelled:
    """An answer to `turns` (which end as a prompt's) and whether it is a good one, as KTO has it.

    A bad answer is no text to imitate: nothing makes a `Conversation` of it.
    """

    turns: tuple[Turn, ...]
    answer: str
    good: bool
    source: str = ""
    id: str = ""
    tools: str | None = None


Record = Conversation | Prompt | Ranking | Preference | Labelled
KINDS: dict[str, type[Record]] = {
    "conversation": Conversation,
    "prompt": Prompt,
    "ranking": Ranking,
    "preference": Preference,
    "labelled": Labelled,
}


# ---- parts

R = TypeVar("R", bound=Record)
PARTS = ("tools", "tool_calls", "reasoning")
"""What `without` takes out."""


def parts_of(turns: Sequence[Turn], tools: str | None = None) -> Iterator[tuple[str, str, str]]:
    """(field, what was found there, what it is) of each part of a record."""
    if tools:
        yield "tools", _few(tool_names(tools)), "tools"
    for index, turn in enumerate(turns):
        if turn.role == "tool":
            yield f"turns[{index}].role", "tool", "results of tools"
        if turn.reasoning is not None:
            yield f"turns[{index}].reasoning", describe(turn.reasoning), "reasoning"
        if turn.tool_calls:
            names = [call.name for call in turn.tool_calls]
            yield f"turns[{index}].tool_calls", _few(names), "tool calls"


def without(record: R, part: str) -> R:
    """`record` without one of PARTS; itself where it has none. Nothing is checked.

    With the calls go the results, and turns that only call. What is left may be no valid record:
    two answers in a row where one was given before a call and one after.
    """
    if part == "tools":
        return record if record.tools is None else replace(record, tools=None)
    if part == "reasoning":
        turns = tuple(
            turn if turn.reasoning is None else replace(turn, reasoning=None)
            for turn in record.turns
        )
    elif part == "tool_calls":
        turns = tuple(
            replace(turn, tool_calls=()) if turn.tool_calls else turn
            for turn in record.turns
            if turn.role != "tool" and (turn.content.strip() or not turn.tool_calls)
        )
    else:
        raise ValueError(f"{part!r} is no part of a record; parts are {', '.join(PARTS)}")
    return record if turns == record.turns else replace(record, turns=turns)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)


# ---- validity


def check_turns(turns: Sequence[Turn], last: Role | None = None, field: str = "turns") -> None:
    """RowError unless `turns` are system (optional), then user and assistant in turn, to `last`.

    Results of tools stand between an answer that calls and the next one, and where the user may be
    last, they may be.
    """
    # Values first, order second: the order is read from roles that are known to be roles.
    for index, turn in enumerate(turns):
        _check_turn(turn, f"{field}[{index}]")
    roles = [turn.role for turn in turns]
    first = 1 if roles[:1] == ["system"] else 0
    if len(roles) == first:
        raise RowError(field, f"{first} turns", "at least one turn of the user", "no turns")
    for index, turn in enumerate(turns[first:], start=first):
        expected = _next_roles(turns[index - 1] if index > first else None)
        if turn.role not in expected:
            reason = "roles do not alternate"
            if turn.role == "tool":
                reason = "a tool's result without a call"
            elif index == first and turn.role == "assistant":
                reason = "assistant first"
            raise RowError(f"{field}[{index}].role", turn.role, " or ".join(expected), reason)
    asks = last == "user" and roles[-1] == "tool"
    if last and roles[-1] != last and not asks:
        raise RowError(
            f"{field}[{len(turns) - 1}].role", roles[-1], last, f"does not end with the {last}"
        )


def _next_roles(before: Turn | None) -> tuple[Role, ...]:
    """The roles of a turn after `before`, None being the beginning or the system turn."""
    if before is None:
        return ("user",)
    if before.role == "assistant":
        return ("user", "tool") if before.tool_calls else ("user",)
    return ("assistant", "tool") if before.role == "tool" else ("assistant",)


def _check_turn(turn: Turn, where: str) -> None:
    roles = ("system", "user", "assistant", "tool")
    if not isinstance(turn.role, str) or turn.role not in roles:
        expected = "system, user, assistant or tool"
        raise RowError(f"{where}.role", describe(turn.role), expected, "unknown role")
    if turn.weight is not None and number_of(turn.weight, f"{where}.weight") < 0:
        raise RowError(
            f"{where}.weight", str(turn.weight), "a weight of at least 0", "negative weight"
        )
    if turn.role != "assistant":
        for name, value in (("reasoning", turn.reasoning), ("tool_calls", turn.tool_calls)):
            if value:
                found = f"{turn.role} with {name}"
                raise RowError(f"{where}.{name}", found, "it at the assistant", "wrong role")
    elif turn.reasoning is not None:
        text_of(turn.reasoning, f"{where}.reasoning")
    if turn.role != "tool":
        for name, label in (("tool_call_id", turn.tool_call_id), ("name", turn.name)):
            if label:
                found = f"{turn.role} with {name}"
                raise RowError(f"{where}.{name}", found, "it at a tool's result", "wrong role")
    else:
        _check_label(turn.tool_call_id, f"{where}.tool_call_id")
        _check_label(turn.name, f"{where}.name")
    check_calls(turn.tool_calls, f"{where}.tool_calls")
    # Who only calls a tool says nothing.
    silent = bool(turn.tool_calls) and isinstance(turn.content, str) and not turn.content.strip()
    if not silent:
        text_of(turn.content, f"{where}.content")


def validate(record: Record) -> None:
    """RowError if `record` breaks a rule: roles, blank text, number of answers, order of ranks."""
    check_turns(record.turns, last="assistant" if isinstance(record, Conversation) else "user")
    _check_label(record.source, "source")
    _check_label(record.id, "id")
    if record.tools is not None:
        check_tools(record.tools)
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
