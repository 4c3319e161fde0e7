"""Rows of formats with several answers to a prompt, as rankings and preferences: one function a
format.

OpenAI's files, which hold chats as well, are here too.

Field names are those of the published data sets: Anthropic hh-rlhf, berkeley-nest/Nectar,
UltraFeedback, OpenAI and TRL preference files, and RewardBench. White space around the turns of
"\\n\\nHuman: ...\\n\\nAssistant: ..." text belongs to the frame. A function raises RowError for a
row that cannot be used and appends to `repairs` the names of repairs made. `distinct` comes after
each of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rayward.data.formats.readers_chat import (
    SPEAKERS,
    Row,
    asked,
    label_of,
    messages_of,
    role_of,
    source_of,
)
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
    object_of,
    objects_of,
    text_of,
)


def distinct(record: Record, repairs: list[str]) -> Record:
    """The record, without answers that are the same but for white space around them: of these the
    best one stays.

    RowError if fewer than two are left: no preference can be learned from one answer.
    """
    if not isinstance(record, Ranking | Preference):
        return record
    ranking = record.as_ranking() if isinstance(record, Preference) else record
    first: dict[str, int] = {}  # answers are in order, best first
    for index, answer in enumerate(ranking.answers):
        first.setdefault(answer.strip(), index)
    if len(first) == len(ranking.answers):
        return record
    if len(first) < 2:
        field = "rejected" if isinstance(record, Preference) else "answers"
        raise RowError(
            field,
            describe(ranking.answers[-1]),
            "another answer than the best one",
            "identical answers",
        )
    repairs.append("left out identical answer")
    ranks = ranking.ranks and tuple(ranking.ranks[index] for index in first.values())
    return replace(
        ranking, answers=tuple(ranking.answers[index] for index in first.values()), ranks=ranks
    )


def _framed(text: str, name: str) -> list[Turn]:
    """Turns of "\\n\\nHuman: ...\\n\\nAssistant: ..." text; a last one of the assistant may be
    blank.
    """
    before, *pieces = re.split(r"\n\n(Human|Assistant):", text)
    if before.strip() or not pieces:
        expected = 'text that starts with "\\n\\nHuman:"'
        raise RowError(name, describe(text), expected, "no Human/Assistant frame")
    said = zip(pieces[::2], pieces[1::2], strict=True)
    return [Turn(SPEAKERS[speaker.lower()], content.strip()) for speaker, content in said]


def hh_rlhf(row: Row, repairs: list[str]) -> list[Record]:
    """{"chosen", "rejected"}: two framed texts with one prompt, split at the last
    "\\n\\nAssistant:".
    """
    prompts, answers = [], []
    for name in ("chosen", "rejected"):
        prompt, found, answer = text_of(row.get(name), name).rpartition("\n\nAssistant:")
        if not found or "\n\nHuman:" in answer:
            raise RowError(
                name, "a Human turn last", "an Assistant turn last", "ends with the human"
            )
        prompts.append(prompt)
        answers.append(text_of(answer, f"{name}, last turn").strip())
    if prompts[0] != prompts[1]:
        raise RowError("rejected", describe(prompts[1]), "the prompt of chosen", "prompts differ")
    turns = tuple(_framed(prompts[0], "chosen"))
    return [Preference(turns, answers[0], answers[1], source="hh_rlhf", id=label_of(row, "id"))]


def nectar(row: Row, repairs: list[str]) -> list[Record]:
    """{"prompt": framed text, "answers": [{"answer", "rank"}]} of any K >= 2; rank 1 is best, ties
    are kept.
    """
    turns = _framed(text_of(row.get("prompt"), "prompt"), "prompt")
    if turns[-1] == Turn("assistant", ""):
        turns.pop()
    ranked: list[tuple[float, str]] = []
    for where, entry in objects_of(row.get("answers"), "answers"):
        rank = number_of(entry.get("rank"), f"{where}.rank")
        ranked.append((rank, text_of(entry.get("answer"), f"{where}.answer")))
    for name in ("num_responses", "num_response"):
        if row.get(name) is not None and number_of(row[name], name) != len(ranked):
            expected = f"{len(ranked)}, the number of answers"
            raise RowError(name, str(row[name]), expected, "wrong number of answers")
    ranked.sort(key=lambda pair: pair[0])
    source = row.get("source")
    if isinstance(source, list | tuple):
        source = "+".join(text_of(part, "source") for part in source)
    ranks, answers = tuple(rank for rank, _ in ranked), tuple(answer for _, answer in ranked)
    label = label_of({"source": source}, "source") or "nectar"
    return [Ranking(tuple(turns), answers, label, label_of(row, "id"), ranks)]


# ---- UltraFeedback
# -----------------------------------------------------------------------------------------


def ultrafeedback(row: Row, repairs: list[str]) -> list[Record]:
    """{"instruction", "completions": [{"response", "annotations", "fine-grained_score",
    "overall_score"}]}.

    Completions are ranked by the mean of their aspects' ratings, where "N/A" does not count;
    without ratings by "fine-grained_score" (the published mean), at last by "overall_score", which
    is off by a factor of ten in the first release. The measure that most completions have is used,
    the first of those at a tie. Completions without it are left out and counted. Equal scores are
    ties. The system prompts, which differ between the completions of one row, are no part of the
    ranking.
    """
    prompt = (Turn("user", text_of(row.get("instruction"), "instruction")),)
    scored: list[tuple[dict[str, float], str]] = []
    for where, entry in objects_of(row.get("completions"), "completions"):
        if isinstance(entry.get("response"), str) and not entry["response"].strip():
            repairs.append("left out completion without text")
            continue
        scored.append((_scores(entry, where), text_of(entry.get("response"), f"{where}.response")))
    measures = ("ratings", "fine-grained_score", "overall_score")
    measure = max(measures, key=lambda name: sum(name in scores for scores, _ in scored))
    used = [(scores[measure], answer) for scores, answer in scored if measure in scores]
    if len(used) < 2:
        raise RowError("completions", f"{len(used)} with a score", "at least 2", "too few answers")
    repairs += ["left out completion without a score"] * (len(scored) > len(used))
    used.sort(key=lambda pair: -pair[0])
    ranks = tuple(1.0 + sum(other > score for other, _ in used) for score, _ in used)
    source = source_of("ultrafeedback", label_of(row, "source"))
    return [
        Ranking(prompt, tuple(answer for _, answer in used), source, label_of(row, "id"), ranks)
    ]


def _scores(entry: Mapping[str, Any], where: str) -> dict[str, float]:
    scores: dict[str, float] = {}
    annotations = entry.get("annotations")
    ratings = []
    for aspect, value in (
        {} if annotations is None else object_of(annotations, f"{where}.annotations")
    ).items():
        field = f"{where}.annotations.{aspect}"
        rating = (
            None
            if value is None
            else _score(object_of(value, field).get("Rating"), f"{field}.Rating")
        )
        if rating is not None:
            ratings.append(rating)
    if ratings:
        scores["ratings"] = sum(ratings) / len(ratings)
    for name in ("fine-grained_score", "overall_score"):
        score = _score(entry.get(name), f"{where}.{name}")
        if score is not None:
            scores[name] = score
    return scores


def _score(value: object, field: str) -> float | None:
    """A number, or its text; None for nothing and for "N/A"."""
    if value is None or (
        isinstance(value, str) and value.strip().upper() in ("N/A", "NA", "NONE", "")
    ):
        return None
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        raise RowError(field, describe(value), "a number or N/A", "not a rating") from None
    return number_of(number, field)


# ---- comparisons
# ---------------------------------------------------------------------------------------------


def sharegpt_pairs(row: Row, repairs: list[str]) -> list[Record]:
    """{"conversations": [{"from", "value"}], "chosen", "rejected": {"from", "value"}}, as
    LLaMA-Factory has it.
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
    return [
        Preference(
            turns,
            sides[0].content,
            sides[1].content,
            source="sharegpt_pairs",
            id=label_of(row, "id"),
        )
    ]


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
        found = ", ".join(describe(row.get(label)) for label in labels)
        raise RowError("/".join(labels), found, "that one is better", "a tie")
    better, worse = texts if choice == 1 else texts[::-1]
    label = label_of(row, "id") or label_of(row, "idx") or label_of(row, "question_id")
    return [Preference((Turn("user", prompt),), better, worse, source=source, id=label)]


