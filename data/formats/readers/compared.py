"""Rows with two answers in columns of their own and a verdict on them: one function a format.

Field names are those of the published data sets: SHP (Ethayarajh et al. 2022), HelpSteer 2 and 3
(Wang et al. 2024, 2025), WebGPT's comparisons (Nakano et al. 2021), PKU-SafeRLHF (Ji et al. 2024),
the comparisons of summaries of Stiennon et al. (2020), the pairs of Stack Exchange as TRL's authors
published them, and LMSYS's arenas. A row in which neither answer is better is set aside as a tie.
"""

from __future__ import annotations

import re

from rayward.data.formats.readers.answers import prompt_and_answers
from rayward.data.formats.readers.chat import Row, label_of, messages_of, source_of
from rayward.data.formats.readers.pairs import winner_of
from rayward.data.formats.readers.questions import prompt_of
from rayward.data.formats.rows.fields import json_or_none, verdict_of
from rayward.data.records import (
    Preference,
    Record,
    RowError,
    Turn,
    check_turns,
    describe,
    list_of,
    number_of,
    object_of,
    objects_of,
    text_of,
)


def _pair(
    turns: tuple[Turn, ...],
    texts: tuple[str, str],
    better: int,
    source: str,
    label: str = "",
    margin: float | None = None,
) -> list[Record]:
    """The preference for the answer at place `better`, 0 or 1."""
    check_turns(turns, "user", "prompt")
    return [Preference(turns, texts[better], texts[1 - better], margin, source, label)]


def _two(row: Row, one: str, other: str) -> tuple[str, str]:
    return text_of(row.get(one), one), text_of(row.get(other), other)


def _place(row: Row, name: str) -> int:
    """0 or 1 in a field that says which answer is better. RowError for anything else."""
    value = row.get(name)
    if isinstance(value, bool) or value not in (0, 1):
        raise RowError(name, describe(value), "0 or 1, the better answer", "no verdict")
    return int(value)


def _by_sign(row: Row, name: str) -> tuple[int, float]:
    """The place of the better answer, and by how much it is better: below 0 is for the first."""
    strength = number_of(row.get(name), name)
    if strength == 0:
        raise RowError(name, "0", "that one is better", "a tie")
    return int(strength > 0), abs(strength)


def shp(row: Row, repairs: list[str]) -> list[Record]:
    """{"history": post, "human_ref_A", "human_ref_B", "labels": 1 for A, 0 for B}: SHP."""
    texts = _two(row, "human_ref_A", "human_ref_B")
    turns = prompt_of(row.get("history"), "history", repairs)
    source = source_of("shp", label_of(row, "domain"))
    return _pair(turns, texts, 1 - _place(row, "labels"), source, label_of(row, "post_id"))


# ---- HelpSteer

HELPSTEER_TURN = re.compile(r"\n<extra_id_1>(User|Assistant)\n")


def helpsteer2(row: Row, repairs: list[str]) -> list[Record]:
    """{"prompt", "response_1", "response_2", "preference_strength": -3 to 3}: HelpSteer 2's pairs.

    Below 0 the first is better; the margin is the strength. Turns of a longer prompt are parted by
    "<extra_id_1>" and the speaker.
    """
    better, margin = _by_sign(row, "preference_strength")
    texts = _two(row, "response_1", "response_2")
    turns = _helpsteer_turns(text_of(row.get("prompt"), "prompt"))
    return _pair(turns, texts, better, "helpsteer2", label_of(row, "id"), margin)


def _helpsteer_turns(text: str) -> tuple[Turn, ...]:
    first, *pieces = HELPSTEER_TURN.split(text)  # the group keeps the speakers
    turns = [Turn("user", first)]
    for speaker, said in zip(pieces[::2], pieces[1::2], strict=True):
        turns.append(Turn("user" if speaker == "User" else "assistant", said))
    return tuple(turns)


def helpsteer3(row: Row, repairs: list[str]) -> list[Record]:
    """{"context": turns, "response1", "response2", "overall_preference": -3 to 3}: HelpSteer 3."""
    better, margin = _by_sign(row, "overall_preference")
    texts = _two(row, "response1", "response2")
    turns = messages_of(row.get("context"), "context", repairs)
    source = source_of("helpsteer3", label_of(row, "domain"))
    return _pair(turns, texts, better, source, label_of(row, "id"), margin)


# ---- WebGPT, PKU-SafeRLHF, summaries, Stack Exchange


def webgpt(row: Row, repairs: list[str]) -> list[Record]:
    """{"question": {"full_text", "id"} or text, "answer_0", "answer_1", "score_0", "score_1"}.

    The margin is the difference of the scores, -1 to 1 each.
    """
    question, label = row.get("question"), label_of(row, "id")
    if isinstance(question, dict):
        label = label_of(question, "id")
        question = question.get("full_text")
    scores = [number_of(row.get(name), name) for name in ("score_0", "score_1")]
    if scores[0] == scores[1]:
        raise RowError("score_0/score_1", f"{scores[0]:g} twice", "that one is better", "a tie")
    turns = (Turn("user", text_of(question, "question.full_text")),)
    margin = abs(scores[0] - scores[1])
    texts = _two(row, "answer_0", "answer_1")
    return _pair(turns, texts, int(scores[1] > scores[0]), "webgpt", label, margin)


