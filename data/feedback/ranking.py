"""K answers put in order by a judge: what it is shown, how its list is read, how far two agree.

The protocol is that of Nectar (github.com/efrick2002/Starling): answers in a random order under the
labels A, B, ..., first all comparisons of two in a given random order, then the list, at
temperature 0. Here the order comes from a hash of the texts, so neither the ranks that the data had
nor the order of the rows can show through; lists are read without `eval` and must name every label
once; and the prompts are ours.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import combinations, permutations
from string import ascii_uppercase
from typing import Any

from rayward.data.feedback.prompt_files import Prompts, digest, fill, transcript
from rayward.data.records import Ranking, RowError, Turn


def item_digest(ranking: Ranking) -> str:
    """A hash of the prompt and its answers, whatever their order."""
    # Parts count where there are some, so what was drawn for plain rankings stays as it was.
    return digest(
        *((turn.role, turn.content, *_parts(turn)) for turn in ranking.turns),
        *([ranking.tools] if ranking.tools else []),
        *sorted(ranking.answers),
    )


def _parts(turn: Turn) -> list[object]:
    if not (turn.reasoning or turn.tool_calls or turn.tool_call_id or turn.name):
        return []
    calls = [(call.name, call.arguments, call.id) for call in turn.tool_calls]
    return [turn.reasoning, calls, turn.tool_call_id, turn.name]


def shown_order(ranking: Ranking, seed: int, again: bool = False) -> list[int]:
    """Places in `ranking.answers` of the answers labelled A, B, ..., by the texts and the seed.

    `again`: another order, the first one backwards where the second draw gives the same.
    """

    def draw(name: str) -> list[int]:
        # A hash of each answer, not a shuffle of the places: the order that the answers have in the
        # data, which is often best first, cannot show through.
        key = digest(seed, item_digest(ranking), name)
        return sorted(
            range(len(ranking.answers)), key=lambda place: digest(key, ranking.answers[place])
        )

    first, second = draw("first"), draw("again")
    if not again:
        return first
    return second if second != first else first[::-1]


def pair_order(k: int, key: object) -> list[tuple[str, str]]:
    """All pairs of K labels, the earlier label first, in a random order."""
    pairs = list(combinations(ascii_uppercase[:k], 2))
    return random.Random(digest(key, "pairs")).sample(pairs, len(pairs))


def judge_messages(
    ranking: Ranking, order: Sequence[int], prompts: Prompts, seed: int
) -> list[dict[str, str]]:
    """What the judge is sent. RowError for more answers than there are letters."""
    k = len(order)
    if k > len(ascii_uppercase):
        raise RowError(
            "answers", f"{k} answers", f"at most {len(ascii_uppercase)}", "too many answers"
        )
    labels = ascii_uppercase[:k]
    answers = "\n\n".join(
        f"<<< ANSWER {label} >>>\n{ranking.answers[place]}\n<<< END OF ANSWER {label} >>>"
        for label, place in zip(labels, order, strict=True)
    )
    pairs = pair_order(k, (seed, item_digest(ranking), *order))
    listed = "\n".join(f"{first} against {second}" for first, second in pairs)
    system = fill(prompts, "judge_system", k=k, labels=", ".join(labels))
    conversation = transcript(ranking.turns, ranking.tools)
    user = fill(prompts, "judge_user", conversation=conversation, answers=answers, pairs=listed)
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


# ---- the judge's reply

LISTS = (  # a pattern, and how many labels make a list of what it matches; the surest comes first
    (re.compile(r"\[\s*\[([^\[\]]+)\]\s*\]"), 1),
    (re.compile(r"\[([^\[\]]+)\]"), 2),
    # Bare labels count at the end of a line only: in running text they may be a pair.
    (re.compile(r"(?<![\w('\"])([A-Z](?:\s*[,>]\s*[A-Z])+)(?=\W*$)", re.MULTILINE), 2),
)
LABEL = re.compile(r"(?:(?:model|answer|response|assistant)\s+)?([A-Z])", re.IGNORECASE)
REFUSAL = re.compile(
    r"\bi(?:'m| am) (?:sorry|unable)|\bi apologi[sz]e"
    r"|\bi (?:can't|cannot|can not|won't|will not)\b|\bas an ai\b",
    re.IGNORECASE,
)


def parse_ranking(reply: str, k: int) -> list[int]:
    """The places 0..K-1 of the labels in the judge's list, best first.

    The list is the last [[...]] of labels, or else the last [...], or else the last run of labels
    that ends a line. RowError, with the whole reply as what was found: no such list, or not each
    label once.
    """
    labels = ascii_uppercase[:k]
    reason = "refusal" if REFUSAL.search(reply.replace("’", "'")) else "no ranking in the reply"
    for pattern, fewest in LISTS:
        candidates = [_labels(inside) for inside in pattern.findall(reply)]
        lists = [candidate for candidate in candidates if len(candidate) >= fewest]
        # The last one: a judge that thinks aloud comes to its list at the end.
        if lists and sorted(lists[-1]) == sorted(labels):
            return [labels.index(label) for label in lists[-1]]
        if lists:
            # A less sure pattern could only find a part of this list, or a comparison before it.
            reason = "not a permutation of the labels"
            break
    raise RowError("reply", reply, f"each of {', '.join(labels)} once", reason)


def _labels(inside: str) -> list[str]:
    """The labels of a list; none where a part of it is no label."""
    matches = [
        LABEL.fullmatch(part.strip(" \t\r\n'\"`*“”‘’")) for part in re.split(r"[,>]", inside)
    ]
    return [match[1].upper() for match in matches if match] if all(matches) else []


def only_a_list(k: int) -> dict[str, Any]:
    """What makes a vLLM endpoint reply with the list alone (`structured_outputs`).

    Beyond five answers there are too many permutations to spell out, and a list may name a label
    twice.
    """
    if k > 5:
        label = f"'[A-{ascii_uppercase[k - 1]}]'"
        return {"regex": rf"\[\[{', '.join([label] * k)}\]\]"}
    return {"choice": [str([list(labels)]) for labels in permutations(ascii_uppercase[:k])]}


# ---- agreement


def kendall_tau(first: Sequence[int], second: Sequence[int]) -> float:
    """Kendall's tau of two orders of the same K >= 2 things: 1 the same order, -1 the reverse."""
    # Half a second to import, which `rayward data --help` does without.
    from scipy.stats import kendalltau

    places = [second.index(thing) for thing in first]
    # Its square roots miss 1 in the last digits, as for five things in the same order.
    return round(float(kendalltau(range(len(places)), places).statistic), 12)


def agreement(twice: Sequence[tuple[Sequence[int], Sequence[int]]]) -> dict[str, float]:
    """Of n items ranked twice: the shares of equal orders and of equal bests, and the mean tau."""
    # Without an item there is no mean, and only n is given.
    measures = {
        "same_order": [float(first == second) for first, second in twice],
        "same_best": [float(first[0] == second[0]) for first, second in twice],
        "kendall_tau": [kendall_tau(first, second) for first, second in twice],
    }
    return {
        "n": len(twice),
        **{name: sum(values) / len(twice) for name, values in measures.items() if values},
    }