def pandalm(row: Row, repairs: list[str]) -> list[Record]:
    """{"instruction", "input", "response1", "response2", "annotator1", ...}: what most annotators
    say, 0 is a tie.
    """
    labels = tuple(
        name for name in sorted(row) if name.startswith("annotator") and row[name] is not None
    )
    votes = [number_of(row[name], name) for name in labels]
    most = [choice for choice in (1, 2) if 2 * votes.count(choice) > len(votes)]
    prompt = asked(row.get("instruction"), row.get("input"))
    return _preferred(
        row, prompt, "response1", "response2", most[0] if most else None, "pandalm", labels
    )


def arena(row: Row, repairs: list[str]) -> list[Record]:
    """{"prompt", "response_a", "response_b", "winner": "model_a" or "model_b"}; without winner, a
    prompt.
    """
    prompt = text_of(row.get("prompt"), "prompt")
    if row.get("winner") is None:
        repairs.append("left out answers without a winner")
        return [
            Prompt(
                (Turn("user", prompt),),
                "arena",
                label_of(row, "id") or label_of(row, "question_id"),
            )
        ]
    choice = {"model_a": 1, "model_b": 2}.get(str(row["winner"]))
    return _preferred(row, prompt, "response_a", "response_b", choice, "arena", ("winner",))


