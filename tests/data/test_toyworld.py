"""The generated world: repeatable, split without leaks, judged in the right order, and hard to
cheat.
"""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from pathlib import Path

import pytest

from rayward.data.records import Turn, validate
from rayward.data.toy import toyworld
from rayward.data.toy.questions import Task, questions, solve
from rayward.data.toy.toyworld import COURTESIES, FILLERS, RUDE, AnswerStyle, judge, write_answer

ROOT = Path(__file__).parents[2]


def user(text: str) -> tuple[Turn, ...]:
    return (Turn("user", text),)


def some(count: int, seed: int = 3) -> list[tuple[tuple[Turn, ...], Task]]:
    """Different questions of every kind, with their tasks."""
    found = []
    for split in ("train", "evaluation"):
        for turns in itertools.islice(questions(seed, split, distinct=True), count // 2):
            task = solve(turns)
            assert task is not None
            found.append((turns, task))
    return found


PER_CHARACTER = -judge(user("What is the opposite of hot?"), "x" * 1000) / 1000


def merit(turns: tuple[Turn, ...], answer: str) -> float:
    """The judge's score without what an answer's length costs."""
    return judge(turns, answer) + PER_CHARACTER * len(answer.strip())


QUESTIONS = some(600)
# What the judge gives for each virtue and vice, taken from one question; the others must agree.
ONE = user("What is the opposite of hot?")
BARE, SENTENCE = merit(ONE, "cold"), merit(ONE, "The opposite of hot is cold.")
COURTESY, FILLER, RUDENESS = (
    merit(ONE, f"No idea. {phrases[0]}") for phrases in (COURTESIES, FILLERS, RUDE)
)
SECOND_COURTESY = merit(ONE, f"No idea. {COURTESIES[0]} {COURTESIES[1]}") - COURTESY


# ---- seeds and splits
# --------------------------------------------------------------------------------------


def everything(seed: int) -> list:
    rankings, _ = toyworld.rankings(40, 5, 0.1, seed)
    return [
        toyworld.demonstrations(60, seed),
        rankings,
        toyworld.prompts(60, seed, "train"),
        toyworld.prompts(40, seed, "evaluation"),
    ]


def test_the_same_seed_gives_the_same_data_and_another_seed_other_data() -> None:
    assert everything(5) == everything(5)
    for one, other in zip(everything(5), everything(6), strict=True):
        assert one != other


def test_data_do_not_depend_on_the_process() -> None:
    code = (
        "from rayward.data.toy import toyworld as w; import hashlib; "
        "made = w.demonstrations(50, 1), w.rankings(20, 4, .1, 1), w.prompts(50, 1, 'train'); "
        "print(hashlib.sha256(repr(made).encode()).hexdigest())"
    )
    prints = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(prints) == 1 and len(prints.pop().strip()) == 64


def test_asking_for_more_keeps_what_came_first() -> None:
    assert toyworld.demonstrations(100, 2)[:30] == toyworld.demonstrations(30, 2)
    assert toyworld.prompts(100, 2, "train")[:30] == toyworld.prompts(30, 2, "train")


def test_evaluation_prompts_occur_in_no_other_set_whatever_the_seed() -> None:
    training, evaluation = set(), set()
    for seed in range(5):
        evaluation |= {prompt.turns for prompt in toyworld.prompts(300, seed, "evaluation")}
        training |= {prompt.turns for prompt in toyworld.prompts(1000, seed, "train")}
        training |= {record.turns[:-1] for record in toyworld.demonstrations(1000, seed)}
        training |= {record.turns for record in toyworld.rankings(300, 2, 0.1, seed)[0]}
    assert len(evaluation) > 300 and len(training) > 2000
    assert not evaluation & training
    assert 0.08 < len(evaluation) / len(evaluation | training) < 0.2, "about an eighth is held out"


def test_prompts_are_distinct_by_the_thousand_and_some_have_several_turns() -> None:
    prompts = toyworld.prompts(2000, 0, "train")
    assert (
        len({prompt.turns for prompt in prompts}) == 2000 == len({prompt.id for prompt in prompts})
    )
    several = sum(len(prompt.turns) > 1 for prompt in prompts)
    assert 200 < several < 1800
    for record in (
        *prompts,
        *toyworld.demonstrations(300, 0),
        *toyworld.rankings(50, 4, 0.1, 0)[0],
    ):
        validate(record)


def test_an_exhausted_world_says_how_large_it_is() -> None:
    with pytest.raises(ValueError, match="distinct evaluation questions; ask for fewer") as caught:
        toyworld.prompts(100_000, 0, "evaluation")
    size = int(str(caught.value).split("about ")[1].split()[0])
    assert len({prompt.turns for prompt in toyworld.prompts(size, 0, "evaluation")}) == size


def test_demonstrations_are_of_mixed_quality() -> None:
    records = toyworld.demonstrations(3000, 4)
    answers = [record.turns[-1].content for record in records]
    scores = [
        merit(record.turns[:-1], answer) for record, answer in zip(records, answers, strict=True)
    ]
    right = 0
    for record, answer in zip(records, answers, strict=True):
        task = solve(record.turns[:-1])
        assert task is not None
        right += task.bare in answer
    assert 1800 < right < 2940
    for phrases in (COURTESIES, FILLERS, RUDE):
        assert 150 < sum(any(phrase in answer for phrase in phrases) for answer in answers) < 1800
    assert max(scores) == pytest.approx(SENTENCE + COURTESY), "the best answer is among them"
    assert min(scores) == pytest.approx(FILLER + RUDENESS), "and the worst"


# ---- questions and their right answers
# ---------------------------------------------------------------------


@pytest.mark.parametrize("question, right", [
    ("What is the opposite of hot?", "cold"), ("Tell me the opposite of cold.", "hot"),
    ("What color is snow?", "white"), ("Name the color of sky.", "blue"),
    ("Which is larger, two or nine?", "nine"), ("Pick the larger number: ten or one.", "ten"),
    ("What comes after three?", "four"), ("Go on from Sunday.", "Monday"),
    ("I am Mia. I like red and have a dog. What is my name?", "Mia"),
    ("I am Mia. I like red and have a dog. Which color do I like?", "red"),
    ("I am Mia. I like red and have a dog. What pet do I have?", "dog")])  # fmt: skip
def test_right_answers_as_a_person_knows_them(question: str, right: str) -> None:
    task = solve(user(question))
    assert task is not None and task.bare == right and right in task.sentence(right)
    assert merit(user(question), right) == pytest.approx(BARE)


@pytest.mark.parametrize(
    "first, answer, then, right",
    [
        ("What is the opposite of hot?", "The opposite of hot is cold.", "And of big?", "small"),
        ("Name the color of grass.", "The color of grass is green.", "And coal?", "black"),
        ("Go on from one.", "After one comes two.", "And after Friday?", "Saturday"),
        (
            "I am Leo. I like blue and have a fish.",
            "Nice to meet you, Leo.",
            "Which color do I like?",
            "blue",
        ),
    ],
)
def test_a_follow_up_is_understood_from_the_turns_before(
    first: str, answer: str, then: str, right: str
) -> None:
    turns = (Turn("user", first), Turn("assistant", answer), Turn("user", then))
    task = solve(turns)
    assert task is not None and task.bare == right
    assert solve(user(then)) is None, "alone it means nothing"


def test_every_generated_question_is_read_back() -> None:
    kinds = {task.kind for _, task in QUESTIONS}
    assert len(kinds) >= 5
    rng = random.Random(0)
    for turns, task in QUESTIONS:
        for _ in range(5):
            assert task.wrong(rng) != task.bare
        assert merit(turns, task.sentence(task.bare)) == pytest.approx(SENTENCE)
        assert merit(turns, task.bare) == pytest.approx(BARE)


@pytest.mark.parametrize(
    "question",
    [
        "Hello",
        "What is the meaning of life?",
        "And of hot?",
        "What color is snow? ",
        "What is my name?",
        "I am Mia. I like red and have a dog.",
        "What is the opposite of banana?",
        "What color is justice?",
        "What comes after ten?",
        "Which is larger, two or apples?",
    ],
)
def test_the_judge_refuses_what_the_world_did_not_make(question: str) -> None:
    with pytest.raises(ValueError, match="does not know this question"):
        judge(user(question), "cold")
    assert solve(user(question)) is None


# ---- the judge's order
# -------------------------------------------------------------------------------------


def test_a_right_sentence_beats_a_bare_phrase_and_both_beat_what_is_wrong() -> None:
    rng = random.Random(1)
    for turns, task in QUESTIONS:
        wrong = task.wrong(rng)
        sentence, bare = judge(turns, task.sentence(task.bare)), judge(turns, task.bare + ".")
        wrongs = [judge(turns, text) for text in (task.sentence(wrong), wrong + ".", "")]
        assert sentence > bare > max(wrongs), turns
        assert (
            merit(turns, task.sentence(wrong)) == merit(turns, wrong) == pytest.approx(0, abs=1e-9)
        )
        assert judge(turns, f"  {task.bare}.\n") == judge(turns, task.bare + "."), (
            "space around it is nothing"
        )


def test_virtues_are_worth_something_and_vices_cost() -> None:
    assert (
        SENTENCE > BARE > COURTESY > 0 > SECOND_COURTESY
        and 0 > FILLER > RUDENESS
        and PER_CHARACTER > 0
    )
    assert BARE + FILLER + RUDENESS >= 0, (
        "whoever is right is never worse than whoever is only wrong"
    )


def test_manners_count_the_same_for_every_answer() -> None:
    for turns, task in QUESTIONS[::7]:
        for text in (task.sentence(task.bare), task.bare + ".", "I do not know."):
            plain = merit(turns, text)
            for kind in COURTESIES:
                assert merit(turns, f"{text} {kind}") == pytest.approx(plain + COURTESY)
                assert merit(turns, f"{kind} {text}") == pytest.approx(plain + COURTESY)
                for other in COURTESIES:
                    assert merit(turns, f"{text} {kind} {other}") == pytest.approx(
                        plain + COURTESY + SECOND_COURTESY
                    )
            assert merit(turns, f"{text} {' '.join(COURTESIES * 4)}") < plain, (
                "flattery does not pay"
            )
            lower = text if text == task.bare + "." else text[0].lower() + text[1:]
            for filler in FILLERS:
                for spelled in (text, lower):
                    assert merit(turns, f"{filler} {spelled}") == pytest.approx(plain + FILLER)
            for rude in RUDE:
                assert merit(turns, f"{text} {rude}") == pytest.approx(plain + RUDENESS)
                assert merit(turns, f"{text} {rude} {rude}") == pytest.approx(plain + 2 * RUDENESS)


def test_one_courtesy_is_worth_its_length_and_more_words_are_not() -> None:
    for turns, task in QUESTIONS[::7]:
        best = f"{task.sentence(task.bare)} {COURTESIES[0]}"
        assert judge(turns, best) > judge(turns, task.sentence(task.bare))
        for more in ("Indeed.", COURTESIES[1], RUDE[0], FILLERS[0], task.sentence(task.bare)):
            assert judge(turns, f"{best} {more}") < judge(turns, best)


def test_echoing_and_listing_do_not_reach_a_right_answer() -> None:
    answers = sorted({task.bare for _, task in QUESTIONS})
    kinds = {task.kind for _, task in QUESTIONS}
    by_kind = {
        kind: sorted({task.bare for _, task in QUESTIONS if task.kind == kind}) for kind in kinds
    }
    for turns, task in QUESTIONS[::5]:
        bare = judge(turns, task.bare + ".")
        said = " ".join(turn.content for turn in turns)
        options = by_kind[task.kind]
        tricks = [
            said,
            f"{said} {task.bare}",
            " ".join(answers),
            " ".join(options),
            " or ".join(options),
            " ".join(task.sentence(option) for option in options),
            f"{task.bare} {task.bare}",
            f"{task.sentence(task.bare)} {task.sentence(task.bare)}",
            f"Not {task.bare}.",
            task.bare * 2,
            f"{task.bare}. {task.wrong(random.Random(0))}.",
        ]
        for trick in tricks:
            for text in (trick, f"{trick} {COURTESIES[0]}"):
                assert judge(turns, text) < bare, (turns, text)


def test_careful_writers_are_always_right_and_careless_ones_never() -> None:
    rng = random.Random(2)
    careful = AnswerStyle(right=1, sentence=1, courtesy=0, filler=0, rude=0)
    careless = AnswerStyle(right=0, sentence=0.5, courtesy=0.5, filler=0.5, rude=0.5)
    for turns, task in QUESTIONS:
        assert merit(turns, write_answer(task, careful, rng)) == pytest.approx(SENTENCE)
        assert merit(turns, write_answer(task, careless, rng)) <= COURTESY + 1e-9
        assert (
            merit(turns, write_answer(task, AnswerStyle(right=1), rng))
            >= BARE + FILLER + RUDENESS - 1e-9
        )


# ---- rankings
# ----------------------------------------------------------------------------------------------


def contradicted(rankings: list, least: float, most: float) -> float:
    """Share of pairs, of a gold gap within the bounds, whose order contradicts the judge."""
    wrong = pairs = 0
    for ranking in rankings:
        gold = [judge(ranking.turns, answer) for answer in ranking.answers]
        for better, worse in itertools.combinations(gold, 2):
            if least < abs(better - worse) <= most:
                pairs += 1
                wrong += better < worse
    assert pairs > 100
    return wrong / pairs


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1, 0.2, 0.3, 0.4])
def test_label_noise_is_what_was_asked(noise: float) -> None:
    rankings, told = toyworld.rankings(300, 5, noise, seed=8)
    assert contradicted(rankings, 1e-6, 9) == pytest.approx(noise, abs=0.005)
    assert told == pytest.approx(contradicted(rankings, 1e-6, 9), abs=0.002)


def test_raters_confuse_close_answers_more_often() -> None:
    rankings, _ = toyworld.rankings(400, 6, 0.15, seed=9)
    near, middle, far = (contradicted(rankings, *gap) for gap in ((0, 0.5), (0.5, 1.5), (1.5, 9)))
    assert near > middle + 0.02 > far + 0.04


@pytest.mark.parametrize("answers", [2, 7, 10])
def test_rankings_have_k_distinct_answers(answers: int) -> None:
    rankings, _ = toyworld.rankings(50, answers, 0.1, seed=1)
    assert len(rankings) == 50
    assert all(len(set(ranking.answers)) == len(ranking.answers) == answers for ranking in rankings)


def test_less_noise_orders_the_same_answers_better() -> None:
    clean, noisy = (toyworld.rankings(100, 5, noise, seed=2)[0] for noise in (0.0, 0.3))
    for one, other in zip(clean, noisy, strict=True):
        assert (one.turns, sorted(one.answers)) == (other.turns, sorted(other.answers))
    for ranking in clean:
        gold = [judge(ranking.turns, answer) for answer in ranking.answers]
        assert gold == pytest.approx(sorted(gold, reverse=True), abs=1e-6)
