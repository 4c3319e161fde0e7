"""Which of a prompt's answers is learnt from, and which prompts teach nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rayward.configs.schema import Config
from rayward.data.ragged import Ragged
from rayward.data.records import Conversation, Prompt, Turn
from rayward.data.rollouts import Rollouts
from rayward.data.templates.template import find
from rayward.data.templates.tokenizer import train_tokenizer
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.stages.sample import (
    batch_figures,
    best_conversations,
    few_finished,
    pick_best,
    summary,
    worse_than_the_mean,
)

TEMPLATE = find("openchat_3.5")


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    tokenizer = train_tokenizer(["It is cold. It is hot."], 300, TEMPLATE.special_tokens, 128)
    return Renderer(TEMPLATE, tokenizer, 128)


def prompts(count: int) -> list[Prompt]:
    return [Prompt((Turn("user", f"Question {i}?"),), id=f"p{i}") for i in range(count)]


def drawn(renderer: Renderer, answers: list[list[tuple[str, float, bool]]]) -> Rollouts:
    """Rollouts of (text, score, ended by itself) for each answer of each prompt."""
    flat = [answer for of_prompt in answers for answer in of_prompt]
    (stop,) = renderer.stop_token_ids
    ids = [renderer.tokenizer.encode(text) + [stop] * ended for text, _, ended in flat]
    return Rollouts(
        prompts=Ragged.of([[1]] * len(flat)),
        responses=Ragged.of(ids),
        prompt_index=np.repeat(np.arange(len(answers)), len(answers[0])),
        finished=np.array([ended for *_, ended in flat]),
        rollout_logprobs=np.zeros(sum(map(len, ids))),
        weight_version=0,
        scores=np.array([score for _, score, _ in flat], dtype=np.float32),
    )


def picked(renderer: Renderer, *answers: tuple[str, float, bool]) -> dict[str, Any]:
    (row,) = pick_best(drawn(renderer, [list(answers)]), prompts(1), renderer, len(answers))
    return row


def test_the_highest_score_is_picked_and_the_first_of_equals(renderer: Renderer) -> None:
    row = picked(renderer, ("a", 1.0, True), ("b", 3.0, True), ("c", 3.0, True), ("d", 2.0, True))
    assert (row["k_index"], row["response"], row["score"], row["kept"]) == (1, "b", 3.0, True)
    assert row["answers"] == ["a", "b", "c", "d"] and row["scores"] == [1.0, 3.0, 3.0, 2.0]
    assert row["ended"] == [True] * 4
    assert (row["finished"], row["distinct"], row["prompt_id"], row["prompt"]) == (
        4,
        4,
        "p0",
        ["Question 0?"],
    )


def test_an_answer_that_was_cut_off_is_never_picked(renderer: Renderer) -> None:
    row = picked(renderer, ("cut", 9.0, False), ("low", -5.0, True), ("lower", -6.0, True))
    assert (row["k_index"], row["response"], row["finished"], row["kept"]) == (1, "low", 2, True)
    assert not picked(renderer, ("cut", 9.0, False), ("too", 1.0, False))["kept"]


def test_a_prompt_without_a_choice_teaches_nothing(renderer: Renderer) -> None:
    assert not picked(renderer, ("a", 2.0, True), ("b", 2.0, True), ("c", 2.0, True))["kept"]
    assert picked(renderer, ("a", 2.0, True), ("b", 2.0, True), ("c", 2.1, True))["kept"]
    assert not picked(renderer, ("", 2.0, True), ("b", 1.0, True))["kept"], (
        "an empty answer is no conversation"
    )
    assert not picked(renderer, ("  ", 2.0, True), ("b", 1.0, True))["kept"]


def test_random_draws_against_a_plain_search(renderer: Renderer) -> None:
    rng = np.random.default_rng(0)
    answers = [
        [(f"answer {i} {k}", float(rng.integers(3)), bool(rng.random() < 0.6)) for k in range(4)]
        for i in range(80)
    ]
    rows = list(pick_best(drawn(renderer, answers), prompts(80), renderer, 4))
    assert len(rows) == 80 and 10 < sum(row["kept"] for row in rows) < 80
    for row, given in zip(rows, answers, strict=True):
        ended = [(score, -k) for k, (_, score, done) in enumerate(given) if done]
        assert row["answers"] == [text for text, *_ in given]
        if ended:
            score, k = max(ended)
            assert (row["score"], row["k_index"], row["response"]) == (score, -k, given[-k][0])
        assert row["kept"] == (bool(ended) and len({score for _, score, _ in given}) > 1)


def test_each_prompt_keeps_its_own_answers_whatever_the_batch(renderer: Renderer) -> None:
    """Picking from all prompts at once or from one after the other is the same."""
    rng = np.random.default_rng(1)
    answers = [[(f"a{i}{k}", float(rng.normal()), True) for k in range(3)] for i in range(6)]
    whole = list(pick_best(drawn(renderer, answers), prompts(6), renderer, 3))
    for i, prompt in enumerate(prompts(6)):
        assert list(pick_best(drawn(renderer, [answers[i]]), [prompt], renderer, 3)) == [whole[i]]


def test_the_kept_answers_become_conversations_of_their_prompts(renderer: Renderer) -> None:
    asked = prompts(3)
    answers = [
        [("x", 1.0, True), ("y", 2.0, True)],
        [("x", 1.0, True), ("x", 1.0, True)],
        [("z", 3.0, True), ("w", 1.0, True)],
    ]
    kept = [row for row in pick_best(drawn(renderer, answers), asked, renderer, 2) if row["kept"]]
    assert list(best_conversations(asked, kept)) == [
        Conversation((*asked[0].turns, Turn("assistant", "y")), "rejection", "p0"),
        Conversation((*asked[2].turns, Turn("assistant", "z")), "rejection", "p2"),
    ]


def test_the_summary_by_hand(renderer: Renderer) -> None:
    answers = [[("ab", 1.0, True), ("abcd", 3.0, True)], [("x", 2.0, False), ("x", 2.0, True)]]
    rows = list(pick_best(drawn(renderer, answers), prompts(2), renderer, 2))
    told = summary(rows, [row for row in rows if row["kept"]])
    assert told == pytest.approx(
        {
            "prompts": 2,
            "samples_per_prompt": 2,
            "kept_prompts": 1,
            "mean_score": 2.0,
            "best_score": 3.0,
            "distinct_share": (1 + 0.5) / 2,
            "finished_share": (1 + 0.5) / 2,
            "mean_characters": (2 + 4 + 1 + 1) / 4,
            "best_characters": 4.0,
            "kl_bound": math.log(2) - 0.5,
        }
    )


# ---- where few answers end by themselves
# ---------------------------------------------------------------------


def test_few_finished_answers_are_told_with_numbers_and_settings(
    renderer: Renderer, tiny_config: Callable[..., Config]
) -> None:
    config = tiny_config(sample={"temperature": 0.9})
    half = [[("a", 1.0, True), ("b", 2.0, False)], [("c", 0.0, False), ("d", 1.0, True)]]
    assert (
        few_finished(list(pick_best(drawn(renderer, half), prompts(2), renderer, 2)), config) == ""
    )
    few = [[("a", 1.0, True), ("b", 2.0, False)], [("c", 0.0, False), ("d", 1.0, False)]]
    told = few_finished(list(pick_best(drawn(renderer, few), prompts(2), renderer, 2)), config)
    assert "only 25.0% of 4 answers ended by themselves within rollout.max_new_tokens 24" in told
    assert (
        "1 of 2 prompts have nothing to keep" in told
        and "sample.temperature (0.9)" in told
        and "sft.epochs" in told
    )


def test_kept_answers_below_the_mean_of_all_are_told(renderer: Renderer) -> None:
    good = [[("a", 1.0, True), ("b", 0.0, True)], [("c", 3.0, False), ("d", 2.5, False)]]
    rows = list(pick_best(drawn(renderer, good), prompts(2), renderer, 2))
    told = worse_than_the_mean(rows)
    assert "kept score 1 on average, below the mean of all answers (1.62)" in told
    assert worse_than_the_mean(rows[:1]) == "" and worse_than_the_mean(rows[1:]) == "", (
        "nothing kept, nothing to tell"
    )


def test_figures_of_a_batch_by_hand(renderer: Renderer) -> None:
    answers = [[("a", 1.0, True), ("b", 2.0, False)], [("c", 3.0, False), ("d", 2.0, False)]]
    rows = list(pick_best(drawn(renderer, answers), prompts(2), renderer, 2))
    assert batch_figures(rows) == {"mean_score": 2.0, "finished_share": 0.25, "best_score": 1.0}
    assert batch_figures(rows[1:]) == {"mean_score": 2.5, "finished_share": 0.0}, (
        "no best where none is kept"
    )
