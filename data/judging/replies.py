"""What a judge's reply says: two scores, a ranking, a verdict letter, a grade, a rating.

Each parser takes the text of a reply and returns what it found, or None where the reply has no such
thing: such a reply is counted, and is no draw. Nothing is evaluated as code.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping

LETTERS = ("A", "B", "C")
GRADES = {
    **{"A>>B": -2, "A>B": -1, "A=B": 0, "B>A": 1, "B>>A": 2},
    **{"B<<A": -2, "B<A": -1, "B=A": 0, "A<B": 1, "A<<B": 2},
}
"""Arena-Hard's grades, and how far the second answer is better; the later ones say the same."""
RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]")
BARE_RATING = re.compile(r"\[(\d+\.?\d*)\]")
GRADE = re.compile(r"\[\[([AB<>=]+)\]\]")
LIST = re.compile(r"\[[^\[\]]*\]")
LABELLED = re.compile(r":\s*\**\s*(-?\d+(?:\.\d+)?)\s*\**\s*(?:/\s*\d+)?\s*$")


def first_line_scores(reply: str, scale: float = 10) -> tuple[float, float] | None:
    """The two numbers that make up the first line, as Vicuna's reviews have them."""
    return _pair(reply.partition("\n")[0], scale)


def last_line_scores(reply: str, scale: float = 10) -> tuple[float, float] | None:
    """The two numbers at the end, for a judge that gives its evidence first.

    OpenChat's rule: the last line of nothing but two numbers, else the last [x, y]. Else that of
    FairEval: the last two lines, each with a number behind its colon.
    """
    lines = reply.rstrip().split("\n")
    for line in reversed(lines):
        if scores := _pair(line, scale):
            return scores
    for inside in reversed(LIST.findall(reply)):
        if scores := _listed(inside, scale):
            return scores
    found = [LABELLED.search(line) for line in lines[-2:]]
    if len(found) == 2 and found[0] and found[1]:
        return _on_scale(float(found[0][1]), float(found[1][1]), scale)
    return None


def pair_scores(reply: str, scale: float = 10) -> tuple[float, float] | None:
    """Two scores on the first line, or else at the end."""
    return first_line_scores(reply, scale) or last_line_scores(reply, scale)


def _pair(line: str, scale: float) -> tuple[float, float] | None:
    """The numbers of a line of two numbers, with or without a comma between them."""
    words = line.replace(",", " ").split()
    if len(words) != 2:
        return None
    try:
        return _on_scale(float(words[0]), float(words[1]), scale)
    except ValueError:
        return None


def _listed(text: str, scale: float) -> tuple[float, float] | None:
    try:
        values = json.loads(text)
    except ValueError:
        return None
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(values) != 2 or len(numbers) != 2:
        return None
    return _on_scale(float(numbers[0]), float(numbers[1]), scale)


def _on_scale(first: float, second: float, scale: float) -> tuple[float, float] | None:
    """Both, if they lie on the scale; a comparison with NaN is false."""
    return (first, second) if 0 <= first <= scale and 0 <= second <= scale else None


def ranked_second(reply: str, names: tuple[str, str] = ("model_1", "model_2")) -> bool | None:
    """Whether AlpacaEval's list of {"model": ..., "rank": ...} puts the second one first."""
    text = re.sub(r"^```(?:\w+)?|```$", "", reply.strip()).strip()
    start, end = text.find("["), text.rfind("]")
    try:
        ranking = ast.literal_eval(text[start : end + 1])
        ranks = {entry["model"]: int(entry["rank"]) for entry in ranking}
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        return None
    if set(ranks) != set(names) or sorted(ranks.values()) != [1, 2]:
        return None
    return ranks[names[1]] == 1


def first_token_weight(
    logprobs: Mapping[str, float], first: str = "m", second: str = "M"
) -> float | None:
    """P(second) of the two names among the first token's log-probabilities (AlpacaEval 2).

    A name that is not among them has the log-probability -inf; None where both are missing.
    """
    low, high = logprobs.get(first, -math.inf), logprobs.get(second, -math.inf)
    top = max(low, high)
    if not math.isfinite(top):
        return None
    weights = math.exp(low - top), math.exp(high - top)
    return weights[1] / (weights[0] + weights[1])


def verdict_letter(reply: str) -> str | None:
    """A, B or C (a tie): the first of [[A]], [[B]], [[C]], in this order, that is there.

    FastChat's rule, whatever the places in the text.
    """
    return next((letter for letter in LETTERS if f"[[{letter}]]" in reply), None)


def grade(reply: str) -> str | None:
    """The last of Arena-Hard's five grades, written with > (A<B is told as B>A)."""
    found = [text for text in GRADE.findall(reply) if text in GRADES]
    if not found:
        return None
    steps = GRADES[found[-1]]
    return next(text for text, number in GRADES.items() if number == steps)


def rating(reply: str, scale: float = 10) -> float | None:
    """MT-Bench's rating: the first [[number]], or else the first [number], from 0 to `scale`."""
    match = RATING.search(reply) or BARE_RATING.search(reply)
    if not match:
        return None
    value = float(match[1])
    return value if value <= scale else None