def alpaca_eval_annotation(row: Row, repairs: list[str]) -> list[Record]:
    """{"instruction", "output_1", "output_2", "preference": 1 to 2 (0 and 1.5: a tie)}, of
    AlpacaEval's judges.
    """
    value = row.get("preference")
    value = None if value is None else number_of(value, "preference")
    choice = (
        None if value is None or not 1 <= value <= 2 or value == 1.5 else 1 if value < 1.5 else 2
    )
    prompt = text_of(row.get("instruction"), "instruction")
    return _preferred(row, prompt, "output_1", "output_2", choice, "alpaca_eval", ("preference",))


def starling(name: str, better: str, worse: str, row: Row, repairs: list[str]) -> list[Record]:
    """{"prompt", "response_a", "response_b", ...} without a winner: the place says which are
    better, all alike.

    `better` and `worse`: the letters of either. In Starling's benchmarks, "truthful" has true
    answers in a and c and a false one in b; "verbose" a needlessly long or wrong one in a.
    """
    turns = (Turn("user", text_of(row.get("prompt"), "prompt")),)
    answers = tuple(
        text_of(row.get(f"response_{side}"), f"response_{side}") for side in better + worse
    )
    ranks = tuple(1.0 if side in better else 1.0 + len(better) for side in better + worse)
    return [Ranking(turns, answers, f"starling/{name}", label_of(row, "question_id"), ranks)]


def gsm8k_solutions(row: Row, repairs: list[str]) -> list[Record]:
    """{"question", "ground_truth", MODEL: {"solution", "is_correct"}, ...}: right ones before wrong
    ones, tied.
    """
    turns = (Turn("user", text_of(row.get("question"), "question")),)
    right = [text_of(row.get("ground_truth"), "ground_truth")]
    wrong: list[str] = []
    for name, entry in row.items():
        if isinstance(entry, dict):
            verdict = entry.get("is_correct")
            if not isinstance(verdict, bool):
                raise RowError(
                    f"{name}.is_correct", describe(verdict), "true or false", "no verdict"
                )
            (right if verdict else wrong).append(text_of(entry.get("solution"), f"{name}.solution"))
    if not wrong:
        raise RowError(
            "is_correct", f"{len(right)} right answers", "a wrong one among them", "a tie"
        )
    ranks = (1.0,) * len(right) + (1.0 + len(right),) * len(wrong)
    return [Ranking(turns, (*right, *wrong), "gsm8k_solutions", label_of(row, "id"), ranks)]


# ---- messages and pairs
# ------------------------------------------------------------------------------------


def openai(row: Row, repairs: list[str]) -> list[Record]:
    """{"messages": [{"role", "content", "weight"?}]}: a conversation, or a prompt if the user has
    the last word.

    With "chosen" and "rejected" (text or messages) and perhaps "margin", a preference, whose prompt
    is "prompt" or "messages". Chat rows that give their first question again as "prompt" are read
    by their messages.
    """
    if isinstance(row.get("label"), bool):  # KTO: half of these answers are there to be unlearned
        raise RowError(
            "label", str(row["label"]), "no verdict on the answer", "answer with a verdict"
        )
    pair = row.get("chosen") is not None or row.get("rejected") is not None
    first, second = ("prompt", "messages") if pair else ("messages", "prompt")
    name = first if row.get(first) is not None else second
    turns = _prompt(row.get(name), name)
    if not pair:
        check_turns(turns, field=name)
        kind = Conversation if turns[-1].role == "assistant" else Prompt
        return [kind(turns, "openai", label_of(row, "id"))]
    answers = [_answer(row.get(side), side, turns) for side in ("chosen", "rejected")]
    margin = None if row.get("margin") is None else number_of(row["margin"], "margin")
    return [Preference(turns, answers[0], answers[1], margin, "openai", label_of(row, "id"))]


def rewardbench(row: Row, repairs: list[str]) -> list[Record]:
    """{"prompt", "chosen", "rejected", "subset"?, "id"?}, all text; the prompt may also be
    messages.
    """
    turns, source = (
        _prompt(row.get("prompt"), "prompt"),
        source_of("rewardbench", label_of(row, "subset")),
    )
    check_turns(turns, "user", "prompt")
    chosen, rejected = (text_of(row.get(side), side) for side in ("chosen", "rejected"))
    return [Preference(turns, chosen, rejected, source=source, id=label_of(row, "id"))]


def _prompt(value: object, name: str) -> tuple[Turn, ...]:
    return (
        (Turn("user", text_of(value, name)),)
        if isinstance(value, str)
        else messages_of(value, name)
    )


def _answer(value: object, name: str, prompt: tuple[Turn, ...]) -> str:
    """Text of an answer that is given as text, as one assistant message, or as the whole
    conversation.
    """
    if value is None or isinstance(value, str):
        return text_of(value, name)
    turns = messages_of(value, name)
    if not turns or turns[-1].role != "assistant" or turns[:-1] not in ((), prompt):
        expected = "an assistant message, alone or after the prompt"
        raise RowError(
            name, f"{len(turns)} messages", expected, "answer does not follow the prompt"
        )
    return turns[-1].content