def pku_saferlhf(verdict: str, row: Row, repairs: list[str]) -> list[Record]:
    """{"prompt", "response_0", "response_1", "better_response_id", "safer_response_id"}.

    `verdict`: which of the last two decides, the more helpful answer or the safer one.
    """
    texts, better = _two(row, "response_0", "response_1"), _place(row, verdict)
    turns = prompt_of(row.get("prompt"), "prompt", repairs)
    return _pair(turns, texts, better, "pku_saferlhf", label_of(row, "id"))


def summaries(row: Row, repairs: list[str]) -> list[Record]:
    """{"info": {"post", "title", "subreddit"} or {"article"}, "summaries": [{"text"}], "choice"}.

    The question is in the form that the paper's models were asked in. White space around a summary
    belongs to it.
    """
    info = object_of(row.get("info"), "info")
    texts = tuple(
        text_of(entry.get("text"), f"{where}.text").strip()
        for where, entry in objects_of(row.get("summaries"), "summaries")
    )
    if len(texts) != 2:
        raise RowError("summaries", f"{len(texts)} texts", "two", "not two answers")
    better = _place(row, "choice")
    turns = (Turn("user", _to_summarize(info)),)
    source = source_of("summarize_feedback", label_of(info, "subreddit"))
    return _pair(turns, (texts[0], texts[1]), better, source, label_of(info, "id"))


def _to_summarize(info: Row) -> str:
    if info.get("post") is None and info.get("article") is not None:
        return f"Article:\n\n{text_of(info['article'], 'info.article').strip()}\n\nTL;DR:"
    post, title = text_of(info.get("post"), "info.post").strip(), label_of(info, "title")
    heads = [f"SUBREDDIT: r/{name}" for name in [label_of(info, "subreddit")] if name]
    heads += [f"TITLE: {title.strip()}"] * bool(title)
    return "\n\n".join([*heads, f"POST: {post}", "TL;DR:"])


def stack_exchange(row: Row, repairs: list[str]) -> list[Record]:
    """{"qid", "question", "response_j", "response_k"}: the answer j has more votes than k."""
    turns = (Turn("user", text_of(row.get("question"), "question")),)
    texts = _two(row, "response_j", "response_k")
    return _pair(turns, texts, 0, "stack_exchange", label_of(row, "qid"))


# ---- arenas


def arena_votes(row: Row, repairs: list[str]) -> list[Record]:
    """{"prompt", "response_a", "response_b", "winner_model_a", "winner_model_b"}: Kaggle's.

    Texts are JSON lists with an item a turn. Only rows whose answers before the last are alike are
    comparisons of two answers.
    """
    votes = [verdict_of(row.get(f"winner_model_{side}")) for side in "ab"]
    if votes[0] is None or votes[0] == votes[1]:
        found = f"{describe(row.get('winner_model_a'))}, {describe(row.get('winner_model_b'))}"
        raise RowError("winner_model_a/winner_model_b", found, "that one is better", "a tie")
    asked = _listed(row.get("prompt"), "prompt")
    sides = (_chat(row, "response_a", asked), _chat(row, "response_b", asked))
    turns, one, other = prompt_and_answers(sides, ("response_a", "response_b"))
    return _pair(turns, (one, other), int(votes[0] is False), "arena", label_of(row, "id"))


def _listed(value: object, name: str) -> list[str]:
    """The texts of a list, or of the JSON text of one; of other text, the text alone."""
    found = json_or_none(value) if isinstance(value, str) else value
    texts = list_of(found, name) if isinstance(found, list | tuple) else [value]
    return [text_of(text, f"{name}[{index}]") for index, text in enumerate(texts)]


def _chat(row: Row, name: str, asked: list[str]) -> tuple[Turn, ...]:
    said = _listed(row.get(name), name)
    if len(said) != len(asked):
        expected = f"{len(asked)}, one a prompt"
        raise RowError(name, f"{len(said)} answers", expected, "answers do not match the prompts")
    turns: list[Turn] = []
    for question, answer in zip(asked, said, strict=True):
        turns += [Turn("user", question), Turn("assistant", answer)]
    return tuple(turns)


def arena_conversations(row: Row, repairs: list[str]) -> list[Record]:
    """{"conversation_a", "conversation_b": turns, "winner": "model_a" or "model_b", "turn"?}.

    LMSYS's arena and its judgements of MT-Bench. The verdict is on the first `turn` exchanges.
    """
    names = ("conversation_a", "conversation_b")
    winner = winner_of(row.get("winner"), "winner")
    if winner == "tie":
        raise RowError("winner", describe(row["winner"]), "model_a or model_b", "a tie")
    judged = row.get("turn")
    num_turns = None if judged is None else int(2 * number_of(judged, "turn"))
    one, other = (_judged(messages_of(row.get(name), name, repairs), num_turns) for name in names)
    turns, first, second = prompt_and_answers((one, other), names)
    label = label_of(row, "question_id") or label_of(row, "id")
    return _pair(turns, (first, second), int(winner == "b"), "arena", label)


def _judged(turns: tuple[Turn, ...], num_turns: int | None) -> tuple[Turn, ...]:
    start = 1 if turns and turns[0].role == "system" else 0
    return turns if num_turns is None else turns[: start + num_turns]
