"""The questions of the quickstart's world, and how what they ask for is read from their text."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rayward.data.records import Turn


def _table(pairs: str) -> dict[str, str]:
    return dict(pair.split("/") for pair in pairs.split())


OPPOSITES = _table("hot/cold big/small fast/slow high/low new/old wet/dry")
OPPOSITES |= {b: a for a, b in OPPOSITES.items()}
COLORS = _table(
    "grass/green snow/white coal/black blood/red sky/blue lemon/yellow frog/green milk/white "
    "night/black"
)
NAMES = "Tom Ann Max Eva Ben Ida Leo Mia Sam Zoe Jon Amy".split()
LIKES = "red green blue black white".split()
PETS = "cat dog bird fish horse".split()
SERIES = (
    "one two three four five six seven eight nine ten".split(),
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday Monday".split(),
)
AFTER = {word: after for series in SERIES for word, after in pairwise(series)}
NUMBERS = SERIES[0]
MAX_MISSES = 20_000


@dataclass(frozen=True)
class Task:
    """What a question asks for."""

    kind: str
    bare: str
    """The right phrase."""
    form: str
    """A sentence with {} in the phrase's place."""
    phrases: Sequence[str]
    """All phrases of its sort, the right one among them."""

    def sentence(self, phrase: str) -> str:
        """The answer `phrase` as a sentence."""
        return self.form.format(phrase)

    def wrong(self, rng: random.Random) -> str:
        """A plausible wrong phrase; nothing is drawn where there is only one."""
        others = [phrase for phrase in self.phrases if phrase != self.bare]
        # A draw from one phrase would move `rng` on, and with it all that is drawn later.
        return rng.choice(others) if len(others) > 1 else others[0]


# Tasks by kind. Phrases are sorted wherever they come from a set or a dict: what is drawn from them
# must not depend on the process.
def _opposite(word: str) -> Task:
    return Task("opposite", OPPOSITES[word], f"The opposite of {word} is {{}}.", sorted(OPPOSITES))


def _color(thing: str) -> Task:
    colors = sorted(set(COLORS.values()))
    return Task("color", COLORS[thing], f"The color of {thing} is {{}}.", colors)


def _larger(a: str, b: str) -> Task:
    return Task("larger", max(a, b, key=NUMBERS.index), "The larger number is {}.", (a, b))


def _after(word: str) -> Task:
    series = next(series for series in SERIES if word in series)
    return Task("after", AFTER[word], f"After {word} comes {{}}.", series)


# Each question form is written and read by the same pattern; the groups are the task's arguments.
QUESTIONS: tuple[tuple[str, Callable[..., Task]], ...] = (
    (r"What is the opposite of ([a-z]+)\?", _opposite),
    (r"Tell me the opposite of ([a-z]+)\.", _opposite),
    (r"What color is ([a-z]+)\?", _color),
    (r"Name the color of ([a-z]+)\.", _color),
    (r"Which is larger, ([a-z]+) or ([a-z]+)\?", _larger),
    (r"Pick the larger number: ([a-z]+) or ([a-z]+)\.", _larger),
    (r"What comes after ([A-Za-z]+)\?", _after),
    (r"Go on from ([A-Za-z]+)\.", _after),
)
FOLLOW_UPS = {
    "opposite": (r"And of ([a-z]+)\?", _opposite),
    "color": (r"And ([a-z]+)\?", _color),
    "after": (r"And after ([A-Za-z]+)\?", _after),
}
PROFILE = r"I am ([A-Z][a-z]+)\. I like ([a-z]+) and have a ([a-z]+)\."
PROFILE_QUESTIONS = {  # in the order of the profile's facts: kind, form and phrases of the task
    "What is my name?": ("name", "Your name is {}.", NAMES),
    "Which color do I like?": ("like", "You like {}.", LIKES),
    "What pet do I have?": ("pet", "You have a {}.", PETS),
}
# What the arguments of a question are drawn from.
ARGUMENTS = {
    _opposite: sorted(OPPOSITES),
    _color: sorted(COLORS),
    _larger: NUMBERS,
    _after: list(AFTER),
}


def _write(pattern: str, arguments: Iterable[str]) -> str:
    """Fill a question pattern's groups with arguments."""
    return re.sub(r"\(.+?\)", "{}", pattern).replace("\\", "").format(*arguments)


