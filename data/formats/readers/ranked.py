"""Rows of formats with several answers to a prompt, as rankings: one function a format.

Field names are those of the published data sets: Anthropic hh-rlhf (of two answers, in the same
frame as Nectar), berkeley-nest/Nectar, UltraFeedback, Starling's benchmarks and solutions of GSM8K.
White space around the turns of "\\n\\nHuman: ...\\n\\nAssistant: ..." text belongs to the frame. A
function raises RowError for a row that cannot be used and appends to `repairs` the names of repairs
made. `distinct` comes after each of them, and after those of data/formats/readers/pairs.py.
"""

from __future__ import annotations

from dataclasses import replace

from rayward.data.formats.readers.chat import Row, label_of, source_of
from rayward.data.formats.rows.turns import framed
from rayward.data.records import (
    Preference,
    Ranking,
    Record,
    RowError,
    Turn,
    describe,
    number_of,
    object_of,
    objects_of,
    text_of,
)


def distinct(record: Record, repairs: list[str]) -> Record:
    """The record, without answers that differ from a better one in white space around them only.

    RowError if fewer than two are left: no preference can be learned from one answer.
    """
    if not isinstance(record, Ranking | Preference):
        return record
    ranking = record.as_ranking() if isinstance(record, Preference) else record
    first: dict[str, int] = {}  # answers are in order, best first: the first of equal ones stays
    for index, answer in enumerate(ranking.answers):
        first.setdefault(answer.strip(), index)
    if len(first) == len(ranking.answers):
        return record
    if len(first) < 2:
        field = "rejected" if isinstance(record, Preference) else "answers"
        last = describe(ranking.answers[-1])
        raise RowError(field, last, "another answer than the best one", "identical answers")
    repairs.append("left out identical answer")
    ranks = ranking.ranks and tuple(ranking.ranks[index] for index in first.values())
    return replace(
        ranking, answers=tuple(ranking.answers[index] for index in first.values()), ranks=ranks
    )


def hh_rlhf(row: Row, repairs: list[str]) -> list[Preference]:
    """{"chosen", "rejected"}: two framed texts of one prompt, split at the last assistant turn."""
    prompts, answers = [], []
    for name in ("chosen", "rejected"):
        prompt, frame, answer = text_of(row.get(name), name).rpartition("\n\nAssistant:")
        # A text that goes on after the answer compares more than two answers to one prompt.
        if not frame or "\n\nHuman:" in answer:
            raise RowError(
                name, "a Human turn last", "an Assistant turn last", "ends with the human"
            )
        prompts.append(prompt)
        answers.append(text_of(answer, f"{name}, last turn").strip())
    if prompts[0] != prompts[1]:
        raise RowError("rejected", describe(prompts[1]), "the prompt of chosen", "prompts differ")
    turns = tuple(framed(prompts[0], "chosen"))
    return [Preference(turns, answers[0], answers[1], source="hh_rlhf", id=label_of(row, "id"))]


def nectar(row: Row, repairs: list[str]) -> list[Record]:
    """{"prompt": framed text, "answers": [{"answer", "rank"}]}, K >= 2; rank 1 is best."""
    turns = framed(text_of(row.get("prompt"), "prompt"), "prompt")
    if turns[-1] == Turn("assistant", ""):  # the frame of the answer that follows the prompt
        turns.pop()
    ranked: list[tuple[float, str]] = []
    for where, entry in objects_of(row.get("answers"), "answers"):
        rank = number_of(entry.get("rank"), f"{where}.rank")
        ranked.append((rank, text_of(entry.get("answer"), f"{where}.answer")))
    for name in ("num_responses", "num_response"):
        if row.get(name) is not None and number_of(row[name], name) != len(ranked):
            expected = f"{len(ranked)}, the number of answers"
            raise RowError(name, str(row[name]), expected, "wrong number of answers")
    ranked.sort(key=lambda pair: pair[0])  # stable: tied answers stay in the order of the row
    source = row.get("source")
    if isinstance(source, list | tuple):
        source = "+".join(text_of(part, "source") for part in source)
    ranks, answers = tuple(rank for rank, _ in ranked), tuple(answer for _, answer in ranked)
    label = label_of({"source": source}, "source") or "nectar"
    return [Ranking(tuple(turns), answers, label, label_of(row, "id"), ranks)]


