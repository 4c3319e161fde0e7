"""Rows of formats with two answers to a prompt, as preferences: one function a format.

OpenAI's files, which hold chats as well, are here too.

Field names are those of the published data sets: OpenAI and TRL preference files, LLaMA-Factory,
PandaLM, chatbot arenas, AlpacaEval's judgements, RewardBench and RM-Bench. A function raises
RowError for a row that cannot be used and appends to `repairs` the names of repairs made.
`distinct` of data/formats/readers/ranked.py comes after each of them.
"""

from __future__ import annotations

from dataclasses import replace

from rayward.data.formats.readers.answers import answer_of, common_turns, prompt_and_answers
from rayward.data.formats.readers.chat import (
    Row,
    instruction_with_input,
    label_of,
    messages_of,
    source_of,
)
from rayward.data.formats.readers.margins import margin_of
from rayward.data.formats.readers.questions import prompt_of
from rayward.data.formats.readers.ranked import hh_rlhf
from rayward.data.formats.rows.turns import is_framed
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
    text_of,
)

SIDES = ("chosen", "rejected")
NO_WINNER = ("tie", "tie (bothbad)", "both_bad", "bothbad", "tie_bothbad")
RM_BENCH_STYLES = 3
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


def winner_of(value: object, name: str) -> str:
    """Side "a", "b" or "tie" of an arena's verdict, in any case. RowError for anything else."""
    said = value.strip().lower() if isinstance(value, str) else ""
    if said in NO_WINNER:
        return "tie"
    if said in ("a", "b", "model_a", "model_b", "model a", "model b"):
        return said[-1]
    raise RowError(name, describe(value), "model_a or model_b", "no verdict")


def arena(row: Row, repairs: list[str]) -> list[Record]:
    """{"prompt", "response_a", "response_b", "winner": "model_a" or "model_b"}, or a prompt.

    A row without a winner is a prompt.
    """
    prompt = text_of(row.get("prompt"), "prompt")
    winner = row.get("winner")
    if winner is None or winner != winner:  # NaN, as pandas has it
        repairs.append("left out answers without a winner")
        label = label_of(row, "id") or label_of(row, "question_id")
        return [Prompt((Turn("user", prompt),), "arena", label)]
    choice = {"a": 1, "b": 2}.get(winner_of(winner, "winner"))
    return _preferred(row, prompt, "response_a", "response_b", choice, "arena", ("winner",))


def alpaca_eval_annotation(row: Row, repairs: list[str]) -> list[Record]:
    """{"instruction", "input"?, "output_1", "output_2", "preference": 1 to 2 (0 and 1.5: a tie)}.

    AlpacaEval's judges write these rows, some with numbers between 1 and 2; AlpacaFarm's pairs have
    an input.
    """
    value = row.get("preference")
    value = None if value is None else number_of(value, "preference")
    if value is None or not 1 <= value <= 2 or value == 1.5:
        choice = None
    else:
        choice = 1 if value < 1.5 else 2
    prompt = instruction_with_input(row.get("instruction"), row.get("input"))
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

    RewardBench 2 has lists of answers, of which the chosen ones are alike, and so are the others;
    {"num_correct", "num_incorrect"} say how many they are.
    """
    turns = prompt_of(row.get("prompt"), "prompt", repairs)
    source = source_of("rewardbench", label_of(row, "subset"))
    check_turns(turns, "user", "prompt")
    for name, side in (("num_correct", "chosen"), ("num_incorrect", "rejected")):
        count = row.get(name)
        answers = _texts(row.get(side))
        if answers and count is not None and number_of(count, name) != len(answers):
            expected = f"{len(answers)}, the answers in {side}"
            raise RowError(name, describe(count), expected, "wrong number of answers")
    return _answered(row, turns, is_framed(row.get("prompt")), source)


def rm_bench(row: Row, repairs: list[str]) -> list[Record]:
    """{"prompt", "chosen", "rejected": three texts each, "domain", "id"?}: RM-Bench.

    The three are concise, detailed, and detailed in Markdown. Rows of pairs with a domain, which
    have one answer each, are those of `openai`.
    """
    given = {side: _texts(row.get(side)) for side in SIDES}
    if not any(given.values()):
        return openai(row, repairs)
    for side, answers in given.items():
        if len(answers) != RM_BENCH_STYLES:
            found = f"{len(answers)} answers" if answers else describe(row.get(side))
            expected = f"a list of {RM_BENCH_STYLES}: concise, detailed, detailed in Markdown"
            raise RowError(side, found, expected, "wrong number of answers")
    turns = prompt_of(row.get("prompt"), "prompt", repairs)
    check_turns(turns, "user", "prompt")
    source = source_of("rm_bench", label_of(row, "domain"))
    return _answered(row, turns, is_framed(row.get("prompt")), source)


def chosen_rejected(row: Row, repairs: list[str]) -> list[Record]:
    """{"chosen", "rejected"}: hh-rlhf's framed texts, or conversations that begin alike.

    What the two conversations have in common is the prompt, as TRL takes it.
    """
    if isinstance(row.get("chosen"), str) and isinstance(row.get("rejected"), str):
        margin = margin_of(row)
        return [replace(pair, margin=margin) for pair in hh_rlhf(row, repairs)]
    chosen, rejected = (messages_of(row.get(side), side) for side in SIDES)
    turns, better, worse = prompt_and_answers((chosen, rejected), SIDES)
    label = label_of(row, "id")
    return [Preference(turns, better, worse, margin_of(row), "chosen_rejected", label)]


def _answered(row: Row, turns: tuple[Turn, ...], framed: bool, source: str) -> list[Record]:
    """The record of "chosen" and "rejected": one answer each, or lists of them.

    Where the prompt is `framed`, white space around the answers belongs to the frame.
    """
    label = label_of(row, "id")
    margin = margin_of(row)
    better, worse = (_texts(row.get(side)) for side in SIDES)
    if better and worse:
        if margin is not None:
            raise RowError("margin", describe(margin), "none", "margin of several answers")
        ranks = (1.0,) * len(better) + (1.0 + len(better),) * len(worse)
        return [Ranking(turns, better + worse, source, label, ranks)]
    turns = _whole_prompt(row, turns)
    answers = [answer_of(row.get(side), side, turns) for side in SIDES]
    if framed:
        answers = [answer.strip() for answer in answers]
    return [Preference(turns, answers[0], answers[1], margin, source, label)]


def _texts(value: object) -> tuple[str, ...]:
    """The answers of a list of texts; none of anything else."""
    is_texts = isinstance(value, list) and all(isinstance(text, str) for text in value)
    return tuple(value) if isinstance(value, list) and is_texts else ()


def _whole_prompt(row: Row, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The prompt of two conversations, of which the row's own is one question.

    Zephyr's and argilla's pairs have the whole conversations, and beside them the first question or
    the last one as text.
    """
    if len(turns) != 1 or not all(isinstance(row.get(side), list) for side in SIDES):
        return turns
    chosen, rejected = (messages_of(row[side], side) for side in SIDES)
    common = common_turns(chosen, rejected)
    return common if len(common) > 1 and turns[0] in common else turns
