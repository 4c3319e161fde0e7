"""Pairs of answers with labels to hold a judge against, and rankings that a judge made again.

Labels are those of PandaLM's three annotators, of any file of rankings or pairs that Rayward reads
(the order of their answers), or the verdicts of a judge in AlpacaEval's shape.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from rayward.data.formats.files.containers import RowSource, sources
from rayward.data.formats.registry import outcomes
from rayward.data.judging.annotations import BadRow, Verdict, verdicts
from rayward.data.records import (
    Preference,
    Ranking,
    RowError,
    Turn,
    describe,
    list_of,
    number_of,
    object_of,
    text_of,
)

ANNOTATORS = ("annotator1", "annotator2", "annotator3")
CHOICES = {0: 0.5, 1: 0.0, 2: 1.0}
"""PandaLM's labels: 0 a tie, 1 response1, 2 response2."""
SPEAKERS = {"user": "Human", "assistant": "Assistant", "system": "System"}


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two answers to a prompt, and what each labeller says: 0 the first, 1 the second, 0.5 neither.

    `group`: the same for pairs of one prompt, which depend on each other. `labels` by labeller.
    `ranks`: those of both answers, where they are of a ranking. `turns`: the conversation before
    them, where `prompt` is not all of it; `source`: of the ranking.
    """

    id: str
    group: str
    prompt: str
    first: str
    second: str
    labels: Mapping[str, float]
    ranks: tuple[float, float] | None = None
    turns: tuple[Turn, ...] = ()
    source: str = ""

    def asked(self) -> tuple[Turn, ...]:
        """The turns before the answers."""
        return self.turns or (Turn("user", self.prompt),)

    def label(self) -> float | None:
        """What more than half of the labellers say; None where no answer has so many."""
        said = list(self.labels.values())
        most = max(said, key=said.count)
        return most if 2 * said.count(most) > len(said) else None


def labelled_pairs(path: str | Path, seed: int) -> Iterator[LabelledPair | BadRow]:
    """The pairs of a file, and in their places the rows that have none.

    Of a ranking all pairs of different rank, the seed saying which answer is the first: labels that
    all say "first" would praise a judge that does.
    """
    for source in sources(path):
        row = _first_row(source)
        if ANNOTATORS[0] in row:
            yield from _pandalm(source)
        elif {"output_1", "output_2", "preference"} <= row.keys():
            yield from map(_of_verdict, verdicts(source.name, keep_rows=True))
        else:
            yield from _of_records(source.name, seed)


def verdict_on(verdict: Verdict, pair: LabelledPair) -> float | None:
    """What a verdict on a pair says of its answers: 0 the first, 1 the second, 0.5 neither.

    None where it says nothing.
    """
    if verdict.preference is None:
        return None
    share = _side(verdict.preference)
    return share if verdict.row.get("output_1") == pair.first else 1 - share


def _first_row(source: RowSource) -> Mapping[str, Any]:
    return next((row for _, row in source.rows() if isinstance(row, Mapping)), {})


def _pandalm(source: RowSource) -> Iterator[LabelledPair | BadRow]:
    for line, value in source.rows():
        try:
            if isinstance(value, RowError):
                raise value
            row = object_of(value, "row")
            prompt = text_of(row.get("instruction"), "instruction")
            if isinstance(row.get("input"), str) and row["input"].strip():
                prompt = f"{prompt}\n\n{row['input']}"
            labels = {name: _choice(row.get(name), name) for name in ANNOTATORS}
            first, second = (_answer(row, name) for name in ("response1", "response2"))
            name = f"{_stem(source.name)}-{line}"
            yield LabelledPair(name, _group(prompt), prompt, first, second, labels)
        except RowError as error:
            yield BadRow(source.name, line, error)


def _choice(value: object, name: str) -> float:
    number = number_of(value, name)
    if number not in CHOICES:
        raise RowError(name, f"{number:g}", "0 (a tie), 1 or 2", "label out of range")
    return CHOICES[int(number)]


def _answer(row: Mapping[str, Any], name: str) -> str:
    """An answer, which may say nothing."""
    value = row.get(name)
    if not isinstance(value, str):
        raise RowError(name, describe(value), "text")
    return value


def _of_verdict(verdict: Verdict | BadRow) -> LabelledPair | BadRow:
    """A verdict of a judge as a label. One that is missing labels nothing."""
    if isinstance(verdict, BadRow):
        return verdict
    row = verdict.row
    labels = {}
    if verdict.preference is not None:
        labels = {verdict.annotator: _side(verdict.preference)}
    name = str(row.get("question_id", verdict.digest.hex()))
    turn = row.get("turn", 1)
    prompt = verdict.instruction
    return LabelledPair(
        name if turn == 1 else f"{name}-{turn}",
        _group(prompt),
        prompt,
        row["output_1"],
        row["output_2"],
        labels,
    )


def _side(preference: float) -> float:
    """The side of a preference from 1 to 2; 0 is an old code of a tie."""
    if preference in (0, 1.5):
        return 0.5
    return float(preference > 1.5)


def _of_records(path: str, seed: int) -> Iterator[LabelledPair | BadRow]:
    """All pairs of rankings and preferences in any format that Rayward reads."""
    for outcome in outcomes(path, token_files=False):
        if outcome.error:
            yield BadRow(outcome.file, outcome.line, outcome.error)
        for record in outcome.records:
            if isinstance(record, Preference):
                record = record.as_ranking()
            if isinstance(record, Ranking):
                # Counted from 0, as the rows of rankings that are made again count them.
                name = f"{_stem(outcome.file)}-{outcome.line - 1}"
                yield from pairs_of_ranking(record, name, seed)
                continue
            kind = type(record).__name__.lower()
            error = RowError("record", f"a {kind}", "a ranking or a pair", "no answers to compare")
            yield BadRow(outcome.file, outcome.line, error)


def pairs_of_ranking(ranking: Ranking, name: str, seed: int) -> Iterator[LabelledPair]:
    """All pairs of different rank; the seed says which answer of each is the first."""
    ranks = ranking.ranks or tuple(range(len(ranking.answers)))
    prompt = _prompt(ranking.turns)
    for better, worse in combinations(range(len(ranks)), 2):
        if ranks[better] == ranks[worse]:
            continue
        # Answers stand in a ranking best first.
        identity = f"{name}-{better + 1}-{worse + 1}"
        turned = hashlib.sha256(f"{seed}\0{identity}".encode()).digest()[0] % 2
        one, other = (worse, better) if turned else (better, worse)
        yield LabelledPair(
            identity,
            name,
            prompt,
            ranking.answers[one],
            ranking.answers[other],
            {"rank": float(turned)},
            (ranks[one], ranks[other]),
            ranking.turns,
            ranking.source,
        )


def _prompt(turns: Sequence[Turn]) -> str:
    """The question, or a conversation in one text."""
    if len(turns) == 1:
        return turns[0].content
    return "\n\n".join(f"{SPEAKERS.get(turn.role, turn.role)}: {turn.content}" for turn in turns)


def _group(prompt: str) -> str:
    return hashlib.blake2b(prompt.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _stem(path: str) -> str:
    return Path(path).name.split(".")[0]


# ---- rankings made again


@dataclass(frozen=True, slots=True)
class Rejudged:
    """Ranks (1 best) that answers had before, in the order in which a judge now puts them."""

    judge: str
    group: str
    order: tuple[float, ...]

    def verdict_on(self, pair: LabelledPair) -> float | None:
        """0 where it puts the first answer of a pair before the second, else 1; None: not in it."""
        if pair.ranks is None or not set(pair.ranks) <= set(self.order):
            return None
        return float(self.order.index(pair.ranks[1]) < self.order.index(pair.ranks[0]))


def rejudged(path: str | Path) -> Iterator[Rejudged | BadRow]:
    """Rows with "order", and what they are of: "experiment" (or "judge"), "split" and "row"."""
    for source in sources(path):
        for line, value in source.rows():
            try:
                if isinstance(value, RowError):
                    raise value
                row = object_of(value, "row")
                items = list_of(row.get("order"), "order")
                order = tuple(number_of(item, f"order[{at}]") for at, item in enumerate(items))
                if len(order) < 2 or len(set(order)) < len(order):
                    raise RowError("order", f"{list(order)}", "two ranks or more, each once")
                judge = row.get("experiment", row.get("judge", "(not named)"))
                group = f"{row.get('split', '')}-{row.get('row', line)}"
                yield Rejudged(str(judge), group, order)
            except RowError as error:
                yield BadRow(source.name, line, error)