# ---- UltraFeedback


def ultrafeedback(row: Row, repairs: list[str]) -> list[Record]:
    """{"instruction", "completions": [{"response", "annotations", two overall scores}]}.

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
    # One measure for all completions of a row: numbers of two measures are not comparable.
    measure = max(measures, key=lambda name: sum(name in scores for scores, _ in scored))
    used = [(scores[measure], answer) for scores, answer in scored if measure in scores]
    if len(used) < 2:
        raise RowError("completions", f"{len(used)} with a score", "at least 2", "too few answers")
    repairs += ["left out completion without a score"] * (len(scored) > len(used))
    used.sort(key=lambda pair: -pair[0])
    # Rank is 1 + the number of better ones, so equal scores share a rank.
    ranks = tuple(1.0 + sum(other > score for other, _ in used) for score, _ in used)
    source = source_of("ultrafeedback", label_of(row, "source"))
    return [
        Ranking(prompt, tuple(answer for _, answer in used), source, label_of(row, "id"), ranks)
    ]


def _scores(entry: Row, where: str) -> dict[str, float]:
    """The measures that a completion has, by name."""
    scores: dict[str, float] = {}
    ratings = []
    annotations = entry.get("annotations")
    aspects = {} if annotations is None else object_of(annotations, f"{where}.annotations")
    for aspect, value in aspects.items():
        if value is None:
            continue
        field = f"{where}.annotations.{aspect}"
        rating = _score(object_of(value, field).get("Rating"), f"{field}.Rating")
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
    if value is None:
        return None
    if isinstance(value, str) and value.strip().upper() in ("N/A", "NA", "NONE", ""):
        return None
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        raise RowError(field, describe(value), "a number or N/A", "not a rating") from None
    return number_of(number, field)  # float() takes "nan" and "inf", which are no ratings


def starling(name: str, better: str, worse: str, row: Row, repairs: list[str]) -> list[Record]:
    """{"prompt", "response_a", "response_b", ...}: no winner, the place says which are better.

    `better` and `worse`: the letters of either, which are all alike. In Starling's benchmarks,
    "truthful" has true answers in a and c and a false one in b; "verbose" a needlessly long or
    wrong one in a.
    """
    turns = (Turn("user", text_of(row.get("prompt"), "prompt")),)
    answers = tuple(
        text_of(row.get(f"response_{side}"), f"response_{side}") for side in better + worse
    )
    ranks = tuple(1.0 if side in better else 1.0 + len(better) for side in better + worse)
    return [Ranking(turns, answers, f"starling/{name}", label_of(row, "question_id"), ranks)]


def gsm8k_solutions(row: Row, repairs: list[str]) -> list[Record]:
    """{"question", "ground_truth", MODEL: {"solution", "is_correct"}, ...}: right before wrong.

    The right ones are tied, and so are the wrong ones.
    """
    turns = (Turn("user", text_of(row.get("question"), "question")),)
    right = [text_of(row.get("ground_truth"), "ground_truth")]
    wrong: list[str] = []
    for name, entry in row.items():
        if not isinstance(entry, dict):  # a field of the question; those of models are objects
            continue
        verdict = entry.get("is_correct")
        if not isinstance(verdict, bool):
            raise RowError(f"{name}.is_correct", describe(verdict), "true or false", "no verdict")
        answers = right if verdict else wrong
        answers.append(text_of(entry.get("solution"), f"{name}.solution"))
    if not wrong:
        raise RowError(
            "is_correct", f"{len(right)} right answers", "a wrong one among them", "a tie"
        )
    ranks = (1.0,) * len(right) + (1.0 + len(right),) * len(wrong)
    return [Ranking(turns, (*right, *wrong), "gsm8k_solutions", label_of(row, "id"), ranks)]
