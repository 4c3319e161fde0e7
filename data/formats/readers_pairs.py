"""Rows of formats with two answers to a prompt, as preferences: one function a format.

OpenAI's files, which hold chats as well, are here too.

Field names are those of the published data sets: OpenAI and TRL preference files, LLaMA-Factory,
PandaLM, chatbot arenas, AlpacaEval's judgements and RewardBench. A function raises RowError for a
row that cannot be used and appends to `repairs` the names of repairs made. `distinct` of
data/formats/readers_ranked.py comes after each of them.
"""

from __future__ import annotations

from rayward.data.formats.readers_chat import (
    SPEAKERS,
    Row,
    instruction_with_input,
    label_of,
    messages_of,
    role_of,
    source_of,
)
from rayward.data.parts import tools_of
from rayward.data.records import (
    Conversation,
    Preference,
    Prompt,
    Record,
    RowError,
    Turn,
    check_turns,
    describe,
    number_of,
    object_of,
    objects_of,
    parts_of,
    text_of,
)


def sharegpt_pairs(row: Row, repairs: list[str]) -> list[Record]:
    """{"conversations": [{"from", "value"}], "chosen", "rejected": {"from", "value"}}.

    As LLaMA-Factory has it.
    """

    def turn(where: str, entry: Row) -> Turn:
        role = role_of(entry.get("from"), SPEAKERS, f"{where}.from")
        return Turn(role, text_of(entry.get("value"), f"{where}.value"))

    turns = tuple(turn(*item) for item in objects_of(row.get("conversations"), "conversations"))
    check_turns(turns, "user", "conversations")
    sides = [turn(side, object_of(row.get(side), side)) for side in ("chosen", "rejected")]
    for side, answer in zip(("chosen", "rejected"), sides, strict=True):
        if answer.role != "assistant":
            raise RowError(
                f"{side}.from", answer.role, "assistant", "answer does not follow the prompt"
            )
    chosen, rejected = (answer.content for answer in sides)
    label = label_of(row, "id")
    return [Preference(turns, chosen, rejected, source="sharegpt_pairs", id=label)]


def _preferred(
    row: Row,
    prompt: str,
    first: str,
    second: str,
    choice: float | None,
    source: str,
    labels: tuple[str, ...],
) -> list[Record]:
    """The preference of two answers; `choice` 1 or 2 is the better one, and all else a tie."""
    texts = [text_of(row.get(name), name) for name in (first, second)]
    if choice not in (1, 2):
        votes = ", ".join(describe(row.get(label)) for label in labels)
        raise RowError("/".join(labels), votes, "that one is better", "a tie")
    better, worse = texts if choice == 1 else texts[::-1]
    label = label_of(row, "id") or label_of(row, "idx") or label_of(row, "question_id")
    return [Preference((Turn("user", prompt),), better, worse, source=source, id=label)]


def pandalm(row: Row, repairs: list[str]) -> list[Record]:
    """{"instruction", "input", "response1", "response2", "annotator1", ...}: what most say.

    An annotator says 1 or 2, or 0 for a tie.
    """
    labels = tuple(
        name for name in sorted(row) if name.startswith("annotator") and row[name] is not None
    )
    votes = [number_of(row[name], name) for name in labels]
    # More than half of all votes: a tie that is voted counts against both.
    majority = [choice for choice in (1, 2) if 2 * votes.count(choice) > len(votes)]
    choice = majority[0] if majority else None
    prompt = instruction_with_input(row.get("instruction"), row.get("input"))
    return _preferred(row, prompt, "response1", "response2", choice, "pandalm", labels)


def arena(row: Row, repairs: list[str]) -> list[Record]:
    """{"prompt", "response_a", "response_b", "winner": "model_a" or "model_b"}, or a prompt.

    A row without a winner is a prompt.
    """
    prompt = text_of(row.get("prompt"), "prompt")
    if row.get("winner") is None:
        repairs.append("left out answers without a winner")
        label = label_of(row, "id") or label_of(row, "question_id")
        return [Prompt((Turn("user", prompt),), "arena", label)]
    choice = {"model_a": 1, "model_b": 2}.get(str(row["winner"]))
    return _preferred(row, prompt, "response_a", "response_b", choice, "arena", ("winner",))


