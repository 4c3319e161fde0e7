"""The tokenizer's own chat template, applied: to what is said, and to marks in place of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from rayward.data.records import Role, RowError, Turn
from rayward.data.templates.published.places import NOWHERE, message_of, places_of
from rayward.data.templates.published.program import MARK, State, apply, state_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Shape(NamedTuple):
    """A conversation with marks in place of what is said and thought; all else as it is.

    Marks are numbered as `voices`: of n turns, what turn i says is i, and what it thinks n + i.
    """

    turns: tuple[Turn, ...]
    tools: str | None = None

    def to(self, end: int) -> Shape:
        """Its first turns."""
        return self._replace(turns=self.turns[:end])


def shape_of(turns: Sequence[Turn], tools: str | None = None) -> Shape:
    """The shape of turns. A turn that only calls tools says nothing, and has no mark."""
    count = len(turns)
    return Shape(
        tuple(
            Turn(
                turn.role,
                MARK.format(index) if turn.content.strip() else "",
                None,
                None if turn.reasoning is None else MARK.format(count + index),
                turn.tool_calls,
                turn.tool_call_id,
                turn.name,
            )
            for index, turn in enumerate(turns)
        ),
        tools,
    )


@lru_cache(maxsize=1024)
def plain_shape(*roles: Role) -> Shape:
    """The shape of turns of these roles that have no parts."""
    return shape_of([Turn(role, "said") for role in roles])


def voices(turns: Sequence[Turn]) -> list[str]:
    """What each turn says, and then what each thinks."""
    return [*(turn.content for turn in turns), *(turn.reasoning or "" for turn in turns)]


def render(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    contents: Sequence[str],
    prompt: bool,
    tools: str | None = None,
) -> str:
    """The turns with `contents` as their contents. Raises what the template raises."""
    has_parts = any(turn.reasoning is not None or turn.tool_calls for turn in turns)
    places = places_of(tokenizer, state_of(tokenizer)) if has_parts else NOWHERE
    messages = [message_of(places, turn, text) for turn, text in zip(turns, contents, strict=True)]
    return apply(tokenizer, messages, prompt, tools)


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    contents: Sequence[str],
    prompt: bool,
    tools: str | None = None,
) -> str:
    """RowError where the template raises: of the first turn after all that it renders."""
    try:
        return render(tokenizer, turns, contents, prompt, tools)
    except Exception as error:  # a template is a foreign program: it raises what it likes
        # The longest beginning that it renders: what it cannot take is the turn after that. All are
        # tried, since some beginnings end where no template ends.
        last = 0
        for end in range(1, len(turns)):
            try:
                render(tokenizer, turns[:end], contents[:end], False, tools)
                last = end
            except Exception:
                continue
        raise RowError(
            where(turns, last),
            f"{type(error).__name__}: {error}"[:200],
            "a turn that the chat template renders",
            "the chat template raises",
        ) from None


@lru_cache(maxsize=1024)
def marked(
    tokenizer: PreTrainedTokenizerBase, state: State, shape: Shape, prompt: bool
) -> str | RowError:
    """The rendering of a shape, or why there is none: cached, so it is returned."""
    contents = [turn.content for turn in shape.turns]
    try:
        return rendered(tokenizer, shape.turns, contents, prompt, shape.tools)
    except RowError as error:
        return error


def where(turns: Sequence[Turn], number: int) -> str:
    """A turn, or what it thinks, for people."""
    if number >= len(turns):
        return f"turns[{number - len(turns)}].reasoning"
    return f"turns[{number}] ({turns[number].role})"
