"""Rows of formats with two answers to a prompt, as preferences: one function a format.

OpenAI's files, which hold chats as well, are here too.

Field names are those of the published data sets: OpenAI and TRL preference files, LLaMA-Factory,
PandaLM, chatbot arenas, AlpacaEval's judgements and RewardBench. A function raises RowError for a
row that cannot be used and appends to `repairs` the names of repairs made. `distinct` of
data/formats/readers_ranked.py comes after each of them.
"""

from __future__ import annotations

from rayward.data.formats.readers_chat import (
    Row,
    instruction_with_input,
    label_of,
    messages_of,
    source_of,
)
from rayward.data.formats.readers_questions import prompt_of
from rayward.data.formats.readers_ranked import hh_rlhf
from rayward.data.formats.turns import is_framed
from rayward.data.records import (
    Conversation,
    Preference,
    Prompt,
    Ranking,
    Record,
    RowError,
    Turn,
    check_turns,
    describe,
    number_of,
    parts_of,
    text_of,
)

ANNOTATORS = tuple(f"annotator{number}" for number in range(1, 10))


def sharegpt_pairs(row: Row, repairs: list[str]) -> list[Record]:
    """{"conversations": [{"from", "value"}], "chosen", "rejected": {"from", "value"}}.

    As LLaMA-Factory has it.
    """

    turns = messages_of(row.get("conversations"), "conversations", repairs)
    check_turns(turns, "user", "conversations")
    return _answered(row, turns, False, "sharegpt_pairs")


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
    labels = tuple(name for name in ANNOTATORS if row.get(name) is not None)
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

    With "chosen" and "rejected", the pairs of `pairs`. Chat rows that give their first question
    again as "prompt" are read by their messages.
    """
    # One of the two is enough, so that the error of half a pair names the other half. Pairs have
    # their prompt in "prompt" first, while chat rows may repeat the first question there.
    pair = row.get("chosen") is not None or row.get("rejected") is not None
    first, second = ("prompt", "messages") if pair else ("messages", "prompt")
    name = first if row.get(first) is not None else second
    # Text in "messages" is no question, but a conversation that nothing has decoded.
    turns = (messages_of if name == "messages" else prompt_of)(row.get(name), name, repairs)
    if pair:
        return _answered(row, turns, is_framed(row.get(name)), "openai")
    check_turns(turns, field=name)
    kind = Conversation if turns[-1].role == "assistant" else Prompt
    return [kind(turns, "openai", label_of(row, "id"))]


def question_pairs(row: Row, repairs: list[str]) -> list[Record]:
    """{"question" or "instruction" with "input", "chosen", "rejected"}: Orca's, argilla's pairs."""
    if row.get("question") is not None:
        name, text = "question", row["question"]
    else:
        name, text = "instruction", instruction_with_input(row.get("instruction"), row.get("input"))
    return _answered(row, prompt_of(text, name, repairs), is_framed(text), "question_pairs")


def rewardbench(row: Row, repairs: list[str]) -> list[Record]:
    """{"prompt", "chosen", "rejected", "subset"?, "id"?}, text or messages.

    RewardBench 2 has lists of answers, of which the chosen ones are alike, and so are the others.
    """
    turns = prompt_of(row.get("prompt"), "prompt", repairs)
    source = source_of("rewardbench", label_of(row, "subset"))
    check_turns(turns, "user", "prompt")
    return _answered(row, turns, is_framed(row.get("prompt")), source)


def chosen_rejected(row: Row, repairs: list[str]) -> list[Record]:
    """{"chosen", "rejected"}: hh-rlhf's framed texts, or conversations that begin alike.

    What the two conversations have in common is the prompt, as TRL takes it.
    """
    if isinstance(row.get("chosen"), str) and isinstance(row.get("rejected"), str):
        return hh_rlhf(row, repairs)
    sides = [messages_of(row.get(side), side) for side in ("chosen", "rejected")]
    common = 0
    for one, other in zip(*sides, strict=False):
        # An answer is never a part of the prompt where nothing follows it.
        if one != other or min(map(len, sides)) == common + 1:
            break
        common += 1
    turns = sides[0][:common]
    check_turns(turns, "user", "chosen")
    answers = [
        _only_answer(side[common:], name)
        for side, name in zip(sides, ("chosen", "rejected"), strict=True)
    ]
    label = label_of(row, "id")
    return [Preference(turns, answers[0], answers[1], _margin(row), "chosen_rejected", label)]


def _answered(row: Row, turns: tuple[Turn, ...], framed: bool, source: str) -> list[Record]:
    """The record of "chosen" and "rejected": one answer each, or lists of them.

    Where the prompt is `framed`, white space around the answers belongs to the frame.
    """
    label = label_of(row, "id")
    better, worse = (_texts(row.get(side)) for side in ("chosen", "rejected"))
    if better and worse:
        if _margin(row) is not None:
            raise RowError("margin", describe(row["margin"]), "none", "margin of several answers")
        ranks = (1.0,) * len(better) + (1.0 + len(better),) * len(worse)
        return [Ranking(turns, better + worse, source, label, ranks)]
    answers = [_answer(row.get(side), side, turns) for side in ("chosen", "rejected")]
    if framed:
        answers = [answer.strip() for answer in answers]
    return [Preference(turns, answers[0], answers[1], _margin(row), source, label)]


def _texts(value: object) -> tuple[str, ...]:
    """The answers of a list of texts; none of anything else."""
    is_texts = isinstance(value, list) and all(isinstance(text, str) for text in value)
    return tuple(value) if isinstance(value, list) and is_texts else ()


def _margin(row: Row) -> float | None:
    return None if row.get("margin") is None else number_of(row["margin"], "margin")


def _answer(value: object, name: str, prompt: tuple[Turn, ...]) -> str:
    """An answer's text: text, one assistant message, alone or in a list, or the conversation."""
    if value is None or isinstance(value, str):
        return text_of(value, name)
    turns = messages_of([value] if isinstance(value, dict) else value, name)
    # A whole conversation repeats the prompt. Another one would pair an answer with a question that
    # it does not answer.
    if turns[:-1] == prompt:
        turns = turns[-1:]
    return _only_answer(turns, name)


def _only_answer(turns: tuple[Turn, ...], name: str) -> str:
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