def alpaca_eval_annotation(row: Row, repairs: list[str]) -> list[Record]:
    """{"instruction", "output_1", "output_2", "preference": 1 to 2 (0 and 1.5: a tie)}.

    AlpacaEval's judges write these rows, some with numbers between 1 and 2.
    """
    value = row.get("preference")
    value = None if value is None else number_of(value, "preference")
    if value is None or not 1 <= value <= 2 or value == 1.5:
        choice = None
    else:
        choice = 1 if value < 1.5 else 2
    prompt = text_of(row.get("instruction"), "instruction")
    return _preferred(row, prompt, "output_1", "output_2", choice, "alpaca_eval", ("preference",))


# ---- messages and pairs


def openai(row: Row, repairs: list[str]) -> list[Record]:
    """{"messages": [{"role", "content", "weight"?}]}: a conversation, or a prompt if the user ends.

    With "chosen" and "rejected" (text or messages) and perhaps "margin", a preference, whose prompt
    is "prompt" or "messages". Chat rows that give their first question again as "prompt" are read
    by their messages.
    """
    # KTO's rows have the same messages, and half of their answers are there to be unlearned.
    if isinstance(row.get("label"), bool):
        raise RowError(
            "label", str(row["label"]), "no verdict on the answer", "answer with a verdict"
        )
    # One of the two is enough, so that the error of half a pair names the other half. Pairs have
    # their prompt in "prompt" first, while chat rows may repeat the first question there.
    pair = row.get("chosen") is not None or row.get("rejected") is not None
    first, second = ("prompt", "messages") if pair else ("messages", "prompt")
    name = first if row.get(first) is not None else second
    turns, tools = _prompt(row.get(name), name), tools_of(row.get("tools") or row.get("functions"))
    if not pair:
        check_turns(turns, field=name)
        kind = Conversation if turns[-1].role == "assistant" else Prompt
        return [kind(turns, "openai", label_of(row, "id"), tools=tools)]
    answers = [_answer(row.get(side), side, turns) for side in ("chosen", "rejected")]
    margin = None if row.get("margin") is None else number_of(row["margin"], "margin")
    label = label_of(row, "id")
    return [Preference(turns, answers[0], answers[1], margin, "openai", label, tools)]


def rewardbench(row: Row, repairs: list[str]) -> list[Record]:
    """{"prompt", "chosen", "rejected", "subset"?, "id"?}, all text; or a prompt of messages."""
    turns = _prompt(row.get("prompt"), "prompt")
    source = source_of("rewardbench", label_of(row, "subset"))
    check_turns(turns, "user", "prompt")
    chosen, rejected = (text_of(row.get(side), side) for side in ("chosen", "rejected"))
    return [Preference(turns, chosen, rejected, source=source, id=label_of(row, "id"))]


def _prompt(value: object, name: str) -> tuple[Turn, ...]:
    if isinstance(value, str):
        return (Turn("user", text_of(value, name)),)
    return messages_of(value, name)


def _answer(value: object, name: str, prompt: tuple[Turn, ...]) -> str:
    """An answer's text, given as text, as one assistant message, or as the whole conversation."""
    if value is None or isinstance(value, str):
        return text_of(value, name)
    turns = messages_of(value, name)
    # A whole conversation repeats the prompt. Another one would pair an answer with a question that
    # it does not answer.
    if not turns or turns[-1].role != "assistant" or turns[:-1] not in ((), prompt):
        expected = "an assistant message, alone or after the prompt"
        raise RowError(
            name, f"{len(turns)} messages", expected, "answer does not follow the prompt"
        )
    for field, found, what in parts_of(turns[-1:]):
        raise RowError(field.replace("turns[0]", name), found, "text alone", f"answer with {what}")
    return turns[-1].content
