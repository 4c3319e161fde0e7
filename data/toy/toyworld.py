"""The quickstart's world: generated instructions, writers, noisy rankings and a gold judge.

It stands in for human data where nothing may be downloaded, and keeps the shape of the real
problem. Writers answer with different care: some are wrong, curt, rambling or rude. SFT imitates
their mixture, so it leaves room; the rankings compare writers' answers, with errors; the gold judge
is what everybody would like to know. Only the stage that makes the data and the evaluation call
`judge`; training sees nothing but conversations and rankings.

The judge is a function of (conversation, answer) text alone. It reads the last question back from
the text, so that it scores any answer that a model writes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rayward.data.records import Conversation, Prompt, Ranking, Turn
from rayward.data.toy.questions import Task, questions, task_of

Scored = tuple[tuple[Turn, ...], list[tuple[float, float, str]]]
"""A conversation and its answers, each (gold score, noise of width 1, text)."""

COURTESIES = ("Happy to help!", "Have a nice day!", "Glad you asked!")
FILLERS = ("Um,", "Well,", "I guess,")
RUDE = ("Everyone knows that.", "What a silly question.")


def judge(turns: tuple[Turn, ...], answer: str) -> float:
    """Gold quality of an answer to the last user turn, roughly -2 to 3; higher is better.

    2 for being right and nothing else (0.5 if the right words stand in other text), 0.6 for a whole
    sentence, 0.6 for one courtesy, -0.5 a filler, -0.8 a rude remark, -0.2 every further courtesy,
    -0.002 a character. Raises ValueError for a conversation that this world did not make.
    """
    task = task_of(turns)
    core = answer.strip()
    score = -0.002 * len(core)
    courtesies = 0
    # Phrases of manner are scored and taken out; what is left is compared with the right answer.
    for phrases, value in ((COURTESIES, 0.0), (FILLERS, -0.5), (RUDE, -0.8)):
        for phrase in phrases:
            times = core.count(phrase)
            core = core.replace(phrase, " ")
            score += value * times
            courtesies += times if phrases is COURTESIES else 0
    # Only the first courtesy is good: repeating it must not be a way to a high score.
    score += 0.6 * min(courtesies, 1) - 0.2 * max(courtesies - 1, 0)
    core = " ".join(core.split())
    sentence = task.sentence(task.bare)
    if core == sentence or core == sentence[0].lower() + sentence[1:]:  # as after a filler
        return score + 2.6
    if core.rstrip(".") == task.bare:
        return score + 2.0
    # Little for the right words within other text, which may list every phrase or deny this one.
    return score + (0.5 if re.search(rf"\b{re.escape(task.bare)}\b", core) else 0.0)


@dataclass(frozen=True)
class AnswerStyle:
    """Habits of whoever answers: probabilities of being right and of each manner."""

    right: float = 0.9
    sentence: float = 0.5
    courtesy: float = 0.3
    filler: float = 0.35
    rude: float = 0.12


def write_answer(task: Task, writer: AnswerStyle, rng: random.Random) -> str:
    """One answer in the writer's manner."""
    # What is drawn, and in which order, is part of the world, as in `_ask` of toy/questions.py.
    phrase = task.bare if rng.random() < writer.right else task.wrong(rng)
    whole = rng.random() < writer.sentence
    text = task.sentence(phrase) if whole else phrase + "."
    if rng.random() < writer.filler:
        lowered = text[0].lower() + text[1:] if whole else text
        text = f"{rng.choice(FILLERS)} {lowered}"
    if rng.random() < writer.rude:
        text = f"{text} {rng.choice(RUDE)}"
    if rng.random() < writer.courtesy:
        text = f"{text} {rng.choice(COURTESIES)}"
    return text


def demonstrations(count: int, seed: int) -> list[Conversation]:
    """Conversations for SFT, answered by writers of mixed care."""
    # Answers have a stream of their own: the writers' habits do not change the questions.
    rng = random.Random(f"{seed}/demonstrations")
    records = []
    for index, turns in zip(range(count), questions(seed, "train", distinct=False), strict=False):
        answer = Turn("assistant", write_answer(task_of(turns), AnswerStyle(), rng))
        records.append(Conversation(turns=(*turns, answer), source="toyworld", id=f"demo-{index}"))
    return records


def rankings(
    count: int, answers: int, label_noise: float, seed: int
) -> tuple[list[Ranking], float]:
    """Rankings of distinct answers, and the share of pairs that contradict the gold judge.

    The raters see the gold score plus normal noise (a Thurstone model), whose width is set so that
    `label_noise` of all pairs come out in the wrong order: close answers are confused often, far
    ones rarely.
    """
    rng = random.Random(f"{seed}/rankings")
    scored: list[Scored] = []
    # seed + 1, and seed + 2 in `prompts`: a sequence of questions of their own.
    for _, turns in zip(range(count), questions(seed + 1, "train", distinct=False), strict=False):
        task = task_of(turns)
        levels: dict[int, str] = {}  # answers that differ to the eye, not in a letter or two
        while len(levels) < answers:
            text = write_answer(task, AnswerStyle(right=0.6), rng)
            levels.setdefault(round(4 * judge(turns, text)), text)
        # Noise of width 1 is drawn once, and only its width is searched for: the same noise, more
        # or less of it, so that the share of wrong pairs goes with the width.
        rated = [(judge(turns, text), rng.gauss(0, 1), text) for text in levels.values()]
        scored.append((turns, rated))
    # Bisection. At 8, more than the judge's whole range, the noise alone decides.
    low, high = 0.0, 8.0
    for _ in range(30):
        width = (low + high) / 2
        if _contradicted(scored, width) < label_noise:
            low = width
        else:
            high = width
    records = []
    for index, (turns, rated) in enumerate(scored):
        best_first = sorted(rated, key=lambda row: -(row[0] + width * row[1]))
        answers_ranked = tuple(text for *_, text in best_first)
        records.append(Ranking(turns, answers_ranked, source="toyworld", id=f"rank-{index}"))
    return records, _contradicted(scored, width)


def _contradicted(scored: Sequence[Scored], width: float) -> float:
    """The share of pairs, of different gold scores, whose order the noise turns round."""
    wrong = pairs = 0
    for _, rated in scored:
        for i, (gold_a, noise_a, _) in enumerate(rated):
            for gold_b, noise_b, _ in rated[:i]:
                pairs += gold_a != gold_b
                # Negative where the raters' difference has the other sign than the judge's.
                wrong += (gold_a - gold_b) * (gold_a - gold_b + width * (noise_a - noise_b)) < 0
    return wrong / max(pairs, 1)


def prompts(count: int, seed: int, split: str) -> list[Prompt]:
    """Distinct prompts of a split, "train" or "evaluation"."""
    return [
        Prompt(turns=turns, source="toyworld", id=f"{split}-{index}")
        for index, turns in zip(
            range(count), questions(seed + 2, split, distinct=True), strict=False
        )
    ]
