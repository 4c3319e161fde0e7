"""Long n-grams that rows share with evaluation sets."""

from __future__ import annotations

import pytest

from rayward.data.decontaminate import EvaluationTexts, ngrams, words_of
from rayward.data.records import Conversation, Labelled, Preference, Prompt, Ranking, Record, Turn

WORDS = "natalia sold clips to forty eight of her friends in april and then half as many in may"
LONG = "Natalia sold clips to forty-eight of her friends in April, and then half as many in May!"


def prompt(text: str, system: str = "") -> Prompt:
    return Prompt((*([Turn("system", system)] if system else []), Turn("user", text)))


def chat(question: str, answer: str = "Yes.") -> Conversation:
    return Conversation((Turn("user", question), Turn("assistant", answer)))


def sets(*records: Record, n: int = 13) -> EvaluationTexts:
    texts = EvaluationTexts(n)
    for number, record in enumerate(records, start=1):
        texts.add(record, f"eval.jsonl:{number}")
    return texts


def test_words_as_gpt_3_has_them() -> None:
    told = "  Don't STOP,\n\tthe_end: 3.14 (pi)\x00!  "
    words = ["dont", "stop", "theend", "314", "pi"]
    assert words_of(told) == words
    # By another way, for texts with other characters.
    assert words_of(f"{told} É’") == [*words, "é"]
    assert words_of("?!") == words_of("") == []
    # Without spaces, each character is a word; letters beside them stay together.
    assert words_of("你好, GPT4吗？") == ["你", "好", "gpt4", "吗"]


def test_ngrams() -> None:
    words = WORDS.split()
    for n in range(1, len(words) + 2):
        slices = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        assert list(ngrams(words, n)) == slices
    assert list(ngrams([], 3)) == []


def test_thirteen_words_in_any_text_are_found_and_twelve_are_not() -> None:
    texts = sets(prompt("Something else that is said here"), prompt(LONG))
    words = WORDS.replace("forty eight", "fortyeight").split()
    thirteen, twelve = " ".join(words[2:15]), " ".join(words[2:14])
    for said in (
        thirteen,
        thirteen.upper(),
        f"So, {thirteen}... and on",
        thirteen.replace(" ", "\n"),
    ):
        records: list[Record] = [
            prompt(said),
            chat(said),
            chat("Why?", said),
            Preference((Turn("user", "Why?"),), "Yes.", said),
            Ranking((Turn("user", "Why?"),), ("Yes.", "No.", said)),
            Labelled((Turn("user", "Why?"),), said, False),
            Prompt((Turn("user", "Why?"),), follow_ups=(said,)),
            Prompt((Turn("user", "Why?"),), reference=said),
        ]
        for record in records:
            shared = texts.shared_with(record)
            assert shared is not None and shared.place == "eval.jsonl:2"
            assert shared.words == tuple(thirteen.split())
            assert shared.shown == " ".join(words[2:10]) + " ..."
    assert texts.shared_with(chat(twelve)) is None
    assert sets(prompt(LONG), n=12).shared_with(chat(twelve)) is not None


def test_no_ngram_goes_over_the_end_of_a_text_or_into_a_system_text() -> None:
    words = WORDS.split()
    first, second = " ".join(words[:9]), " ".join(words[9:])
    texts = sets(prompt(WORDS))
    assert texts.shared_with(chat(first, second)) is None
    assert texts.shared_with(prompt("Why?", system=WORDS)) is None
    assert sets(prompt("Why so?", system=WORDS)).shared_with(chat(WORDS)) is None


def test_shorter_texts_are_looked_for_whole() -> None:
    eight = "what is the tallest mountain of the alps"
    texts = sets(prompt(f"{eight.capitalize()}?"), prompt("What is the capital of France?"))
    assert (texts.texts, texts.too_short, len(texts)) == (2, 1, 1)
    shared = texts.shared_with(chat(f"Tell me: {eight}, please?"))
    assert shared is not None and (shared.words, shared.place) == (
        tuple(eight.split()),
        "eval.jsonl:1",
    )
    # Whole words only, and all of them.
    assert texts.shared_with(chat(f"{eight}ine")) is None
    assert texts.shared_with(chat("What is the tallest mountain of the Rockies?")) is None
    assert texts.shared_with(chat("What is the capital of France?")) is None
    nine = sets(prompt(f"{eight} today"))
    assert nine.shared_with(chat(eight)) is None and nine.shared_with(chat(f"{eight} today!"))
    # An n below the shortest makes that the shortest.
    assert sets(prompt("one two three"), n=3).too_short == 0


def test_what_is_held_does_not_grow_with_the_rows() -> None:
    texts = sets(prompt(LONG))
    held = len(texts)
    for index in range(100):
        texts.shared_with(chat(f"A question of its own, number {index}, " + "which goes on " * 10))
    assert len(texts) == held == len(list(ngrams(words_of(LONG), 13)))


def test_an_n_that_is_in_every_text() -> None:
    with pytest.raises(ValueError, match="n-grams of 1 words"):
        EvaluationTexts(1)
