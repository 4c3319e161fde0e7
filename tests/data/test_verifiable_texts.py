"""`exact`, `math`, `ifeval` as rewards: right answers, wrong ones, and those that look so."""

from __future__ import annotations

import json
import time

import pytest

from rayward.data.verifiable.exact import exact
from rayward.data.verifiable.ifeval import ifeval, ifeval_all
from rayward.data.verifiable.instructions import CHECKS


def test_exact_is_the_text_but_for_white_space_and_thinking() -> None:
    answers = ["Yes", " yes ", "<think>No?</think>\n Yes \n", "Yes.", "Y\u0065\u0301s", "", "Yes"]
    references = ["Yes", "yes", "Yes", "Yes", "Y\u00e9s", "", None]
    assert exact(completions=answers, references=references) == [1, 1, 1, 0, 1, 1, None]


class TestMath:
    @pytest.fixture(autouse=True)
    def module(self) -> None:
        pytest.importorskip("math_verify", reason="the extra `verify` is not installed")
        from rayward.data.verifiable import maths

        self.maths = maths

    def score(self, answer: str, reference: str | None) -> float | None:
        return self.maths.math(completions=[answer], references=[reference])[0]

    @pytest.mark.parametrize(
        ("answer", "reference", "score"),
        [
            ("The answer is $\\boxed{42}$.", "42", 1.0),
            ("So it is 0.5", "\\frac{1}{2}", 1.0),
            ("$x = \\frac{\\sqrt{2}}{2}$", "$\\frac{1}{\\sqrt{2}}$", 1.0),
            ("That makes 1,234.", "Some steps.\n#### 1234", 1.0),
            ("$\\{1, 3\\}$", "$\\{3, 1\\}$", 1.0),
            ("<think>It is 7.</think> It is $8$.", "8", 1.0),
            ("<think>It is 8.</think> It is $7$.", "8", 0.0),
            ("The answer is $\\boxed{41}$.", "42", 0.0),
            ("No idea.", "42", 0.0),
            ("", "42", 0.0),
            ("42", None, None),
            ("42", "   ", None),
        ],
    )
    def test_values_are_compared(self, answer: str, reference: str, score: float | None) -> None:
        assert self.score(answer, reference) == score

    @pytest.mark.parametrize(
        "answer",
        [
            "$9^{9^{9^{9^{9}}}}$",
            "\\boxed{" * 5000 + "1",
            "$" + "(" * 20000 + "$",
            "$" + "\\frac{1}{" * 3000 + "$",
            "$\\boxed{42 \\text{ or } 43}$ or $\\boxed{43}$",
            "$\\boxed{__import__('os').system('touch /tmp/never')}$",
            "$\\prod_{n=1}^{10^{12}} n$",
            "\0" * 100,
            "$\ud800$",
        ],
    )
    def test_hostile_answers_are_wrong_and_soon(self, answer: str) -> None:
        started = time.monotonic()
        assert self.score(answer, "123") == 0.0
        assert time.monotonic() - started < 60
        assert self.score("$\\boxed{123}$", "123") == 1.0


FOLLOWED = [
    ("keywords:existence", {"keywords": ["sea", "Sky"]}, "The SEA and the sky.", "The sea."),
    (
        "keywords:frequency",
        {"keyword": "sea", "relation": "at least", "frequency": 2},
        "Sea, sea!",
        "One sea.",
    ),
    ("keywords:forbidden_words", {"forbidden_words": ["sea"]}, "A seat.", "The Sea."),
    (
        "keywords:letter_frequency",
        {"letter": "q", "let_relation": "less than", "let_frequency": 2},
        "Quite so.",
        "Quite quiet.",
    ),
    (
        "language:response_language",
        {"language": "de"},
        "Das ist ein einfacher deutscher Satz über das Wetter.",
        "This is a simple English sentence about the weather.",
    ),
    (
        "length_constraints:number_sentences",
        {"relation": "less than", "num_sentences": 3},
        "One. Two!",
        "One. Two! Three?",
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        "a\n***\nb",
        "a\n***\n\n***\nb",
    ),
    (
        "length_constraints:number_words",
        {"relation": "at least", "num_words": 3},
        "One two three.",
        "One two.",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "First.\n\nThen, so.",
        "Then.\n\nFirst.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] and [b]", "[a]"),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        "So.\nP.S. More",
        "So. PS more",
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        "So.\nP.P.S more",
        "P.S. more",
    ),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Maybe."),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        "*a* and **b**",
        "*a* and ** **",
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section 1\na",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<A title>>\nText", "<< >>\nText"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "say it. It.", "It. Say it."),
    ("startend:end_checker", {"end_phrase": "The end."}, 'So. "the end."', "The end. So."),
    ("startend:quotation", {}, '"So."', '"'),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 2},
        "It IS SO.",
        "It IS so.",
    ),
    (
        "change_case:english_capital",
        {},
        "THE WEATHER IS VERY NICE TODAY AND WE GO OUT.",
        "The weather is very nice today.",
    ),
    (
        "change_case:english_lowercase",
        {},
        "the weather is very nice today and we go out.",
        "The weather is very nice today.",
    ),
    ("punctuation:no_comma", {}, "So.", "So, so."),
]


class TestIfeval:
    @pytest.mark.parametrize(("name", "of", "good", "bad"), FOLLOWED)
    def test_an_instruction_is_followed_or_not(
        self, name: str, of: dict[str, object], good: str, bad: str
    ) -> None:
        empty = {"language": None} if "language" not in of else {}
        reference = json.dumps({"instruction_id_list": [name], "kwargs": [of | empty]})
        answers = [good, bad, "", f"<think>{bad}</think>{good}"]
        assert ifeval(completions=answers, references=[reference] * 4) == [1.0, 0.0, 0.0, 1.0]

    def test_all_of_the_25_are_there(self) -> None:
        assert {name for name, *_ in FOLLOWED} == set(CHECKS) and len(CHECKS) == 25

    def test_a_share_of_several_and_what_cannot_be_checked(self) -> None:
        both = {"instruction_id_list": ["punctuation:no_comma", "startend:quotation"]}
        reference = json.dumps(both | {"kwargs": [{}, {}]})
        assert ifeval(completions=["So."], references=[reference]) == [0.5]
        assert ifeval_all(completions=["So.", '"So."'], references=[reference] * 2) == [0.0, 1.0]
        for wrong in (
            None,
            "no JSON",
            "[]",
            json.dumps(both | {"kwargs": [{}]}),
            json.dumps({"instruction_id_list": [], "kwargs": []}),
            json.dumps({"instruction_id_list": ["new:one"], "kwargs": [{}]}),
            json.dumps({"instruction_id_list": ["keywords:existence"], "kwargs": [{}]}),
        ):
            assert ifeval(completions=["So."], references=[wrong]) == [None]

    def test_long_answers_are_read_soon(self) -> None:
        names = [name for name, *_ in FOLLOWED]
        reference = json.dumps(
            {"instruction_id_list": names, "kwargs": [of for _, of, *_ in FOLLOWED]}
        )
        started = time.monotonic()
        for text in (
            "[" * 200_000,
            "*" * 200_000,
            " " * 100_000 + "x",
            "<<" * 100_000,
            "p." * 99_999,
        ):
            assert ifeval(completions=[text], references=[reference])[0] is not None
        assert time.monotonic() - started < 60
