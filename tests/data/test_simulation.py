"""Seeds of simulated conversations, and what becomes of the text of a model that plays the user."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from rayward.data.feedback.prompt_files import PROMPTS_FOLDER, load_prompts
from rayward.data.feedback.simulation import (
    ROUNDS,
    ConversationSeed,
    folded,
    only_thanks,
    opening,
    opening_request,
    read_seeds,
    without_meta,
)
from rayward.data.records import RowError

GOOD = [
    {"module": "world", "topic": "tides"},
    {"module": "world", "entity": "the Moon", "id": "moon"},
    {"module": "writing", "writing_type": "poem", "instruction": "about rain", "id": 7},
    {"module": "materials", "material": "Rain fell.\n\nIt was $5.", "topic": None},
]
BAD = [
    ({"module": "world"}, "topic or entity", "nothing to ask about"),
    ({"module": "world", "topic": " "}, "topic", "empty text"),
    ({"module": "world", "topic": 3}, "topic", "wrong type"),
    ({"module": "world", "topic": "a", "entity": "b"}, "entity", "unknown field"),
    ({"module": "writing", "writing_type": "poem"}, "instruction", "missing text"),
    ({"module": "weather", "topic": "a"}, "module", "unknown module"),
    ({"topic": "a"}, "module", "unknown module"),
    ({"module": "materials", "topic": "a"}, "material", "nothing to ask about"),
    ({"module": "world", "topic": "stars", "id": "moon"}, "id", "duplicate id"),
    ({"module": "world", "topic": "stars", "id": ["a"]}, "id", "wrong type"),
    ("tides", "row", "wrong type"),
]


def seeds_file(folder: Path, rows: list) -> Path:
    path = folder / "seeds.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_seeds_are_read_and_bad_rows_say_where_and_what(tmp_path: Path) -> None:
    path = seeds_file(tmp_path, [*GOOD, *(row for row, _, _ in BAD)])
    path.write_text(path.read_text() + "{broken\n")
    found = list(read_seeds(path))
    seeds = [seed for _, seed in found if isinstance(seed, ConversationSeed)]
    assert [seed.id for seed in seeds] == ["1", "moon", "7", "4"]
    assert [seed.module for seed in seeds] == ["world", "world", "writing", "materials"]
    assert seeds[3].fields == {"material": "Rain fell.\n\nIt was $5."}
    errors = [(line, error) for line, error in found if isinstance(error, RowError)]
    expected = [(5 + number, field, reason) for number, (_, field, reason) in enumerate(BAD)]
    expected.append((5 + len(BAD), "line", "broken JSON"))
    assert [(line, error.field, error.reason) for line, error in errors] == expected
    assert all(error.found and error.expected for _, error in errors)


def test_rounds_are_drawn_from_the_whole_range_of_the_module() -> None:
    for module, (fewest, most) in ROUNDS.items():
        drawn = Counter(
            ConversationSeed(str(number), module, {"topic": "a"}).rounds(0)
            for number in range(3000)
        )
        assert sorted(drawn) == list(range(fewest, most + 1))
        even = 3000 / len(drawn)
        assert all(0.85 * even < count < 1.15 * even for count in drawn.values())
    seed = ConversationSeed("1", "world", {"topic": "a"})
    assert (
        seed.rounds(4) == seed.rounds(4) and len({seed.rounds(number) for number in range(30)}) == 5
    )


def test_a_request_has_what_the_seed_says_and_a_material_stands_in_the_opening() -> None:
    prompts = load_prompts()
    for row in GOOD:
        fields = {
            name: str(value)
            for name, value in row.items()
            if name not in ("module", "id") and value
        }
        seed = ConversationSeed("1", str(row["module"]), fields)
        assert all(value in opening_request(seed, prompts, 0) for value in fields.values())
        first = opening(seed, "As a user, I would ask: How high is it?", prompts, 0)
        if seed.module == "materials":
            assert (
                "How high is it?" in first
                and fields["material"] in first
                and "As a user" not in first
            )
        else:
            assert first == "How high is it?"
        with pytest.raises(RowError, match="a message of the user"):
            opening(seed, "User:  ", prompts, 0)
    asked = {
        opening_request(ConversationSeed("1", "world", {"topic": "tides"}), prompts, seed)
        for seed in range(40)
    }
    assert len(asked) == len(prompts["opening_topic"]) > 1


@pytest.mark.parametrize(
    "text, expected",
    [
        ("What causes tides?", "What causes tides?"),
        ("As a user, what causes tides?", "what causes tides?"),
        ("As a curious user, I would ask: What causes tides?", "What causes tides?"),
        ("As the user, my next question would be: Why?", "Why?"),
        ("User: What causes tides?", "What causes tides?"),
        ("**User:** What causes tides?", "What causes tides?"),
        ("USER: Why?\n\nASSISTANT: Because of the Moon.\nUSER: I see.", "Why?"),
        ("I would say: Why?", "Why?"),
        ("I'd ask the assistant: Why?", "Why?"),
        ("Sure! Here's a possible question: Why?", "Why?"),
        ("Here is my next message:\n\nWhy?", "Why?"),
        ("My question is: Why?", "Why?"),
        ("(As the user) Why?", "Why?"),
        ("[user] Why?", "Why?"),
        ('"What causes tides?"', "What causes tides?"),
        ('As a user, I’d say: "Why?"', "Why?"),
        ("“Why?”", "Why?"),
        ('"Tides" and "waves" are what?', '"Tides" and "waves" are what?'),
        (
            "As a teacher, I need examples: which ones fit?",
            "As a teacher, I need examples: which ones fit?",
        ),
        ("Is there a list? For example: 1, 2", "Is there a list? For example: 1, 2"),
        ("   ", ""),
    ],
)
def test_talk_about_the_role_is_taken_away(text: str, expected: str) -> None:
    assert without_meta(text) == expected
    assert without_meta(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Thank you!",
        "Thanks, that's all.",
        "Great, thank you so much for the explanation of how tides work!",
        "Perfect. I really appreciate your help. Have a great day!",
        "Goodbye!",
        "OK thanks, bye",
        "No more questions.",
        "Thank you, you've been very helpful. I have no further questions.",
        "That’s everything, cheers",
    ],
)
def test_thanks_and_farewell_end_a_conversation(text: str) -> None:
    assert only_thanks(text)


@pytest.mark.parametrize(
    "text",
    [
        "Thanks! Can you also name an example?",
        "Thanks. Why is that?",
        "Thank you, but I do not agree.",
        "Thank you. Now write it as a poem.",
        "What is the origin of the word goodbye?",
        "Tell me more.",
        "Interesting.",
        "Thanks. I would like a shorter one.",
        "Write a letter of thanks to my aunt.",
        "Thanks, please go on",
        "",
        "Thanks. " + "It was a long day and I walked a lot. " * 10,
    ],
)
def test_whoever_asks_for_more_is_not_done(text: str) -> None:
    assert not only_thanks(text)


def test_openings_that_differ_in_case_or_punctuation_are_the_same() -> None:
    assert (
        folded("What causes TIDES?\n") == folded("what causes tides") != folded("what causes tide")
    )
    assert folded("?!") != folded("...")


def test_prompts_are_replaced_by_name_and_checked(tmp_path: Path) -> None:
    own = load_prompts()
    assert set(own) == {path.stem for path in PROMPTS_FOLDER.glob("*.txt")} and all(
        all(texts) for texts in own.values()
    )
    with pytest.raises(ValueError, match="its .txt files are"):
        load_prompts(tmp_path)
    (tmp_path / "user.txt").write_text("Go on:\n$conversation\n---\nFor $$5:\n$conversation\n")
    replaced = load_prompts(tmp_path)
    assert replaced["user"] == ["Go on:\n$conversation", "For $$5:\n$conversation"]
    assert {name for name in own if own[name] != replaced[name]} == {"user"}
    for text in (
        "Go on.",
        "Go on: $conversation $topic",
        "For $5: $conversation",
        "$conversation\n---\nno field",
    ):
        (tmp_path / "user.txt").write_text(text)
        with pytest.raises(ValueError, match="needs the fields"):
            load_prompts(tmp_path)
    (tmp_path / "usr.txt").write_text("$conversation")
    with pytest.raises(ValueError, match="usr"):
        load_prompts(tmp_path)
