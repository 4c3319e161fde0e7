"""What DPO learns from when it learns from samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayward.configs.load import ConfigError
from rayward.configs.schema import Config
from rayward.data.records import Prompt, Ranking, Turn, validate
from rayward.pipelines.align import align
from rayward.pipelines.stages.dpo import sampled_rankings

PROMPT = Prompt((Turn("user", "Why?"),), "toy", "p")


def row(answers: str, scores: list[float], response: str, **more: Any) -> dict[str, Any]:
    said = {
        "prompt_id": "p",
        "answers": list(answers),
        "scores": scores,
        "response": response,
        "kept": True,
    }
    return said | {"ended": [True] * len(answers)} | more


def ranked(sample: dict[str, Any], count: int) -> Ranking | None:
    found = list(sampled_rankings([PROMPT], [sample], count))
    for ranking in found:
        validate(ranking)
    return found[0] if found else None


def test_the_kept_answer_stands_against_worse_ones_down_to_the_worst() -> None:
    sample = row("abcde", [1.0, 5.0, 2.0, 4.0, 3.0], "b")
    assert ranked(sample, 2) == Ranking(PROMPT.turns, ("b", "a"), "samples", "p", (0.0, 1.0))
    assert ranked(sample, 3) == Ranking(
        PROMPT.turns, ("b", "e", "a"), "samples", "p", (0.0, 1.0, 2.0)
    )
    everything = ranked(sample, 9)
    assert everything is not None and "".join(everything.answers) == "bdeca"


def test_equal_texts_are_one_answer_and_equal_scores_are_ties() -> None:
    sample = row("abacd", [2.0, 5.0, 2.0, 2.0, 1.0], "b")
    assert ranked(sample, 9) == Ranking(
        PROMPT.turns, ("b", "a", "c", "d"), "samples", "p", (0.0, 1.0, 1.0, 2.0)
    )


def test_an_answer_that_was_cut_is_left_out_whatever_its_score() -> None:
    kept = Ranking(PROMPT.turns, ("a", "b"), "samples", "p", (0.0, 1.0))
    assert ranked(row("xab", [9.0, 5.0, 1.0], "a", ended=[False, True, True]), 2) == kept
    assert ranked(row("axb", [5.0, 0.0, 1.0], "a", ended=[True, False, True]), 2) == kept


def test_samples_that_do_not_say_which_answers_were_cut_are_taken_where_all_ended() -> None:
    old = {name: value for name, value in row("ab", [5.0, 1.0], "a").items() if name != "ended"}
    assert ranked(old | {"finished": 2}, 2) == Ranking(
        PROMPT.turns, ("a", "b"), "samples", "p", (0.0, 1.0)
    )
    assert ranked(old | {"finished": 1}, 2) is None


@pytest.mark.parametrize(
    "sample",
    [
        row("ab", [1.0, 2.0], "b", kept=False),
        row("bb", [2.0, 2.0], "b"),
        row(["b", ""], [2.0, 1.0], "b"),
    ],
)
def test_prompts_without_a_worse_answer_are_left_out(sample: dict[str, Any]) -> None:
    assert ranked(sample, 2) is None


def test_without_a_section_the_command_says_so(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"this config leaves out dpo \(dpo: null\); give it a section"
    ):
        align(tiny_config(), tmp_path, ("dpo",))
