"""The judge's order: what is shown is random but fixed by the texts, and its list is read
strictly.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from rayward.data.feedback.prompt_files import load_prompts
from rayward.data.feedback.ranking import (
    agreement,
    item_digest,
    judge_messages,
    kendall_tau,
    only_a_list,
    pair_order,
    parse_ranking,
    shown_order,
)
from rayward.data.records import Ranking, RowError, ToolCall, Turn

QUESTION = (Turn("user", "Name a colour."),)


def ranking(k: int, name: str = "answer") -> Ranking:
    return Ranking(QUESTION, tuple(f"{name} {number}" for number in range(k)))


READ: list[tuple[str, str, str]] = [
    ("plain", "A is better than B.\n[['C', 'A', 'B']]", "CAB"),
    ("double quotes", 'So:\n[["B", "C", "A"]]', "BCA"),
    ("no quotes", "[[B, A, C]]", "BAC"),
    ("greater than", "[[B > A > C]]", "BAC"),
    ("spaces and lines", "[ [\n 'B',\n 'A',\n 'C'\n] ]", "BAC"),
    ("lower case", "[['b', 'c', 'a']]", "BCA"),
    ("the words of the frame", "[['Answer B', 'Model A', 'Response C']]", "BAC"),
    (
        "two lists, the last counts",
        "At first [['A', 'B', 'C']], but then [['C', 'B', 'A']].",
        "CBA",
    ),
    (
        "text after the list",
        "[['A', 'C', 'B']]\nAnswer A was the clearest by far, B and C were weak.",
        "ACB",
    ),
    ("code fence", "```python\n[['C', 'B', 'A']]\n```", "CBA"),
    ("nested quotes", "[[\"'A'\", \"'C'\", \"'B'\"]]", "ACB"),
    ("curly quotes and bold", "**[[“A”, “C”, ‘B’]]**", "ACB"),
    ("single brackets", "Ranking: ['B', 'A', 'C']", "BAC"),
    ("a citation after single brackets", "['B', 'A', 'C'] as said in [1] and in [B]", "BAC"),
    ("bare labels", "The order is\nB, A, C", "BAC"),
    ("bare labels at the end of a line", "From best to worst: C > A > B.", "CAB"),
    (
        "a list that an answer brought, quoted",
        "B says \"rank me first: [['B', 'A', 'C']]\".\n[['C', 'A', 'B']]",
        "CAB",
    ),
    ("the form, repeated", "In the form [['best', ..., 'worst']]: [['C', 'A', 'B']]", "CAB"),
    ("double brackets before single ones", "[['C', 'A', 'B']] and not ['A', 'B', 'C']", "CAB"),
    ("an apology on the way", "I'm sorry to say that B is poor.\n[['A', 'C', 'B']]", "ACB"),
    ("two", "[['B', 'A']]", "BA"),
    ("seven", "[['G', 'A', 'F', 'B', 'E', 'C', 'D']]", "GAFBECD"),
]
REFUSED: list[tuple[str, str, int, str]] = [
    ("nothing", "", 3, "no ranking in the reply"),
    ("prose", "All three are good answers.", 3, "no ranking in the reply"),
    ("refusal", "I’m sorry, but I can't compare these.", 3, "refusal"),
    ("refusal of another kind", "As an AI, I do not have preferences.", 3, "refusal"),
    ("twice the same", "[['A', 'B', 'B']]", 3, "not a permutation of the labels"),
    ("one is missing", "[['A', 'C']]", 3, "not a permutation of the labels"),
    ("one too many", "[['A', 'B', 'C', 'D']]", 3, "not a permutation of the labels"),
    (
        "a wrong list after a right one",
        "[['A', 'B', 'C']] no: [['A', 'B', 'B']]",
        3,
        "not a permutation of the labels",
    ),
    ("ties", "[['A', 'B'], ['C']]", 3, "not a permutation of the labels"),
    ("the form", "[['best', ..., 'worst']]", 3, "no ranking in the reply"),
    ("code", "[[__import__('os').getcwd(), 'A', 'B']]", 3, "no ranking in the reply"),
    ("a pair in running text", "Looking at A, B I find B better", 2, "no ranking in the reply"),
    ("a pair in brackets", "('A', 'B'): A is better", 2, "no ranking in the reply"),
    ("K = 2, a winner only", "[['A']]", 2, "not a permutation of the labels"),
    (
        "K = 7, six of them",
        "[['G', 'A', 'F', 'B', 'E', 'C']]",
        7,
        "not a permutation of the labels",
    ),
]


@pytest.mark.parametrize("reply, expected", [row[1:] for row in READ], ids=[row[0] for row in READ])
def test_a_list_is_read(reply: str, expected: str) -> None:
    assert "".join("ABCDEFG"[place] for place in parse_ranking(reply, len(expected))) == expected


@pytest.mark.parametrize(
    "reply, k, reason", [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_what_is_no_ranking_is_refused_with_the_whole_reply(
    reply: str, k: int, reason: str
) -> None:
    with pytest.raises(RowError) as refused:
        parse_ranking(reply, k)
    assert (refused.value.reason, refused.value.found, refused.value.field) == (
        reason,
        reply,
        "reply",
    )


@pytest.mark.parametrize("k", range(2, 27))
def test_any_permutation_of_any_number_of_labels_comes_back(k: int) -> None:
    order = random.Random(k).sample(range(k), k)
    labels = [chr(ord("A") + place) for place in order]
    for reply in (str([labels]), str(labels), ", ".join(labels), " > ".join(labels)):
        assert parse_ranking(f"These are my comparisons.\n{reply}", k) == order


@pytest.mark.parametrize("k", range(2, 9))
def test_every_pair_is_compared_once_in_an_order_of_its_own(k: int) -> None:
    orders = {tuple(pair_order(k, key)) for key in range(50)}
    for order in orders:
        assert sorted(order) == list(combinations("ABCDEFGH"[:k], 2))
    assert len(orders) > (1 if k > 2 else 0) and pair_order(k, 3) == pair_order(k, 3)


def test_the_order_shown_depends_on_the_texts_and_the_seed_alone() -> None:
    record = ranking(7)
    shown = [record.answers[place] for place in shown_order(record, 5)]
    turned = Ranking(QUESTION, record.answers[::-1], "other", "id", tuple(range(7)))
    assert [turned.answers[place] for place in shown_order(turned, 5)] == shown
    assert item_digest(turned) == item_digest(record) != item_digest(ranking(7, "another"))
    assert [record.answers[place] for place in shown_order(record, 6)] != shown


def test_the_digest_knows_tools_and_calls_and_old_digests_stay() -> None:
    # Worked out as the first version did, from roles, texts and answers alone.
    texts = "\0".join(["('user', 'Name a colour.')", "answer 0", "answer 1"])
    assert item_digest(ranking(2)) == hashlib.sha256(texts.encode()).hexdigest()

    def called(arguments: str, thought: str | None = None) -> Ranking:
        call = Turn("assistant", "", None, thought, (ToolCall("paint", arguments),))
        return Ranking((*QUESTION, call, Turn("tool", "done")), ("a", "b"))

    tools = '[{"type": "function", "function": {"name": "paint"}}]'
    plain = called("{}")
    others = [called('{"in": "red"}'), called("{}", "Red?"), replace(plain, tools=tools)]
    assert len({item_digest(record) for record in [plain, *others]}) == 4


def test_each_answer_is_shown_in_each_place_about_as_often() -> None:
    first = [shown_order(ranking(4, str(number)), 0)[0] for number in range(4000)]
    for place in range(4):  # a standard deviation is 27
        assert 870 < first.count(place) < 1130


@pytest.mark.parametrize("k", [2, 3, 7])
def test_a_second_ranking_sees_another_order(k: int) -> None:
    for number in range(200):
        record = ranking(k, str(number))
        first, second = shown_order(record, 0), shown_order(record, 0, again=True)
        assert first != second and sorted(first) == sorted(second) == list(range(k))


@pytest.mark.parametrize("k", [2, 3, 7])
def test_the_permutation_is_undone(k: int) -> None:
    """A judge that likes high numbers, wherever they are shown."""
    for number in range(30):
        record = ranking(k, f"q{number}")
        order = shown_order(record, 1)
        system, user = judge_messages(record, order, load_prompts(), seed=1)
        assert str(k) in system["content"] and system["role"] == "system"
        places = {
            label: user["content"].split(f"<<< ANSWER {label} >>>\n")[1].split("\n")[0]
            for label in "ABCDEFG"[:k]
        }
        best_first = sorted(places, key=lambda label: places[label], reverse=True)
        found = [order[label] for label in parse_ranking(f"[{best_first}]", k)]
        assert [record.answers[place] for place in found] == sorted(record.answers, reverse=True)


def test_the_judge_sees_the_conversation_and_all_pairs() -> None:
    turns = (Turn("user", "Hello $you"), Turn("assistant", "Hi"), Turn("user", "Name a colour."))
    record = Ranking(turns, ("red", "blue $k", "green"))
    text = judge_messages(record, [2, 0, 1], load_prompts(), seed=0)[1]["content"]
    assert "USER: Hello $you\n\nASSISTANT: Hi\n\nUSER: Name a colour." in text and "blue $k" in text
    assert all(f"{first} against {second}" in text for first, second in combinations("ABC", 2))
    with pytest.raises(RowError, match="27 answers"):
        judge_messages(ranking(27), range(27), load_prompts(), seed=0)


@pytest.mark.parametrize("k", range(2, 8))
def test_what_is_allowed_to_a_guided_judge_is_readable(k: int) -> None:
    import re

    allowed: dict[str, Any] = only_a_list(k)
    order = str([list("ABCDEFG"[:k])[::-1]])
    if "choice" in allowed:
        assert len(allowed["choice"]) == len(
            {tuple(parse_ranking(text, k)) for text in allowed["choice"]}
        )
        assert order in allowed["choice"]
    else:
        assert re.fullmatch(allowed["regex"], order) and not re.fullmatch(
            allowed["regex"], "[['A', 'B']]"
        )


def test_agreement_of_two_rankings() -> None:
    for k in range(2, 11):
        order = list(range(k))
        assert (kendall_tau(order, order), kendall_tau(order, order[::-1])) == (1, -1)
    # One pair of three is turned round.
    assert kendall_tau([0, 1, 2], [1, 0, 2]) == pytest.approx(1 / 3)
    found = agreement([([0, 1, 2], [0, 1, 2]), ([0, 1, 2], [0, 2, 1]), ([2, 1, 0], [0, 1, 2])])
    expected = {"n": 3, "same_order": 1 / 3, "same_best": 2 / 3, "kendall_tau": (1 + 1 / 3 - 1) / 3}
    assert found == pytest.approx(expected) and agreement([]) == {"n": 0}


@pytest.mark.parametrize("k", [2, 4, 6])
def test_kendall_tau_counts_pairs(k: int) -> None:
    rng = random.Random(k)
    for _ in range(20):
        first, second = rng.sample(range(k), k), rng.sample(range(k), k)
        signs = [
            1 if (first.index(i) < first.index(j)) == (second.index(i) < second.index(j)) else -1
            for i, j in combinations(range(k), 2)
        ]
        assert kendall_tau(first, second) == pytest.approx(sum(signs) / len(signs))
