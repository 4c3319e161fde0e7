"""`exact` and `math` as rewards: what is right, what is not, and answers that want to be."""

from __future__ import annotations

import time

import pytest

from rayward.data.verifiable.exact import exact


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