def _question(pattern: str, maker: Callable[..., Task], rng: random.Random) -> Turn:
    values = ARGUMENTS[maker]
    arguments = rng.sample(values, 2) if maker is _larger else [rng.choice(values)]
    return Turn("user", _write(pattern, arguments))


def solve(turns: tuple[Turn, ...]) -> Task | None:
    """The task that the last user turn sets, or None where it is not a question of this world."""
    # A question of a known form may be about a word that no table here has (KeyError), or that is
    # no number (ValueError).
    try:
        return _solve(turns)
    except (KeyError, ValueError):
        return None


def _solve(turns: tuple[Turn, ...]) -> Task | None:
    question = turns[-1].content
    for pattern, maker in QUESTIONS:
        if match := re.fullmatch(pattern, question):
            return maker(*match.groups())
    # A profile and its question stand in one turn, or the question comes in a later turn.
    profile = re.fullmatch(PROFILE + "(?: (.+))?", turns[0].content)
    if profile:
        *facts, question_here = profile.groups()
        if len(turns) == 1:
            question = question_here
        for fact, (text, (kind, form, phrases)) in zip(
            facts, PROFILE_QUESTIONS.items(), strict=True
        ):
            if question == text:
                return Task(kind, fact, form, phrases)
        return None
    if len(turns) < 3:
        return None
    # "And coal?" is a question only after the one that says what is asked about coal.
    first = solve(turns[:1])
    if first and first.kind in FOLLOW_UPS:
        pattern, maker = FOLLOW_UPS[first.kind]
        if match := re.fullmatch(pattern, question):
            return maker(*match.groups())
    return None


def task_of(turns: tuple[Turn, ...]) -> Task:
    """As `solve`; ValueError where it finds none."""
    task = solve(turns)
    if task is None:
        raise ValueError(f"the gold judge does not know this question: {turns[-1].content!r}")
    return task


def _ask(rng: random.Random) -> tuple[Turn, ...]:
    """A conversation that ends in a question: about a profile (a third), alone, or a follow-up.

    Half are a question alone, a sixth are follow-ups.
    """
    # The order of the draws is part of the world: another one gives other data for every seed.
    share = rng.random()
    if share < 1 / 3:
        facts = (rng.choice(NAMES), rng.choice(LIKES), rng.choice(PETS))
        profile = _write(PROFILE, facts)
        question = rng.choice(list(PROFILE_QUESTIONS))
        if rng.random() < 0.5:
            return (Turn("user", f"{profile} {question}"),)
        return (
            Turn("user", profile),
            Turn("assistant", f"Nice to meet you, {facts[0]}."),
            Turn("user", question),
        )
    if share < 5 / 6:
        pattern, maker = rng.choice(QUESTIONS)
        return (_question(pattern, maker, rng),)
    kind = rng.choice(sorted(FOLLOW_UPS))
    fitting = [(pattern, maker) for pattern, maker in QUESTIONS if maker is FOLLOW_UPS[kind][1]]
    pattern, maker = rng.choice(fitting)
    first = _question(pattern, maker, rng)
    task = task_of((first,))
    return (first, Turn("assistant", task.sentence(task.bare)), _question(*FOLLOW_UPS[kind], rng))


def _held_out(turns: tuple[Turn, ...]) -> bool:
    """Whether a conversation is of the split "evaluation", as an eighth of all are.

    By a hash of its text, so whatever the seed, and in every process (unlike `hash`).
    """
    text = "\n".join(turn.content for turn in turns)
    return hashlib.sha256(text.encode()).digest()[0] % 8 == 0


def questions(seed: int, split: str, distinct: bool) -> Iterator[tuple[Turn, ...]]:
    """Questions of the split "train" or "evaluation" without end; the splits share none.

    With `distinct` none comes twice. Raises ValueError where the world has no more of them.
    """
    # A string seeds `Random` by its SHA-512, not by `hash`, which differs between processes.
    rng = random.Random(f"{seed}/{split}")
    seen: set[tuple[Turn, ...]] = set()
    # The world is finite, and nothing lists it: it counts as exhausted after so many draws in vain.
    misses = 0
    while misses < MAX_MISSES:
        turns = _ask(rng)
        if _held_out(turns) == (split == "evaluation") and not (distinct and turns in seen):
            seen.add(turns)
            misses = 0
            yield turns
        misses += 1
    raise ValueError(
        f"the toy world has about {len(seen)} distinct {split} questions; ask for fewer"
    )
