"""Answers that are compared, as text: of text, of a message, of a conversation or of two."""

from __future__ import annotations

from rayward.data.formats.readers.chat import messages_of
from rayward.data.records import RowError, Turn, check_turns, parts_of, text_of


def answer_of(value: object, name: str, prompt: tuple[Turn, ...]) -> str:
    """An answer's text: text, one assistant message, alone or in a list, or the conversation."""
    if value is None or isinstance(value, str):
        return text_of(value, name)
    turns = messages_of([value] if isinstance(value, dict) else value, name)
    # A whole conversation repeats the prompt. Another one would pair an answer with a question that
    # it does not answer.
    if turns[:-1] == prompt:
        turns = turns[-1:]
    return only_answer(turns, name)


def only_answer(turns: tuple[Turn, ...], name: str) -> str:
    if len(turns) != 1 or turns[0].role != "assistant":
        expected = "an assistant message, alone or after the prompt"
        raise RowError(
            name, f"{len(turns)} messages", expected, "answer does not follow the prompt"
        )
    if turns[0].loss_weight != 1:
        found = str(turns[0].weight)
        raise RowError(f"{name}.weight", found, "1, or none", "loss weight of a compared answer")
    for field, found, what in parts_of(turns):
        raise RowError(field.replace("turns[0]", name), found, "text alone", f"answer with {what}")
    return turns[0].content


def common_turns(one: tuple[Turn, ...], other: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """What two conversations begin with alike, as far as an answer of each follows it."""
    common = 0
    for turn, twin in zip(one, other, strict=False):
        # An answer is never a part of the prompt where nothing follows it.
        if turn != twin or min(len(one), len(other)) == common + 1:
            break
        common += 1
    return one[:common]


def prompt_and_answers(
    sides: tuple[tuple[Turn, ...], tuple[Turn, ...]], names: tuple[str, str]
) -> tuple[tuple[Turn, ...], str, str]:
    """The prompt that two conversations have in common, and the one answer of each.

    RowError where they differ before the last answer.
    """
    turns = common_turns(*sides)
    check_turns(turns, "user", names[0])
    one, other = (
        only_answer(side[len(turns) :], name) for side, name in zip(sides, names, strict=True)
    )
    return turns, one, other
